"""The admin's pages about runs. `training.admin` gives them their addresses and lets in staff only."""

import json
from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.decorators import permission_required
from django.contrib.auth.models import User
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling.models import Campaign
from serving import adapters, client
from training import catalog, dashboard, estimates, gates, lineage, live, report, runs
from training.forms import RunForm, RunNoteForm
from training.models import Run

PUBLISHING_ERRORS = (
    gates.ReasonWanted,
    adapters.NotServable,
    adapters.NothingToRollBack,
    adapters.AliasMoved,
    client.EngineDown,
    client.EngineError,
)


@require_http_methods(["GET", "POST"])
@permission_required("training.add_run", raise_exception=True)
def run_start(request: HttpRequest) -> HttpResponse:
    """The form that starts a run. `?campaign=`, `?method=` and `?preset=` choose what it shows, `?clone=` a run to begin with."""
    origin = _origin(request)
    method = (request.POST or request.GET).get("method", origin.method if origin else "dpo")
    method = method if method in catalog.METHODS else "dpo"
    preset = catalog.PRESETS.get(request.GET.get("preset", ""))
    params = {**(origin.params if origin else {}), **(preset.params if preset else {})}
    campaign = request.GET.get("campaign") or (origin.campaign_id if origin else None) or _first_campaign()
    form = RunForm(method, request.POST or None, params=params, initial={"campaign": campaign})
    if form.is_valid():
        try:
            run = runs.create(form.cleaned_data["campaign"], method, form.parameters(), user=person(request))
        except runs.RunExists as error:
            form.add_error("campaign", str(error))
        else:
            return redirect("admin:training_run_change", run.pk)
    context = {
        "form": form,
        "method": catalog.METHODS[method],
        "about": catalog.METHODS[method].params.__doc__,
        "choices": _methods_by_source(),
        "presets": _presets(method),
        "preset": preset.name if preset else "" if origin else next(iter(catalog.PRESETS)),
        "origin": origin,
        "title": _("Start a run"),
    }
    return page(request, "training/run_start.html", context)


@require_GET
@never_cache
@permission_required("training.add_run", raise_exception=True)
def run_estimate(request: HttpRequest) -> HttpResponse:
    """What a run of this form would learn from and how long it would take: a piece of the form, asked for as it changes."""
    method = catalog.METHODS.get(request.GET.get("method", ""))
    campaign = Campaign.objects.filter(pk=_number(request.GET.get("campaign", ""))).first()
    if method is None or campaign is None:
        raise Http404
    form = RunForm(method.name, request.GET)
    form.is_valid()  # what is not (yet) valid counts with its default
    try:
        estimate = estimates.of_run(campaign, method, form.cleaned_data)
    except estimates.StillCounting:
        return HttpResponse(_("The judgments are being counted…"), status=202)
    return render(request, "training/_estimate.html", {"estimate": estimate})


@require_GET
@permission_required("training.view_run", raise_exception=True)
def run_detail(request: HttpRequest, run_id: int) -> HttpResponse:
    run = get_object_or_404(dashboard.recent_runs().select_related("snapshot", "incumbent", "retry_of"), pk=run_id)
    evaluation = getattr(run, "evaluation", None)
    context = {
        "run": run,
        "row": dashboard.with_publishable([run])[0],
        "original": run,
        "opts": Run._meta,
        "title": str(run),
        "evaluation": evaluation,
        "reward_model": getattr(run, "reward_model", None),
        "evidence": report.evidence(run),
        "guards": report.guards(evaluation) if evaluation else [],
        "samples": report.samples(evaluation) if evaluation else [],
        "deployment": dashboard.current_deployment(),
        "method": catalog.METHODS.get(run.method),
        "params": report.parameters(run),
        "stages": report.stages(run),
        "system": report.system(run),
        "actions": report.ACTIONS,
        "log": live.log_of(run),
        "is_active": run.status in Run.ACTIVE,
        "state_key": live.state_key(run),
        "retries": run.retries.order_by("id"),
        "doubt": gates.doubt(run.adapter) if run.adapter else "",
        "learned_retracted": run.adapter is not None and lineage.learned_retracted(run.adapter),
        "before": Run.objects.filter(campaign=run.campaign_id, pk__lt=run.pk, step__gt=0).order_by("-pk").first(),
        "note_form": RunNoteForm(instance=run),
        **_rights(request),
    }
    return page(request, "training/run_detail.html", context)


