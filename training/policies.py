"""When a campaign trains and publishes by itself: after every N judgments, and at the times of a crontab."""

import json
import logging

from django.db import transaction
from django_celery_beat.models import PeriodicTask

from serving import adapters, client
from serving.models import Adapter
from training import gates, runs, snapshots
from training.models import Policy, Run

log = logging.getLogger(__name__)

TASK = "training.tasks.train_on_schedule"


def is_due(policy: Policy) -> bool:
    """Whether enough judgments wait, and the campaign is idle.

    After a run that did not succeed as many judgments must have come since: a run that fails is not started over and
    over again on what it failed on.
    """
    if not policy.is_enabled or not policy.every_n:
        return False
    last = Run.objects.filter(campaign=policy.campaign_id).order_by("-id").first()
    if last and last.status in Run.ACTIVE:
        return False
    since = last.created_at if last and last.status != Run.Status.SUCCEEDED else None
    return snapshots.waiting(policy.campaign, since=since) >= policy.every_n


def check() -> list[Run]:
    """Starts every run that is due by count, and publishes what a lost worker had left unpublished."""
    enabled = Policy.objects.filter(is_enabled=True, campaign__status="active").select_related("campaign")
    started = [run for policy in enabled if is_due(policy) and (run := start(policy))]
    for policy in enabled:
        newest = Run.objects.filter(campaign=policy.campaign_id, status=Run.Status.SUCCEEDED).order_by("-id").first()
        if newest:
            publish_if_wanted(newest)
    return started


def start(policy: Policy) -> Run | None:
    """Queues a run of this policy if any judgment is new; None when none is, or a run is active."""
    if not policy.is_enabled or snapshots.waiting(policy.campaign) == 0:
        return None
    try:
        return runs.create(policy.campaign, policy.method, policy.params, trigger=Run.Trigger.POLICY)
    except runs.RunExists:
        return None


@transaction.atomic
def schedule(policy: Policy) -> None:
    """Makes, changes or removes the beat's entry for this policy's crontab."""
    if policy.crontab is None:
        if policy.periodic_task:
            policy.periodic_task.delete()
        Policy.objects.filter(pk=policy.pk).update(periodic_task=None)
        return
    policy.periodic_task, _is_made = PeriodicTask.objects.update_or_create(
        name=f"train campaign {policy.campaign.slug}",
        defaults={
            "task": TASK,
            "args": json.dumps([policy.pk]),
            "crontab": policy.crontab,
            "enabled": policy.is_enabled,
        },
    )
    Policy.objects.filter(pk=policy.pk).update(periodic_task=policy.periodic_task)


def unschedule(policy: Policy) -> None:
    """Removes the beat's entry; called before the policy is deleted."""
    if policy.periodic_task:
        policy.periodic_task.delete()


def publish_if_wanted(run: Run) -> bool:
    """Publishes a finished run's adapter if its campaign's policy says so, the gate passed, and nobody was faster.

    Nobody was faster: the alias still points at the version that the run was compared with. A second call does
    nothing; a rollback by a person is not undone, because from then on the adapter has a deployment event.
    """
    policy = Policy.objects.filter(campaign=run.campaign_id, is_enabled=True, publishes=True).first()
    if policy is None or run.adapter is None or not Run.objects.filter(pk=run.pk, evaluation__is_passed=True).exists():
        return False
    if (
        run.adapter.status == Adapter.Status.REJECTED
        or run.adapter.events.exists()
        or adapters.current() != run.incumbent
    ):
        return False
    try:
        gates.publish(run, actor=None, reason=f"policy of “{run.campaign}”: {run.evaluation.verdict}")
    except (client.EngineDown, client.EngineError, adapters.NotServable) as error:
        log.warning("run %d: the policy could not publish %s: %s", run.pk, run.adapter, error)
        return False
    return True
