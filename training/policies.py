"""When a campaign trains and publishes by itself: after every N judgments, and at the times of a crontab."""

import json
import logging
from typing import Any

from django.db import transaction
from django_celery_beat.models import PeriodicTask

from labeling.models import Campaign
from serving import adapters, client
from serving.models import Adapter
from training import catalog, gates, lineage, runs, snapshots
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
    ours = Run.objects.filter(campaign=policy.campaign_id)
    if ours.filter(status__in=Run.ACTIVE).exists():
        return False
    last = ours.exclude(method__in=catalog.others(policy.method)).order_by("-id").first()
    since = last.created_at if last and last.status != Run.Status.SUCCEEDED else None
    return snapshots.waiting(policy.campaign, method=policy.method, since=since) >= policy.every_n


def check() -> list[Run]:
    """Starts every run that is due by count, and publishes what a lost worker had left unpublished."""
    forget_orphans()
    started = []
    for policy in Policy.objects.filter(is_enabled=True, campaign__status="active").select_related("campaign"):
        if is_due(policy) and (run := start(policy)):
            started.append(run)
        done = Run.objects.filter(campaign=policy.campaign_id, status=Run.Status.SUCCEEDED, adapter__isnull=False)
        if newest := done.order_by("-id").first():
            publish_if_wanted(newest)
    return started


def start(policy: Policy) -> Run | None:
    """Queues a run of this policy if any judgment is new; None when none is, a run is active, or the campaign is paused or
    closed. Parameters that the catalog refuses (they were valid once) are logged and hold up no other policy.
    """
    if not policy.is_enabled or policy.campaign.status != Campaign.Status.ACTIVE:
        return None
    if snapshots.waiting(policy.campaign, method=policy.method) == 0:
        return None
    try:
        return runs.create(policy.campaign, policy.method, policy.params, trigger=Run.Trigger.POLICY)
    except runs.RunExists:
        return None
    except catalog.ParameterError as error:
        log.error("the policy of “%s” cannot train: %s", policy.campaign, error)
        return None


@transaction.atomic
def schedule(policy: Policy) -> None:
    """Makes, changes or removes the beat's entry for this policy's crontab."""
    if policy.crontab is None:
        if policy.periodic_task:
            policy.periodic_task.delete()
        Policy.objects.filter(pk=policy.pk).update(periodic_task=None)
        return
    # By number: the campaign's slug may change, and so may, in the admin, the entry's own name.
    known: dict[str, Any] = (
        {"pk": policy.periodic_task_id} if policy.periodic_task_id else {"name": f"policy {policy.pk}"}
    )
    policy.periodic_task, _is_made = PeriodicTask.objects.update_or_create(
        **known,
        defaults={
            "task": TASK,
            "args": json.dumps([policy.pk]),
            "crontab": policy.crontab,
            "enabled": policy.is_enabled,
            "description": f"Trains “{policy.campaign}”.",
        },
    )
    Policy.objects.filter(pk=policy.pk).update(periodic_task=policy.periodic_task)


def unschedule(policy: Policy) -> None:
    """Removes the beat's entry; called before the policy is deleted."""
    if policy.periodic_task:
        policy.periodic_task.delete()


def forget_orphans() -> None:
    """Removes the beat's entries of policies that are gone: a campaign that is deleted takes its policy along by the
    database, and nothing is called then.
    """
    known = set(Policy.objects.values_list("pk", flat=True))
    for entry in PeriodicTask.objects.filter(task=TASK):
        if _policy_of(entry) not in known:
            entry.delete()


def _policy_of(entry: PeriodicTask) -> int | None:
    """The policy that a beat's entry starts; None for arguments that are none of ours."""
    try:
        args = json.loads(entry.args)
    except ValueError:
        return None
    return args[0] if isinstance(args, list) and len(args) == 1 and isinstance(args[0], int) else None


def publish_if_wanted(run: Run) -> bool:
    """Publishes a finished run's adapter if its campaign's policy says so, the gate passed, and nobody was faster.

    Nobody was faster: the alias still points at the version that the run was compared with. A second call does
    nothing; a rollback by a person is not undone, because from then on the adapter has an event of an alias. What ended
    before the policy was last changed is not published either: whoever switches it on means what is to come. Nor is a
    version that learned from a judgment that was taken back since, by itself or by what it goes on from: that is for a person
    to decide. What the version in chat had learned from does not matter: runs that begin after a retraction go on from nothing
    that it touched (`retractions.start_clean`), and a clean version in place of a tainted one is the cure.
    """
    policy = Policy.objects.filter(campaign=run.campaign_id, is_enabled=True, publishes=True).first()
    if policy is None or run.finished_at is None or run.finished_at < policy.updated_at:
        return False
    if run.adapter is None or not Run.objects.filter(pk=run.pk, evaluation__is_passed=True).exists():
        return False
    deployment = adapters.deployment()
    if (
        run.adapter.status == Adapter.Status.REJECTED
        or run.adapter.events.exclude(alias="").exists()
        or deployment.adapter != run.incumbent
    ):
        return False
    if lineage.learned_retracted(run.adapter):
        log.warning("run %d: the policy does not publish what learned from a judgment that was taken back", run.pk)
        return False
    reason = f"policy of “{run.campaign}”: {run.evaluation.verdict}"
    try:
        # While it is loaded and tested a person may publish another: theirs stays.
        gates.publish(run, actor=None, reason=reason, expected_generation=deployment.generation)
    except (client.EngineDown, client.EngineError, adapters.NotServable, adapters.AliasMoved) as error:
        log.warning("run %d: the policy could not publish %s: %s", run.pk, run.adapter, error)
        return False
    return True
