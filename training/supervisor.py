"""Carry a claimed run through: freeze, train in a subprocess, register, judge, publish.

The steps of one attempt, in order; dying between any two of them loses nothing:
 1. claim the row (a conditional update; whoever comes second stops here);
 2. freeze the judgments, unless an earlier attempt did and none was retracted since, and write the attempt's folder;
 3. start the trainer and watch it: renew the lease, copy metrics and progress, pass on cancel and shutdown;
 4. read its exit code; only "done" goes on, the rest ends or requeues the run;
 5. register the adapter (the same content is registered once) and evaluate it (one row per run);
 6. finish the run, drop its checkpoints, and only then publish, if the campaign's policy says so (done again by
    check_policies if lost).
"""

import logging
import math
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from django.conf import settings
from django.db import InterfaceError, OperationalError, close_old_connections, connection
from django.utils import timezone
from django.utils.translation import gettext as _

from serving import adapters, versions
from serving.models import Adapter
from training import (
    attempts,
    catalog,
    gates,
    lineage,
    news,
    policies,
    processes,
    retractions,
    reward_models,
    runs,
    snapshots,
)
from training.models import Run, Snapshot

log = logging.getLogger(__name__)
T = TypeVar("T")

TICK_SECONDS = 0.3
BEAT_SECONDS = 1.0
EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_LEASE_LOST = 0, 1, 3, 4

# Keys of Run.timings in the order of events; no two overlap. "startup" is what the trainer does before its first pass:
# imports, model, tokens. "publish" comes after the end.
STAGES = (
    "snapshot", "startup", "reference", "training", "evaluation", "save", "register", "gate", "publish",
)  # fmt: skip

# Set once, when this worker process shuts down: every run in it gives its row back within STOP_SECONDS.
_stopping = threading.Event()


