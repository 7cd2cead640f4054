"""Pages of people who label: home, the comparison screen, the invitation."""

import uuid
from typing import Any

from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_safe

from labeling import access, accounts, progress
from labeling.forms import InvitationForm
from labeling.models import Campaign
from serving.rendering import to_html

NOBODY = uuid.UUID(int=0)  # stands for the lease in addresses that the page completes
REFRESH_BUSY, REFRESH_IDLE = 4, 60  # seconds


@require_safe
@login_required
@never_cache
def home(request: HttpRequest) -> HttpResponse:
    """The campaigns of this person, and what is waiting in each. htmx asks for the list alone while responses are written."""
    shown = progress.overview(access.person(request), timezone.now())
    is_busy = any(entry.progress.n_writing for entry in shown)
    template = "labeling/_campaigns.html" if "HX-Request" in request.headers else "labeling/home.html"
    context = {"page": "home", "shown": shown, "refresh_seconds": REFRESH_BUSY if is_busy else REFRESH_IDLE}
    return render(request, template, context)


@require_safe
@login_required
@never_cache
def label(request: HttpRequest, slug: str) -> HttpResponse:
    """The comparison screen; pairs come by the API."""
    person = access.person(request)
    campaign = access.get_campaign(person, slug)
    context = {
        "page": "label",
        "campaign": campaign,
        "guidelines": to_html(campaign.guidelines) if campaign.guidelines else "",
        "buttons": _buttons(campaign),
        "progress": progress.of_campaign(campaign, person),
        "config": _config(person, campaign),
    }
    return render(request, "labeling/label.html", context)


def _config(person: User, campaign: Campaign) -> dict[str, Any]:
    """What static/js/label.js needs to know: addresses, times, and its sentences in the reader's language."""
    return {
        "person": person.pk,
        "nobody": str(NOBODY),
        "loginUrl": reverse("login"),
        "minDwellMs": campaign.min_dwell_ms,
        "urls": {
            "claim": reverse("lease_claim", args=[campaign.slug]),
            "renew": reverse("lease_renew", args=[NOBODY]),
            "release": reverse("lease_release", args=[NOBODY]),
            "judge": reverse("judgment_create"),
            "undo": reverse("judgment_undo"),
        },
        "roles": {"system": _("Instructions to the model"), "user": _("User"), "assistant": _("Assistant")},
        "strings": _strings(),
    }


def _strings() -> dict[str, str]:
    return {
        "saved": _("✓ Saved"),
        "skipped": _("Skipped"),
        "undone": _("Taken back. Choose again."),
        "undoneGone": _("Taken back. Somebody else judges that pair now, so here is another one."),
        "nothingToUndo": _("There is nothing to undo."),
        "offline": _("No connection. Your judgments are kept here and sent as soon as it is back."),
        "login": _("Log in"),
        "loginAgain": _("You are logged out. Your judgments are kept here; log in to send them."),
        "sent": _("Back online: everything is saved."),
        "lost": _("That pair was open for so long that somebody else has it now. Here is another one."),
        "readBoth": _("Look at both responses first."),
        "earlierOne": _("Show the turn before"),
        "earlier": _("Show %(n)s earlier turns"),
        "count": _("%(done)s of %(wanted)s · %(mine)s by you"),
    }


def _buttons(campaign: Campaign) -> dict[str, list[dict[str, Any]]]:
    """The buttons of the campaign's scale, by where they stand; `key` is the digit that presses the button."""
    if campaign.scale == Campaign.Scale.SEVEN:
        left = [_grade("1", 0, 3), _grade("2", 0, 2), _grade("3", 0, 1)]
        right = [_grade("5", 1, 1), _grade("6", 1, 2), _grade("7", 1, 3)]
        tie_key = "4"
    else:
        last = "3" if campaign.scale == Campaign.Scale.THREE else "2"
        left, right, tie_key = [_grade("1", 0, None)], [_grade(last, 1, None)], "2"
    middle = [{"key": tie_key, "verdict": "tie", "label": _("Tie")}]
    if not campaign.allow_tie or campaign.scale == Campaign.Scale.BINARY:
        middle = []
    both_bad = [{"key": "0", "verdict": "both_bad", "label": _("Both bad")}] if campaign.allow_both_bad else []
    return {"left": left, "middle": middle, "right": right, "extra": both_bad}


def _grade(key: str, side: int, strength: int | None) -> dict[str, Any]:
    """`label` is on the button, `title` says it in full."""
    labels = {3: _("much better"), 2: _("better"), 1: _("slightly"), None: _("better")}
    titles = {
        3: _("Response %(n)s is much better"),
        2: _("Response %(n)s is better"),
        1: _("Response %(n)s is slightly better"),
        None: _("Response %(n)s is better"),
    }
    return {
        "key": key,
        "verdict": "preference",
        "side": side,
        "strength": strength,
        "label": labels[strength],
        "title": titles[strength] % {"n": side + 1},
    }


@require_http_methods(["GET", "HEAD", "POST"])
@sensitive_post_parameters("password1", "password2")
@never_cache
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """Makes an account from an invitation link and logs the person in."""
    if request.user.is_authenticated:
        return render(request, "labeling/invitation_signed_in.html", status=409)
    found = accounts.find(token, timezone.now())
    if found is None:
        return render(request, "labeling/invitation_used.html", status=404)
    form = InvitationForm(request.POST or None)
    if request.method != "POST" or not form.is_valid():
        return render(request, "labeling/invitation.html", {"form": form, "invitation": found})
    try:
        user = accounts.accept(token, form.cleaned_data["username"], form.cleaned_data["password1"], timezone.now())
    except accounts.InvitationUsed:
        return render(request, "labeling/invitation_used.html", status=404)
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return redirect("home")
