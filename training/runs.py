"""Create, claim, heartbeat, cancel, finish, fail: the only writer of `Run.status`.

A worker owns a run while its fencing token is the row's: every claim adds one to it, and every write of an owner is a
conditional update on (id, token, running), so that an owner that was given up for dead writes nothing.

    queued ──claim──▶ running ──finish──▶ succeeded
       ▲  │               │ ├──fail────▶ failed
       │  └─────cancel────┼─┴──cancel──▶ cancelled
       └───────release────┘  (worker stopped, trainer killed, lease expired: resumed from its last checkpoint)
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from celery import current_app
from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import F, Q, Value
from django.db.models.functions import Coalesce
from django.utils.translation import gettext as _

from labeling.models import Campaign, Retraction
from serving.models import Adapter
from training import catalog, lineage, processes
from training.models import Metric, Run, Snapshot

log = logging.getLogger(__name__)

NUDGE_AFTER = timedelta(seconds=15)
NUDGE_EXPIRES_SECONDS = 60  # the sweeper sends another; a queue behind a long run does not fill up


class RunExists(Exception):
    """The campaign has an active run already."""


class NotRetryable(Exception):
    """The run is still active."""


@dataclass(frozen=True)
class Claim:
    """The right to carry out one attempt at a run."""

    run_id: int
    token: int
    attempt: int


def create(
    campaign: Campaign,
    method: str,
    params: dict[str, Any],
    *,
    user: User | None = None,
    trigger: str = Run.Trigger.MANUAL,
    retry_of: Run | None = None,
    without: Retraction | None = None,
) -> Run:
    """Queues a run. Raises catalog.ParameterError on bad parameters, RunExists while another run is active.

    A retry has the snapshot and the incumbent of the run that it repeats. Where judgments in it were retracted since, or it
    is to go `without` some, it freezes a new one, and meets the version that is current then.
    """
    repeated = retry_of if without is None and not _learned_retracted(retry_of) else None
    checked = catalog.to_dict(catalog.parse(method, params))
    try:
        with transaction.atomic():
            run = Run.objects.create(
                campaign=campaign,
                method=method,
                params=checked,
                requested_by=user,
                trigger=trigger,
                retry_of=retry_of,
                without=without,
                snapshot=repeated.snapshot if repeated else None,
                incumbent=repeated.incumbent if repeated else None,
            )
    except IntegrityError as error:
        if not Run.objects.filter(campaign=campaign, status__in=Run.ACTIVE).exists():
            raise
        raise RunExists(_("“%s” has a run already; wait for it or cancel it.") % campaign) from error
    transaction.on_commit(partial(nudge, run.pk), robust=True)
    return run


def retry(run: Run, user: User | None = None) -> Run:
    """The same judgments, less what was retracted since, and parameters once more, from the last checkpoint if that is of
    use. Raises RunExists.
    """
    if run.status in Run.ACTIVE:
        raise NotRetryable(_("Run %d is still active; cancel it first.") % run.pk)
    return create(run.campaign, run.method, run.params, user=user, trigger=Run.Trigger.RETRY, retry_of=run)


def nudge(run_id: int) -> None:
    """Tells the workers to look at a run. Nothing depends on its arrival: the sweeper sends it again."""
    current_app.send_task(
        "training.tasks.supervise", args=[run_id], queue=queue_of(run_id), expires=NUDGE_EXPIRES_SECONDS
    )


def queue_of(run_id: int) -> str:
    """The Celery queue of the workers that can carry it out: settings.TRAIN_QUEUES says which, by campaign or by method."""
    slug, method = Run.objects.values_list("campaign__slug", "method").get(pk=run_id)
    queues = settings.TRAIN_QUEUES
    return queues.get(slug) or queues.get(method) or "train"


def claim(run_id: int, worker: str, now: datetime) -> Claim | None:
    """Takes a queued run; None when another worker has it, or it is no longer wanted."""
    run = Run.objects.filter(pk=run_id, status=Run.Status.QUEUED).first()
    if run is None:
        return None
    taken = Claim(run.pk, run.fencing_token + 1, run.attempt + 1)
    n = Run.objects.filter(pk=run_id, status=Run.Status.QUEUED, fencing_token=run.fencing_token).update(
        status=Run.Status.RUNNING,
        fencing_token=taken.token,
        attempt=taken.attempt,
        worker=worker[:120],
        lease_until=lease_end(now),
        started_at=Coalesce(F("started_at"), Value(now)),
        phase="starting",
        step=0,
        seconds_left=None,
        trainer_pid=None,
        trainer_started=None,
    )
    return taken if n else None


def lease_end(now: datetime) -> datetime:
    """Until when a run is its worker's without another heartbeat."""
    return now + timedelta(seconds=settings.RUN_LEASE_SECONDS)


def heartbeat(claim: Claim, now: datetime, **progress: Any) -> bool:
    """Renews the lease and writes progress (phase, step, n_steps, seconds_left). False: the run is no longer ours."""
    return _update(claim, lease_until=lease_end(now), **progress)


def is_cancel_requested(claim: Claim) -> bool:
    return _owned(claim).filter(is_cancel_requested=True).exists()


def attach_snapshot(claim: Claim, snapshot: Snapshot, incumbent: Adapter, params: dict[str, Any]) -> bool:
    """Records what the run learns from, how, and what it is compared with; kept by later attempts. What earlier ones
    measured on other judgments is dropped: the curves would show two runs as one.
    """
    with transaction.atomic():
        if not _update(claim, snapshot=snapshot, incumbent=incumbent, params=params):
            return False
        Metric.objects.filter(run_id=claim.run_id).delete()
    return True


