"""The admin's first page and its side bar: campaigns, what waits, what runs, what is served."""

from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling import progress
from labeling.models import Campaign
from labeling.progress import Progress
from serving import adapters
from serving.models import Deployment
from training import gates, snapshots
from training.models import Policy, Run

N_RUNS = 8
EVIDENCE = ("evaluation__evidence", "reward_model__evidence", "reward_model__figures")  # as seen from a run

# Group, then (model, title, icon); what this person may not see is left out.
NAVIGATION = (
    (
        gettext_lazy("Learn"),
        (
            ("training.Run", gettext_lazy("Runs"), "model_training"),
            ("training.Policy", gettext_lazy("Policies"), "event_repeat"),
            ("training.RewardModel", gettext_lazy("Reward models"), "thumbs_up_down"),
            ("training.Scoring", gettext_lazy("Scoring jobs"), "scoreboard"),
        ),
    ),
    (
        gettext_lazy("Data"),
        (
            ("labeling.Campaign", gettext_lazy("Campaigns"), "rate_review"),
            ("labeling.Prompt", gettext_lazy("Prompts"), "chat"),
            ("labeling.Judgment", gettext_lazy("Judgments"), "balance"),
            ("training.Snapshot", gettext_lazy("Snapshots"), "inventory_2"),
        ),
    ),
    (
        gettext_lazy("Serve"),
        (
            ("serving.Adapter", gettext_lazy("Versions"), "layers"),
            ("serving.Deployment", gettext_lazy("Deployments"), "route"),
            ("serving.DeploymentEvent", gettext_lazy("Deployment history"), "history"),
            ("serving.ServedRequest", gettext_lazy("Request log"), "receipt_long"),
            ("serving.ApiKey", gettext_lazy("API keys"), "key"),
        ),
    ),
    (
        gettext_lazy("People"),
        (
            ("auth.User", gettext_lazy("Accounts"), "person"),
            ("labeling.Invitation", gettext_lazy("Invitations"), "mail"),
        ),
    ),
    (
        gettext_lazy("System"),
        (
            ("django_celery_beat.PeriodicTask", gettext_lazy("Scheduled tasks"), "schedule"),
            ("django_celery_beat.CrontabSchedule", gettext_lazy("Crontabs"), "calendar_clock"),
        ),
    ),
)


@dataclass(frozen=True)
class CampaignRow:
    campaign: Campaign
    progress: Progress
    n_waiting: int
    policy: Policy | None
    active: Run | None


def callback(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Called by django-unfold for the admin's index page. Shows each part only to who may view it."""
    user = request.user
    if not isinstance(user, User):
        return context
    rights = {
        "can_view_runs": user.has_perm("training.view_run"),
        "can_train": user.has_perm("training.add_run"),
        "can_publish": user.has_perm("serving.change_deployment"),
    }
    if not rights["can_view_runs"]:
        return {**context, **rights, "title": _("Overview")}
    return {
        **context,
        **rights,
        "title": _("Overview"),
        "campaigns": _campaigns(user),
        "deployment": current_deployment(),
        "runs": with_publishable(list(recent_runs()[:N_RUNS])),
    }


def recent_runs() -> Any:
    """Newest first, with what a line about a run needs: not the evidence, which can be long and is read when asked for."""
    rows = Run.objects.select_related("campaign", "adapter", "evaluation", "reward_model", "requested_by")
    return rows.defer(*EVIDENCE)


def current_deployment() -> Deployment | None:
    """The alias that chat uses; None before the model was prepared."""
    try:
        return adapters.deployment()
    except adapters.InvalidAdapter:
        return None


@dataclass(frozen=True)
class RunRow:
    run: Run
    is_current: bool
    needs_reason: bool


def with_publishable(runs: list[Run]) -> list[RunRow]:
    """Each run with whether its adapter is what chat answers with now, and whether publishing it takes a reason."""
    deployment = current_deployment()
    current = deployment.adapter_id if deployment else None
    return [RunRow(run, run.adapter_id is not None and run.adapter_id == current, needs_reason(run)) for run in runs]


def needs_reason(run: Run) -> bool:
    return run.adapter is not None and gates.needs_reason(run.adapter)


def _campaigns(user: User) -> list[CampaignRow]:
    active = {run.campaign_id: run for run in Run.objects.filter(status__in=Run.ACTIVE)}
    policies = {policy.campaign_id: policy for policy in Policy.objects.select_related("crontab")}
    return [
        CampaignRow(
            campaign,
            progress.of_campaign(campaign, user),
            snapshots.waiting(campaign),
            policies.get(campaign.pk),
            active.get(campaign.pk),
        )
        for campaign in Campaign.objects.exclude(status=Campaign.Status.CLOSED)
    ]


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """The side bar, for django-unfold's SIDEBAR["navigation"]."""
    index = reverse("admin:index")
    first = {"title": _("Overview"), "icon": "space_dashboard", "link": index, "active": request.path == index}
    groups: list[dict[str, Any]] = [{"title": "", "items": [first]}]
    for title, entries in NAVIGATION:
        items = [item for entry in entries if (item := _navigation_item(request, *entry))]
        groups.append({"title": title, "items": items})
    return groups


def _navigation_item(request: HttpRequest, name: str, title: Any, icon: str) -> dict[str, Any] | None:
    model_admin = admin.site._registry[apps.get_model(name)]
    if not model_admin.has_view_permission(request):
        return None
    meta = model_admin.model._meta
    link = reverse(f"admin:{meta.app_label}_{meta.model_name}_changelist")
    return {"title": title, "icon": icon, "link": link, "active": request.path.startswith(link)}
