"""What the pages about one campaign share: who may open which, and the tabs between them."""

from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from labeling import access
from labeling.models import Campaign, Membership

MANAGER, REVIEWER = Membership.Role.MANAGER, Membership.Role.REVIEWER
# Address, title, and who is shown it; each view asks for the right again.
TABS = (
    ("campaign_dashboard", _("Dashboard"), (MANAGER,)),
    ("campaign_annotators", _("People"), (MANAGER,)),
    ("campaign_disputes", _("Disputes"), (MANAGER, REVIEWER)),
    ("campaign_gold", _("Gold"), (MANAGER, REVIEWER)),
    ("campaign_leaderboard", _("Leaderboard"), (MANAGER, REVIEWER)),
    ("campaign_import", _("Import"), (MANAGER,)),
    ("campaign_export", _("Export"), (MANAGER,)),
    ("campaign_retractions", _("Retractions"), (MANAGER,)),  # of training, which knows what has learned from what
    ("campaign_guidelines", _("Guidelines"), (MANAGER,)),
    ("campaign_settings", _("Settings"), (MANAGER,)),
)


@dataclass(frozen=True)
class Tab:
    title: str | Promise
    address: str
    is_current: bool


def frame(person: User, campaign: Campaign, current: str) -> dict[str, Any]:
    """Context that templates/labeling/_campaign.html needs; `current` is the open tab's name."""
    role = access.role(person, campaign)
    tabs = [
        Tab(title, reverse(name, args=[campaign.slug]), name == current) for name, title, roles in TABS if role in roles
    ]
    return {"page": "campaign", "campaign": campaign, "tabs": tabs, "role": role}