def attach_trainer(claim: Claim, pid: int, started: float | None) -> bool:
    return _update(claim, trainer_pid=pid, trainer_started=started)


def add_metrics(claim: Claim, rows: list[dict[str, Any]], now: datetime) -> bool:
    """Stores lines of metrics.jsonl; a resumed attempt overwrites the steps that it repeats."""
    latest = {row["step"]: row for row in rows}
    metrics = [Metric(run_id=claim.run_id, step=step, values=values) for step, values in latest.items()]
    with transaction.atomic():
        if not heartbeat(claim, now):  # locks the row: no newer owner can come between
            return False
        Metric.objects.bulk_create(
            metrics, update_conflicts=True, update_fields=["values"], unique_fields=["run", "step"], batch_size=400
        )
    return True


def finish(claim: Claim, adapter: Adapter | None, timings: dict[str, float], now: datetime) -> bool:
    return _end(claim, Run.Status.SUCCEEDED, now, adapter=adapter, timings=timings, phase="done", seconds_left=0.0)


def fail(claim: Claim, message: str, now: datetime) -> bool:
    return _end(claim, Run.Status.FAILED, now, error=message, phase="failed", seconds_left=None)


def cancel(claim: Claim, now: datetime) -> bool:
    """Ends a run whose cancellation was asked for, once its trainer is gone."""
    return _end(claim, Run.Status.CANCELLED, now, phase="cancelled", seconds_left=None)


def add_timing(run: Run, stage: str, seconds: float) -> None:
    """Adds the time of a stage that comes after the end, such as publishing."""
    run.timings = {**run.timings, stage: round(seconds, 3)}
    Run.objects.filter(pk=run.pk).update(timings=run.timings)


def request_cancel(run: Run, now: datetime) -> bool:
    """Cancels a queued run at once and asks a running one to stop. False when it had ended already."""
    queued = Run.objects.filter(pk=run.pk, status=Run.Status.QUEUED)
    if queued.update(status=Run.Status.CANCELLED, phase="cancelled", finished_at=now, seconds_left=None):
        return True
    return bool(Run.objects.filter(pk=run.pk, status=Run.Status.RUNNING).update(is_cancel_requested=True))


def release_for_resume(claim: Claim, now: datetime, *, is_lost: bool = False) -> bool:
    """Gives the run back to the queue, to go on from its last checkpoint; False when it is no longer ours.

    `is_lost`: the attempt ended without a word (killed, crashed); RUN_MAX_ATTEMPTS of those fail the run.
    """
    run = _owned(claim).first()
    if run is None:
        return False
    if run.is_cancel_requested:
        return cancel(claim, now)
    n_lost = run.n_lost + is_lost
    if n_lost >= settings.RUN_MAX_ATTEMPTS:
        return _update(claim, n_lost=n_lost) and fail(claim, _lost_too_often(n_lost), now)
    if not _update(
        claim, status=Run.Status.QUEUED, n_lost=n_lost, phase="waiting to resume", lease_until=now, seconds_left=None
    ):
        return False
    transaction.on_commit(partial(nudge, claim.run_id), robust=True)
    return True


def sweep(now: datetime) -> None:
    """Takes runs back from workers that are gone, and tells the workers again of runs that nobody claimed."""
    for run in Run.objects.filter(status=Run.Status.RUNNING, lease_until__lt=now):
        _take_back(run, now)
    last_sign = Coalesce("lease_until", "created_at")
    for pk in (
        Run.objects.filter(status=Run.Status.QUEUED)
        .alias(t=last_sign)
        .filter(t__lt=now - NUDGE_AFTER)
        .values_list("pk", flat=True)
    ):
        # Of several sweepers one sends the message, and it is not sent again for NUDGE_AFTER.
        stale = Q(lease_until__isnull=True) | Q(lease_until__lt=now - NUDGE_AFTER)
        if Run.objects.filter(stale, pk=pk, status=Run.Status.QUEUED).update(lease_until=now):
            nudge(pk)


def _take_back(run: Run, now: datetime) -> None:
    taken = Claim(run.pk, run.fencing_token, run.attempt)
    with transaction.atomic():
        # Locks the row if it is stale still: a late heartbeat comes either before this, or finds the run taken.
        if not _owned(taken).filter(lease_until__lt=now).update(lease_until=now):
            return
        release_for_resume(taken, now, is_lost=True)
    log.warning("run %d: no sign of its worker %s; taken back", run.pk, run.worker)
    if processes.is_on_this_host(run.worker) and run.trainer_pid and run.trainer_started:
        processes.kill_orphan(run.trainer_pid, run.trainer_started)


def _learned_retracted(run: Run | None) -> bool:
    return run is not None and run.snapshot is not None and lineage.holds_retracted(run.snapshot)


def _owned(claim: Claim) -> Any:
    return Run.objects.filter(pk=claim.run_id, fencing_token=claim.token, status=Run.Status.RUNNING)


def _update(claim: Claim, **values: Any) -> bool:
    return bool(_owned(claim).update(**values))


def _end(claim: Claim, status: Run.Status, now: datetime, **values: Any) -> bool:
    return _update(
        claim, status=status, finished_at=now, lease_until=None, trainer_pid=None, trainer_started=None, **values
    )


def _lost_too_often(n_lost: int) -> str:
    return _(
        "The trainer or its worker was killed %(n)d times in the middle of this run, most often for lack of memory. "
        "Lower batch_pairs or max_tokens, or give the machine more memory, then retry."
    ) % {"n": n_lost}
