"""Pages of reviewers: disputes, one comparison with everyone's votes, pairs with a known answer."""

import uuid
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling import access, adjudication, gold, judgments, leases, screen, shortcuts, statistics
from labeling.campaign_pages import frame
from labeling.errors import Refused
from labeling.models import Campaign, Comparison, Judgment, Lease, Preferences
from serving.rendering import to_html

PER_PAGE = 50


@require_safe
@login_required
@never_cache
def campaign_disputes(request: HttpRequest, slug: str) -> HttpResponse:
    """Comparisons that people disagree on; also those decided, and all that were judged."""
    person = access.person(request)
    campaign = access.get_reviewed_campaign(person, slug)
    shown = request.GET.get("show", "")
    shown = shown if shown in adjudication.SHOWN else adjudication.SHOWN[0]
    context = {
        **frame(person, campaign, "campaign_disputes"),
        "shown": shown,
        "page_obj": Paginator(adjudication.listed(campaign, shown), PER_PAGE).get_page(request.GET.get("page")),
    }
    return render(request, "labeling/disputes.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def adjudicate(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """One comparison, everybody's votes on it, and the reviewer's decision."""
    person = access.person(request)
    campaign = access.get_reviewed_campaign(person, slug)
    comparison = _comparison(campaign, pk)
    lease = leases.decide(comparison, person, timezone.now())
    problem = ""
    if request.method == "POST":
        try:
            return _decide(request, campaign, lease)
        except Refused as error:
            problem = str(error)
    context = _context(campaign, comparison, lease, person) | {"problem": problem, "posted": request.POST}
    return render(request, "labeling/adjudicate.html", context, status=422 if problem else 200)


def _comparison(campaign: Campaign, pk: int) -> Comparison:
    rows = adjudication.comparisons(campaign).select_related("campaign", "prompt").prefetch_related("responses")
    return get_object_or_404(rows, pk=pk)


def _decide(request: HttpRequest, campaign: Campaign, lease: Lease) -> HttpResponse:
    choice = adjudication.read_choice(lease, request.POST)
    key = uuid.uuid5(lease.pk, request.POST.get("key", ""))  # the page's, so that sending it twice decides once
    judgments.record(lease, lease.annotator, key, choice, timezone.now())
    following = adjudication.after(campaign, lease.comparison)
    if following is None:
        messages.success(request, _("Decided. That was the last dispute."))
        return redirect("campaign_disputes", campaign.slug)
    messages.success(request, _("Decided. Here is the next one."))
    return redirect("adjudicate", campaign.slug, following.pk)


def _context(campaign: Campaign, comparison: Comparison, lease: Lease, person: User) -> dict[str, Any]:
    decisions = list(adjudication.decided().filter(comparison=comparison).select_related("annotator"))
    texts = {response.pk: response for response in comparison.responses.all()}
    responses = [(number, texts[pk]) for number, pk in enumerate(lease.order, 1)]
    is_mine = any(decision.annotator_id == person.pk for decision in decisions)
    return {
        **frame(person, campaign, "campaign_disputes"),
        "comparison": comparison,
        "turns": [(turn["role"], to_html(turn["content"])) for turn in comparison.prompt.messages],
        "responses": [(number, response.pk, to_html(response.text)) for number, response in responses],
        "opinions": adjudication.opinions(comparison, lease.order, with_names=bool(decisions)),
        "decisions": [(decision, adjudication.describe(decision, lease.order)) for decision in decisions],
        "is_mine": is_mine,
        "notes": adjudication.notes(comparison, person),
        "gold": _gold_number(comparison, lease.order),
        "key": uuid.uuid4(),
        "ranks": range(1, len(responses) + 1),
        **_buttons(campaign, person),
    }


def _buttons(campaign: Campaign, person: User) -> dict[str, Any]:
    """The label screen's buttons, with this person's keys."""
    own = Preferences.objects.filter(user=person).first()
    bound = shortcuts.bindings(shortcuts.mode_of(campaign), own.keys if own else {}, campaign.scale)
    made = screen.buttons(campaign, shortcuts.keys_of(bound))
    return {"buttons": [*made["left"], *made["middle"], *made["right"], *made["extra"]]}


def _gold_number(comparison: Comparison, order: list[int]) -> list[int]:
    """The numbers of the responses that are known to be best; none for an ordinary comparison."""
    known = comparison.gold_ranks or {}
    return [number for number, pk in enumerate(order, 1) if known and known.get(str(pk)) == min(known.values())]


@require_POST
@login_required
def decision_undo(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Takes one's own decision back."""
    person = access.person(request)
    campaign = access.get_reviewed_campaign(person, slug)
    comparison = _comparison(campaign, pk)
    decision = get_object_or_404(adjudication.decided(), comparison=comparison, annotator=person)
    try:
        judgments.undo(decision, timezone.now())
    except Refused as error:
        messages.error(request, str(error))
    else:
        messages.success(request, _("Taken back. Decide again."))
    return redirect("adjudicate", slug, pk)


@require_POST
@login_required
def gold_set(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Makes a comparison gold (`best` is the id of the right response, or `decision` for what was decided), or, without
    an answer, an ordinary one again.
    """
    campaign = access.get_reviewed_campaign(access.person(request), slug)
    comparison = _comparison(campaign, pk)
    try:
        gold.set_answer(comparison, _answer(comparison, request.POST.get("best", "")))
    except Refused as error:
        messages.error(request, str(error))
    else:
        statistics.mark_stale(campaign)
        is_gold = comparison.is_gold
        messages.success(
            request, _("This pair measures people now.") if is_gold else _("This pair is an ordinary one again.")
        )
    return redirect("adjudicate", slug, pk)


def _answer(comparison: Comparison, best: str) -> dict[str, int] | None:
    if not best:
        return None
    if best == "decision":
        decision: Judgment | None = adjudication.decided().filter(comparison=comparison).last()
        return decision.ranks if decision else {}
    return adjudication.best_of(comparison, int(best) if best.isdecimal() else 0)


@require_safe
@login_required
@never_cache
def campaign_gold(request: HttpRequest, slug: str) -> HttpResponse:
    """Pairs with a known answer, and how people did on them."""
    person = access.person(request)
    campaign = access.get_reviewed_campaign(person, slug)
    page = Paginator(adjudication.gold_pairs(campaign), PER_PAGE).get_page(request.GET.get("page"))
    context = {
        **frame(person, campaign, "campaign_gold"),
        "page_obj": page,
        "rows": adjudication.with_answers(page.object_list),
    }
    return render(request, "labeling/gold.html", context)
