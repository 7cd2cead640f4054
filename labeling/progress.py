"""How far a campaign is, and what a person with nothing to label is waiting for."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeVar

from django.contrib.auth.models import User
from django.core.cache import cache
from django.db.models import Count, PositiveIntegerField, Q, Sum
from django.db.models.functions import Greatest

from labeling import access, judgments, leases, pairs
from labeling.models import Campaign, Judgment, Membership, Purpose

T = TypeVar("T")
LATELY_SECONDS = 5
KEPT_SECONDS = 3600
WRITING = Q(candidates_state__in=("wanted", "claimed", "sampled"))
# Of one comparison; a dispute that was settled wants less than it got.
ASKED_FOR = Greatest("n_wanted", "n_judgments", output_field=PositiveIntegerField())


@dataclass(frozen=True)
class Progress:
    """Counts of one campaign. `n_judgments` are those that count, `n_wanted` what is asked for in all (k each, more where
    people disagree), both without gold pairs; `n_mine` this person's, `n_writing` the prompts that the model still writes responses to.
    """

    n_comparisons: int
    n_judgments: int
    n_wanted: int
    n_mine: int
    n_prompts: int
    n_writing: int
    n_failed: int

    @property
    def percent(self) -> int:
        return min(100, 100 * self.n_judgments // self.n_wanted) if self.n_wanted else 0


def of_campaign(campaign: Campaign, user: User) -> Progress:
    """Three queries, whatever the campaign's size."""
    return Progress(**_totals(campaign), n_mine=_n_judged(campaign, user))


def lately(campaign: Campaign, user: User) -> Progress:
    """As it was a few seconds ago: counting all pairs for every vote would cost more than the vote."""
    made = f"{campaign.pk}:{campaign.created_at.timestamp()}"
    totals = _kept(f"progress:{made}", partial(_totals, campaign))
    return Progress(**totals, n_mine=_kept(f"progress:{made}:{user.pk}", partial(_n_judged, campaign, user)))


def _totals(campaign: Campaign) -> dict[str, int]:
    pairs = campaign.comparisons.filter(gold_ranks__isnull=True).aggregate(
        n=Count("pk"), done=Sum("n_judgments", default=0), wanted=Sum(ASKED_FOR, default=0)
    )
    prompts = campaign.prompts.aggregate(
        n_prompts=Count("pk"),
        n_writing=Count("pk", filter=WRITING),
        n_failed=Count("pk", filter=Q(candidates_state="failed")),
    )
    return {"n_comparisons": pairs["n"], "n_judgments": pairs["done"], "n_wanted": pairs["wanted"], **prompts}


def _n_judged(campaign: Campaign, user: User) -> int:
    mine = judgments.in_force().filter(annotator=user, comparison__campaign=campaign).exclude(purpose=Purpose.PRACTICE)
    return mine.exclude(verdict=Judgment.Verdict.SKIP).count()


def _kept(key: str, count: Callable[[], T]) -> T:
    """What `count` returned lately. One of those who find it too old counts anew, the others take what is there; what
    takes long to count is kept for longer, so that counting never takes more than a hundredth of the time.
    """
    found = cache.get(key)
    now = time.time()
    if found is not None and (now < found[1] or not cache.add(f"{key}:counting", True, 60)):
        return found[0]
    value = count()
    took = time.time() - now
    cache.set(key, (value, now + max(LATELY_SECONDS, 100 * took)), KEPT_SECONDS)
    cache.delete(f"{key}:counting")
    return value


def state(campaign: Campaign, user: User, progress: Progress, *, has_pairs: bool) -> str:
    """Why there is something to label, or nothing: ready, paused (the campaign, or this person in it), writing (responses
    are on their way), with_others (they hold leases that may run out), finished, empty. `has_pairs`: some may be claimed.
    """
    if has_pairs:
        return "ready"
    is_paused = campaign.memberships.filter(user=user, paused_at__isnull=False).exists()
    if campaign.status != Campaign.Status.ACTIVE or is_paused:
        return "paused"
    if progress.n_writing:
        return "writing"
    mine = judgments.in_force().filter(annotator=user).values("comparison")
    if campaign.comparisons.filter(is_open=True).exclude(pk__in=mine).exists():
        return "with_others"
    return "finished" if progress.n_comparisons else "empty"


@dataclass(frozen=True)
class Entry:
    """One campaign on somebody's home page."""

    campaign: Campaign
    progress: Progress
    state: str
    role: str


def overview(user: User, now: datetime) -> list[Entry]:
    """What this person's home page lists: active campaigns first."""
    own = {} if access.is_administrator(user) else dict(user.memberships.values_list("campaign", "role"))
    manager = Membership.Role.MANAGER
    return sorted(
        (_entry(campaign, user, now, own.get(campaign.pk, manager)) for campaign in access.campaigns(user)),
        key=lambda entry: entry.campaign.status != Campaign.Status.ACTIVE,
    )


def _entry(campaign: Campaign, user: User, now: datetime, role: str) -> Entry:
    counts = of_campaign(campaign, user)
    is_paused = campaign.memberships.filter(user=user, paused_at__isnull=False).exists()
    has_pairs = not is_paused and campaign.status == Campaign.Status.ACTIVE and _has_pairs(campaign, user, now)
    return Entry(campaign, counts, state(campaign, user, counts, has_pairs=has_pairs), role)


def _has_pairs(campaign: Campaign, user: User, now: datetime) -> bool:
    held = leases.live(now).filter(annotator=user, comparison__campaign=campaign)
    return pairs.open_comparisons(campaign, user, now).exists() or held.exists()
