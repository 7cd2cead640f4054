"""The admin's pages about runs. `training.admin` gives them their addresses and lets in staff only."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.decorators import permission_required
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from labeling.models import Campaign
from serving import adapters, client
from training import catalog, dashboard, gates, live, runs, snapshots, supervisor
from training.forms import RunForm
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
    """The form that starts a run; `?campaign=` and `?method=` choose what it shows."""
    posted = request.POST or None
    method = (request.POST or request.GET).get("method", "dpo")
    method = method if method in catalog.METHODS else "dpo"
    form = RunForm(method, posted, initial={"campaign": request.GET.get("campaign")})
    if form.is_valid():
        try:
            run = runs.create(form.cleaned_data["campaign"], method, form.parameters(), user=_user(request))
        except runs.RunExists as error:
            form.add_error("campaign", str(error))
        else:
            return redirect("admin:training_run_change", run.pk)
    context = {
        "form": form,
        "method": catalog.METHODS[method],
        "about": catalog.METHODS[method].params.__doc__,
        "campaigns": _waiting(),
        "title": _("Start a run"),
    }
    return _render(request, "training/run_start.html", context)


@require_GET
@permission_required("training.view_run", raise_exception=True)
def run_detail(request: HttpRequest, run_id: int) -> HttpResponse:
    run = get_object_or_404(dashboard.recent_runs().select_related("snapshot", "incumbent", "retry_of"), pk=run_id)
    row = dashboard.with_publishable([run])[0]
    context = {
        "run": run,
        "row": row,
        "original": run,
        "opts": Run._meta,
        "title": str(run),
        "evaluation": getattr(run, "evaluation", None),
        "deployment": dashboard.current_deployment(),
        "method": catalog.METHODS.get(run.method),
        "params": _shown_params(run),
        "timings": [(stage, run.timings[stage]) for stage in supervisor.STAGES if stage in run.timings],
        "log": live.log_of(run),
        "is_active": run.status in Run.ACTIVE,
        "state_key": live.state_key(run),
        "retries": run.retries.order_by("id"),
        "can_change": request.user.has_perm("training.change_run"),
        "can_train": request.user.has_perm("training.add_run"),
        "can_publish": request.user.has_perm("serving.change_deployment"),
    }
    return _render(request, "training/run_detail.html", context)


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
        return redirect("admin:training_run_change", runs.retry(run, _user(request)).pk)
    except (runs.RunExists, runs.NotRetryable, catalog.ParameterError) as error:
        messages.error(request, str(error))
        return redirect("admin:training_run_change", run.pk)


@require_POST
@permission_required("serving.change_deployment", raise_exception=True)
def run_publish(request: HttpRequest, run_id: int) -> HttpResponse:
    run = get_object_or_404(Run.objects.select_related("adapter"), pk=run_id, adapter__isnull=False)
    try:
        gates.publish(run, actor=_user(request), reason=request.POST.get("reason", ""))
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
            actor=_user(request),
            reason=request.POST.get("reason", "").strip(),
            expected_generation=_posted_generation(request),
        )
        messages.success(request, _("%s answers in chat again.") % deployment.adapter)
    except PUBLISHING_ERRORS as error:
        messages.error(request, str(error))
    return redirect("admin:index")


def _render(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    return render(request, template, {**admin.site.each_context(request), "inline_admin_formsets": [], **context})


def _user(request: HttpRequest) -> User | None:
    return request.user if isinstance(request.user, User) else None


def _posted_generation(request: HttpRequest) -> int:
    """Zero, which no deployment has, for what is no number."""
    try:
        return int(request.POST.get("generation", ""))
    except ValueError:
        return 0


def _waiting() -> list[tuple[Campaign, int]]:
    return [(campaign, snapshots.waiting(campaign)) for campaign in Campaign.objects.all()]


def _shown_params(run: Run) -> list[tuple[str, Any, bool]]:
    """Name, value and whether it differs from the method's default."""
    method = catalog.METHODS.get(run.method)
    defaults = catalog.to_dict(method.params()) if method else {}
    return [(name, value, value != defaults.get(name, value)) for name, value in run.params.items()]