@require_POST
@permission_required("training.change_run", raise_exception=True)
def run_annotate(request: HttpRequest, run_id: int) -> HttpResponse:
    """Notes and tags, which anybody who may change runs may write, at any time."""
    run = get_object_or_404(Run, pk=run_id)
    form = RunNoteForm(request.POST, instance=run)
    if form.is_valid():
        Run.objects.filter(pk=run.pk).update(notes=form.cleaned_data["notes"], tags=form.cleaned_data["tags"])
        messages.success(request, _("Notes saved."))
    else:
        messages.error(request, " ".join(str(error) for errors in form.errors.values() for error in errors))
    return redirect("admin:training_run_change", run.pk)


@require_POST
@permission_required("training.change_run", raise_exception=True)
def run_cancel(request: HttpRequest, run_id: int) -> HttpResponse:
    run = get_object_or_404(Run, pk=run_id)
    if not runs.request_cancel(run, timezone.now()):
        messages.warning(request, _("Run %d had ended already.") % run.pk)
    return redirect("admin:training_run_change", run.pk)


@require_POST
@permission_required("training.add_run", raise_exception=True)
def run_retry(request: HttpRequest, run_id: int) -> HttpResponse:
    run = get_object_or_404(Run, pk=run_id)
    try:
        return redirect("admin:training_run_change", runs.retry(run, person(request)).pk)
    except (runs.RunExists, runs.NotRetryable, catalog.ParameterError) as error:
        messages.error(request, str(error))
        return redirect("admin:training_run_change", run.pk)


@require_POST
@permission_required("serving.change_deployment", raise_exception=True)
def run_publish(request: HttpRequest, run_id: int) -> HttpResponse:
    run = get_object_or_404(Run.objects.select_related("adapter"), pk=run_id, adapter__isnull=False)
    try:
        gates.publish(run, actor=person(request), reason=request.POST.get("reason", ""))
        messages.success(request, _("%s answers in chat from now on.") % run.adapter)
    except PUBLISHING_ERRORS as error:
        messages.error(request, str(error))
    return redirect("admin:training_run_change", run.pk)


@require_POST
@permission_required("serving.change_deployment", raise_exception=True)
def deployment_rollback(request: HttpRequest) -> HttpResponse:
    """Chat goes back to the version before the current one, if `generation` is still what the page showed."""
    try:
        deployment = adapters.rollback(
            actor=person(request),
            reason=request.POST.get("reason", "").strip(),
            expected_generation=_posted_generation(request),
        )
        messages.success(request, _("%s answers in chat again.") % deployment.adapter)
    except PUBLISHING_ERRORS as error:
        messages.error(request, str(error))
    return redirect("admin:index")


def page(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    """A page in the admin's frame."""
    return render(request, template, {**admin.site.each_context(request), "inline_admin_formsets": [], **context})


def person(request: HttpRequest) -> User | None:
    return request.user if isinstance(request.user, User) else None


def _rights(request: HttpRequest) -> dict[str, bool]:
    return {
        "can_change": request.user.has_perm("training.change_run"),
        "can_train": request.user.has_perm("training.add_run"),
        "can_view_reward_models": request.user.has_perm("training.view_rewardmodel"),
        "can_publish": request.user.has_perm("serving.change_deployment"),
    }


def _origin(request: HttpRequest) -> Run | None:
    """The run that is cloned."""
    number = _number(request.GET.get("clone", ""))
    return Run.objects.select_related("campaign").filter(pk=number).first() if number else None


def _number(text: str) -> int:
    """Zero, which no row has, for what is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _first_campaign() -> int | None:
    return Campaign.objects.values_list("pk", flat=True).first()


def _methods_by_source() -> list[tuple[str, list[catalog.Method]]]:
    """What methods learn from, and those that learn from it, in the catalog's order."""
    by_source = [
        (words, [method for method in catalog.METHODS.values() if method.source == source])
        for source, words in catalog.SOURCES.items()
    ]
    return [(words, methods) for words, methods in by_source if methods]


def _presets(method: str) -> list[tuple[catalog.Preset, str]]:
    """Each with the values that its fields get, as JSON: its own, and the defaults of what other presets change."""
    defaults = catalog.to_dict(catalog.METHODS[method].params())
    touched = {name for preset in catalog.PRESETS.values() for name in preset.params}
    base = {name: value for name, value in defaults.items() if name in touched}
    return [(preset, json.dumps({**base, **preset.params})) for preset in catalog.PRESETS.values()]


def _posted_generation(request: HttpRequest) -> int:
    """Zero, which no deployment has, for what is no number."""
    try:
        return int(request.POST.get("generation", ""))
    except ValueError:
        return 0