class Outcome(Enum):
    """Why the trainer is no longer watched."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    STOPPED = "the worker shuts down"
    KILLED = "killed, or lease lost: resume"
    NOT_OURS = "another worker has the run"


@dataclass
class Attempt:
    """One attempt and what its supervisor remembers."""

    claim: runs.Claim
    folder: Path
    process: subprocess.Popen[bytes]
    offset: int = 0  # bytes of metrics.jsonl that are stored
    beaten_at: float = field(default_factory=time.monotonic)
    asked_at: float | None = None  # when SIGTERM was sent
    why: Outcome | None = None  # why it was sent


def stop() -> None:
    """The worker shuts down: give every run back."""
    _stopping.set()


def resume() -> None:
    """The worker starts: take runs (again)."""
    _stopping.clear()


def is_stopping() -> bool:
    return _stopping.is_set()


def supervise(run_id: int) -> None:
    """Claims the run and carries it through; returns at once when there is nothing to claim."""
    if _stopping.is_set():
        return
    claim = runs.claim(run_id, processes.worker_name(), timezone.now())
    if claim is None:
        return
    log.info("run %d: attempt %d", claim.run_id, claim.attempt)
    try:
        _carry_out(claim)
    except (snapshots.NothingToTrain, adapters.InvalidAdapter, gates.BrokenEvaluation) as error:
        runs.fail(claim, str(error), timezone.now())
    except (OperationalError, InterfaceError):
        # The work lies in files: the next attempt goes on from there. It counts as lost, so that a database that never
        # comes to itself ends the run some day.
        log.warning("run %d: the database failed in attempt %d", claim.run_id, claim.attempt, exc_info=True)
        close_old_connections()
        with suppress(OperationalError, InterfaceError):  # else the lease runs out, and the sweeper does it
            runs.release_for_resume(claim, timezone.now(), is_lost=True)
    except Exception as error:
        log.exception("run %d: attempt %d failed", claim.run_id, claim.attempt)
        runs.fail(claim, f"{type(error).__name__}: {error}", timezone.now())


def _carry_out(claim: runs.Claim) -> None:
    timings: dict[str, float] = {}
    run = timed(timings, "snapshot", lambda: _with_snapshot(claim))
    if run is None:
        return
    folder, watched = attempts.finished(run), 0.0
    if folder is not None:
        runs.add_metrics(claim, attempts.metrics_so_far(run, math.inf), timezone.now())
    else:
        folder = attempts.prepare(run, claim.attempt, claim.token, runs.lease_end(timezone.now()))
        runs.add_metrics(claim, attempts.metrics_so_far(run, attempts.resumed_step(folder)), timezone.now())
        started = time.monotonic()
        if not _settle(claim, folder, _train(claim, folder)):
            return
        watched = time.monotonic() - started
    _conclude(claim, run, folder, timings | _trainer_timings(folder, watched))


def _with_snapshot(claim: runs.Claim) -> Run | None:
    """The run with its snapshot and incumbent, which the first attempt fixes for all; a later one fixes them anew where
    judgments were retracted since. None: no longer ours.
    """
    run = Run.objects.select_related("campaign", "snapshot", "incumbent", "retry_of").get(pk=claim.run_id)
    incumbent = run.incumbent or adapters.current()
    params = retractions.start_clean(run.params, incumbent)
    snapshot = None if run.snapshot is None or lineage.holds_retracted(run.snapshot) else run.snapshot
    if snapshot is None or params != run.params:
        log.info("run %d: fixes what it learns from; it begins from: %s", run.pk, params.get("start"))
        snapshot = snapshot or _freeze(claim, run, incumbent)
        if not runs.attach_snapshot(claim, snapshot, incumbent, params):
            return None
        run.snapshot, run.incumbent, run.params = snapshot, incumbent, params
    return run if runs.heartbeat(claim, timezone.now(), phase="starting the trainer") else None


def _freeze(claim: runs.Claim, run: Run, incumbent: Adapter) -> Snapshot:
    runs.heartbeat(claim, timezone.now(), phase="freezing judgments")
    with _beating(claim):
        return snapshots.freeze(run.campaign, incumbent, catalog.get(run.method).source)


@contextmanager
def _beating(claim: runs.Claim) -> Iterator[None]:
    """Renews the lease meanwhile, from a thread: for a step that can take longer than a lease lasts."""
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(settings.RUN_LEASE_SECONDS / 3):
            try:
                runs.heartbeat(claim, timezone.now())
            except (OperationalError, InterfaceError):
                log.warning("run %d: the database does not answer", claim.run_id, exc_info=True)
            finally:
                connection.close()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _train(claim: runs.Claim, folder: Path) -> Outcome:
    attempt = Attempt(claim, folder, processes.start_trainer(folder))
    try:
        pid = attempt.process.pid
        runs.attach_trainer(claim, pid, processes.started_at(pid))
        while (outcome := _watch(attempt)) is None:
            time.sleep(TICK_SECONDS)
        return outcome
    finally:
        processes.kill(attempt.process)  # its children too; nothing of a trainer outlives its supervisor


def _watch(attempt: Attempt) -> Outcome | None:
    """One look at the trainer; an outcome ends the watch."""
    code = attempt.process.poll()
    try:
        if not _report(attempt, is_last=code is not None):
            return Outcome.NOT_OURS
        if code is not None:
            return _outcome_of(code, attempt.why)
        if attempt.why is None:
            attempt.why = _reason_to_stop(attempt)
    except (OperationalError, InterfaceError):
        # A database that is busy or restarting is no reason to throw work away, but the lease runs on.
        if time.monotonic() - attempt.beaten_at > settings.RUN_LEASE_SECONDS:
            return Outcome.NOT_OURS
        log.warning("run %d: the database does not answer", attempt.claim.run_id, exc_info=True)
        close_old_connections()
        return None
    return _press(attempt)


def _report(attempt: Attempt, *, is_last: bool) -> bool:
    """Renews the lease and stores what the trainer wrote since; False when the run is no longer ours."""
    now = timezone.now()
    rows, offset = attempts.read_metrics(attempt.folder, attempt.offset)
    if rows:
        if not runs.add_metrics(attempt.claim, rows, now):
            return False
        attempt.offset = offset
    if is_last or time.monotonic() - attempt.beaten_at >= BEAT_SECONDS:
        status = attempts.read_status(attempt.folder)
        progress: dict[str, Any] = {"step": status.step, "n_steps": status.n_steps, "seconds_left": status.seconds_left}
        if status.system:
            progress["system"] = status.system
        if not runs.heartbeat(attempt.claim, now, phase=_phase(attempt, status), **progress):
            return False
        attempts.write_lease(attempt.folder, attempt.claim.token, runs.lease_end(now))
        attempt.beaten_at = time.monotonic()
    return True


def _phase(attempt: Attempt, status: attempts.Status) -> str:
    if attempt.why is not None:
        return "stopping"
    return status.phase or "starting the trainer"


def _reason_to_stop(attempt: Attempt) -> Outcome | None:
    if _stopping.is_set():
        return Outcome.STOPPED
    return Outcome.CANCELLED if runs.is_cancel_requested(attempt.claim) else None


def _press(attempt: Attempt) -> Outcome | None:
    """Asks the trainer to end if there is a reason, and ends it when it takes too long."""
    if attempt.why is None:
        return None
    if attempt.asked_at is None:
        processes.terminate(attempt.process)
        attempt.asked_at = time.monotonic()
    elif time.monotonic() - attempt.asked_at > processes.STOP_SECONDS:
        return attempt.why
    return None


def _outcome_of(code: int, why: Outcome | None) -> Outcome:
    """What an exit code means; `why` is the reason for which the trainer had been asked to end, if it was."""
    if code == EXIT_DONE:
        return Outcome.DONE
    if code == EXIT_FAILED:
        return Outcome.FAILED
    if why is not None:
        return why
    # SIGTERM from elsewhere (a shutdown that reached the trainer first) is a stop, all else is a loss.
    return Outcome.STOPPED if code in (EXIT_STOPPED, -signal.SIGTERM) else Outcome.KILLED


def _settle(claim: runs.Claim, folder: Path, outcome: Outcome) -> bool:
    """Ends or requeues the run as its outcome says. True: the trainer is done, go on."""
    now = timezone.now()
    log.info("run %d: the trainer is through: %s", claim.run_id, outcome.value)
    if outcome is Outcome.FAILED:
        runs.fail(claim, attempts.read_error(folder) or _("The trainer failed; its log says why."), now)
    elif outcome is Outcome.CANCELLED:
        runs.cancel(claim, now)
    elif outcome in (Outcome.STOPPED, Outcome.KILLED):
        runs.release_for_resume(claim, now, is_lost=outcome is Outcome.KILLED)
    return outcome is Outcome.DONE


def _conclude(claim: runs.Claim, run: Run, folder: Path, timings: dict[str, float]) -> None:
    """Steps 5 and 6."""
    if runs.is_cancel_requested(claim):
        runs.cancel(claim, timezone.now())
        return
    if not runs.heartbeat(claim, timezone.now(), phase="registering"):
        return
    with _beating(claim):
        adapter = REGISTER[catalog.get(run.method).output](claim, run, folder, timings)
    if not runs.finish(claim, adapter, timings, timezone.now()):
        return
    attempts.delete_checkpoints(run)
    run.refresh_from_db()
    policies.publish_if_wanted(run)


def _register_adapter(claim: runs.Claim, run: Run, folder: Path, timings: dict[str, float]) -> Adapter | None:
    adapter = timed(timings, "register", lambda: adapters.register(folder / "adapter", notes=news.describe(run)))
    if runs.heartbeat(claim, timezone.now(), phase="evaluating"):
        timed(timings, "gate", lambda: gates.evaluate(run, adapter, folder))
        versions.set_notes(adapter, news.describe(run))
    return adapter


def _register_reward_model(claim: runs.Claim, run: Run, folder: Path, timings: dict[str, float]) -> Adapter | None:
    """It answers nobody: there is no version to publish."""
    timed(timings, "register", lambda: reward_models.register(run, folder))
    return None


# By what the method leaves behind: Method.output.
REGISTER = {"adapter": _register_adapter, "reward_model": _register_reward_model}


def _trainer_timings(folder: Path, watched: float) -> dict[str, float]:
    """The trainer's own stages, and as start-up what is left of the `watched` seconds of its life."""
    raw: dict[str, Any] = (attempts.read_json(folder / "result.json") or {}).get("seconds") or {}
    known = {"reference": "reference", "train": "training", "evaluate": "evaluation", "save": "save"}
    stages = {ours: round(float(raw.get(theirs) or 0), 3) for theirs, ours in known.items()}
    return {"startup": round(max(watched - sum(stages.values()), 0), 3), **stages}


def timed(timings: dict[str, float], stage: str, step: Callable[[], T]) -> T:
    """Calls `step` and adds its seconds to `timings`."""
    started = time.monotonic()
    result = step()
    timings[stage] = round(time.monotonic() - started, 3)
    return result
