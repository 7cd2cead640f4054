"""Pages by which a manager retracts judgments, and sees what had learned from them. Managers need no access to the admin."""

from django.contrib import messages
from django.contrib.auth.decorators import login_required, permission_required
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.db.models import Count, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling import access, judgments
from labeling import retractions as labeling_retractions
from labeling.campaign_pages import frame
from labeling.errors import Refused
from labeling.models import Campaign, Judgment, Retraction
from training import catalog, lineage, retractions, runs
from training.lineage_views import asked_pages
from training.models import RewardModel, Run

PER_PAGE = 25


@require_safe
@login_required
@never_cache
def campaign_retractions(request: HttpRequest, slug: str) -> HttpResponse:
    """Everything that was retracted in the campaign: who decided, when and why."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    rows = campaign.retractions.select_related("by", "annotator").annotate(n=Count("rows")).order_by("-pk")
    page = Paginator(rows, PER_PAGE).get_page(request.GET.get("page"))
    context = {**frame(person, campaign, "campaign_retractions"), "page_obj": page}
    return render(request, "training/retractions.html", context)


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
@never_cache
def retraction_start(request: HttpRequest, slug: str) -> HttpResponse:
    """What would be retracted (`?judgment=` one, or `?person=` all that one said), what has learned from it, and why?"""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    judgment, annotator = _asked(campaign, request.GET)
    said = _said(campaign, judgment, annotator)
    problem = ""
    if request.method == "POST":
        try:
            made = _retract(campaign, judgment, annotator, person, request.POST.get("reason", ""))
        except Refused as error:
            problem = str(error)
        else:
            messages.success(request, _("Retracted. No run that starts or resumes from now on learns from it."))
            return redirect("retraction_detail", slug, made.pk)
    context = {
        **frame(person, campaign, "campaign_retractions"),
        "annotator": annotator,
        "judgment": judgment,
        "n": said.count(),
        "down": lineage.downstream(said, asked_pages(request)),
        "problem": problem,
        "reason": request.POST.get("reason", ""),
        "max_reason": labeling_retractions.MAX_REASON,
    }
    return render(request, "training/retraction_start.html", context, status=422 if problem else 200)


def _asked(campaign: Campaign, asked: QueryDict) -> tuple[Judgment | None, User]:
    """Which judgment, or all of whom. Raises Http404 for what is not of the campaign."""
    number, person = asked.get("judgment", ""), asked.get("person", "")
    if number.isdecimal():
        rows = Judgment.objects.filter(comparison__campaign=campaign).select_related("comparison__prompt", "annotator")
        judgment = get_object_or_404(rows, pk=int(number))
        return judgment, judgment.annotator
    if not person.isdecimal():
        raise Http404
    people = User.objects.filter(judgments__comparison__campaign=campaign).distinct()
    return None, get_object_or_404(people, pk=int(person))


def _said(campaign: Campaign, judgment: Judgment | None, annotator: User) -> QuerySet[Judgment]:
    mine = judgments.in_force().filter(comparison__campaign=campaign, annotator=annotator)
    return mine.filter(pk=judgment.pk) if judgment else mine


def _retract(campaign: Campaign, judgment: Judgment | None, annotator: User, by: User, reason: str) -> Retraction:
    now = timezone.now()
    if judgment:
        return labeling_retractions.retract_judgment(judgment, by, reason, now)
    return labeling_retractions.retract_person(campaign, annotator, by, reason, now)


@require_safe
@login_required
@never_cache
def retraction_detail(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """What was retracted, and the snapshots, runs and versions that it had come into."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    found = get_object_or_404(campaign.retractions.select_related("by", "annotator"), pk=pk)
    rows = labeling_retractions.retracted(found).select_related("comparison__prompt").order_by("-pk")
    context = {
        **frame(person, campaign, "campaign_retractions"),
        "retraction": found,
        "page_obj": Paginator(rows, PER_PAGE).get_page(request.GET.get("page")),
        "down": retractions.touched(found, asked_pages(request)),
        "repeats": found.runs.select_related("retry_of").order_by("-pk"),
        "may_train": person.has_perm("training.add_run"),
        "may_put_away": person.has_perm("training.change_run"),
    }
    return render(request, "training/retraction_detail.html", context)


@require_POST
@login_required
@permission_required("training.add_run", raise_exception=True)
def run_again(request: HttpRequest, slug: str, pk: int, run_id: int) -> HttpResponse:
    """The same run once more, on a new snapshot without what was retracted."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    found = get_object_or_404(campaign.retractions, pk=pk)
    try:
        made = retractions.run_again(get_object_or_404(Run, pk=run_id, campaign=campaign), found, person)
    except (retractions.NotTouched, runs.RunExists, runs.NotRetryable, catalog.ParameterError) as error:
        messages.error(request, str(error))
    else:
        messages.success(
            request, _("Run %(n)d waits for a worker. It learns without what was retracted.") % {"n": made.pk}
        )
    return redirect("retraction_detail", slug, pk)


@require_POST
@login_required
@permission_required("training.change_run", raise_exception=True)
def reward_model_put_away(request: HttpRequest, slug: str, pk: int, reward_model_id: int) -> HttpResponse:
    """Takes a reward model that had learned from what was retracted out of use."""
    person = access.person(request)
    campaign = access.get_managed_campaign(person, slug)
    found = get_object_or_404(campaign.retractions, pk=pk)
    reward_model = get_object_or_404(RewardModel, pk=reward_model_id, campaign=campaign)
    try:
        was_in_use = retractions.put_away(reward_model, found, person)
    except retractions.NotTouched as error:
        messages.error(request, str(error))
    else:
        said = _("Reward model %d is out of use.") if was_in_use else _("Reward model %d was not in use.")
        messages.success(request, said % reward_model.pk)
    return redirect("retraction_detail", slug, pk)
