"""Pages of figures: a campaign's dashboard, its people, its leaderboard; and one's own statistics."""

from typing import Any

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from labeling import access, adjudication, dashboard, judgments, own, progress, statistics
from labeling.campaign_pages import frame
from labeling.models import Campaign, Judgment, Statistics

PER_PAGE = 50
REFRESH_SECONDS = 15


def _figures(request: HttpRequest, person: User, campaign: Campaign, tab: str) -> dict[str, Any]:
    return {
        **frame(person, campaign, tab),
        "statistics": statistics.of(campaign, timezone.now()),
        "refresh_seconds": REFRESH_SECONDS,
        "is_part": "HX-Request" in request.headers,
    }


@require_safe
@login_required
@never_cache
def campaign_dashboard(request: HttpRequest, slug: str) -> HttpResponse:
    """How far the campaign is and how far its labels can be trusted. htmx asks for the figures alone."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    context = _figures(request, person, campaign, "campaign_dashboard")
    context["progress"] = progress.of_campaign(campaign, person)
    context["n_disputed"] = adjudication.listed(campaign, "disputed").count()
    if stored := context["statistics"]:
        context |= dashboard.overview(stored.data, timezone.now())
    return render(request, "labeling/_dashboard.html" if context["is_part"] else "labeling/dashboard.html", context)


@require_safe
@login_required
@never_cache
def campaign_annotators(request: HttpRequest, slug: str) -> HttpResponse:
    """Everybody who judged: accuracy, consistency, bias, speed, and whom to look at."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    context = _figures(request, person, campaign, "campaign_annotators")
    asked = request.GET.get("sort", "")
    order = asked if asked in dashboard.ORDERS else "findings"
    rows = context["statistics"].data["people"] if context["statistics"] else []
    page = Paginator(dashboard.sort_people(rows, order), PER_PAGE).get_page(request.GET.get("page"))
    members = {member.user_id: member for member in campaign.memberships.filter(user__in=[row["user"] for row in page])}
    shown = [(dashboard.person_row(row), members.get(row["user"])) for row in page]
    context |= {"order": order, "page_obj": page, "shown": shown, "n_members": campaign.memberships.count()}
    return render(request, "labeling/_annotators.html" if context["is_part"] else "labeling/annotators.html", context)


@require_safe
@login_required
@never_cache
def campaign_annotator(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """One person's figures in this campaign, and their judgments, newest first."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    said = judgments.in_force().filter(comparison__campaign=campaign, annotator=pk)
    member = campaign.memberships.select_related("user").filter(user=pk).first()
    # Who left is still shown with what they judged; who never was here is not.
    shown = member.user if member else get_object_or_404(User, pk=pk, judgments__in=said[:1])
    context = _figures(request, person, campaign, "campaign_annotators")
    row = _row(context["statistics"], pk)
    page = Paginator(
        said.select_related("comparison__prompt").exclude(comparison__source="chat").order_by("-pk"), PER_PAGE
    ).get_page(request.GET.get("page"))
    context |= {
        "shown": shown,
        "member": member,
        "row": row,
        "days": dashboard.daily(own.daily(said.exclude(verdict=Judgment.Verdict.SKIP), timezone.now()), timezone.now()),
        "page_obj": page,
        "judged": [(one, adjudication.describe(one, one.order), _seconds(one)) for one in page],
    }
    return render(request, "labeling/annotator.html", context)


def _seconds(one: Judgment) -> float | None:
    return None if one.shown_ms is None else one.shown_ms / 1000


def _row(stored: Statistics | None, user: int) -> dashboard.PersonRow | None:
    rows = stored.data["people"] if stored else []
    found = next((row for row in rows if row["user"] == user), None)
    return dashboard.person_row(found) if found else None


@require_safe
@login_required
@never_cache
def campaign_leaderboard(request: HttpRequest, slug: str) -> HttpResponse:
    """Which version wins, how surely, and whether it still does at equal length."""
    person = access.person(request)
    campaign = access.get_reviewed_campaign(person, slug)
    context = _figures(request, person, campaign, "campaign_leaderboard")
    if stored := context["statistics"]:
        context |= dashboard.leaderboard(stored.data["leaderboard"])
    return render(request, "labeling/leaderboard.html", context)


@require_safe
@login_required
@never_cache
def my_statistics(request: HttpRequest) -> HttpResponse:
    """One's own work: how much, how fast, and how often one sides with the others."""
    figures = own.of(access.person(request), timezone.now())
    return render(request, "labeling/statistics.html", {"page": "statistics", "own": figures})
