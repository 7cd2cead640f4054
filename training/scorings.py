"""Score responses with reward models: a job in a process of its own, carried out by a worker as a run is.

The rows of `Scoring` are this module's. The steps of one attempt; dying between any two of them loses nothing, because what
was scored is in the trainer's cache:
 1. take the job: a new row, or one whose worker is gone (a conditional update on lease and attempt, the fencing token);
 2. write its folder: config.json, input.jsonl and the lease;
 3. start the process and watch it: renew the lease, pass on cancel and shutdown;
 4. read its exit code; when it is done, write the rewards onto the responses and choose among samples.
Runs come first: while one is queued or running, nothing is scored.
"""

import json
import logging
import math
import shutil
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from celery import current_app
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling import rewards
from labeling.models import Campaign, Response
from training import attempts, processes, reward_models, runs, supervisor
from training.models import RewardModel, Run, Scoring

log = logging.getLogger(__name__)

MAX_RESPONSES = 2000  # of one job: a run that comes meanwhile waits for no more
TICK_SECONDS = 0.3
REST = timedelta(minutes=10)  # after a failure, before it is tried again
NUDGE_EXPIRES_SECONDS = 30  # beat sends the same
EXIT_DONE, EXIT_FAILED = 0, 1
LOG_CHARS = 1000  # of the end of a log that says more than the process did
OUT_OF_USE = gettext_lazy("Its reward model is out of use.")
TASK = "training.tasks.score_by_reward_models"


def nudge() -> None:
    """Tells the workers that train to look, when there is something to score."""
    if any(is_wanted(one, timezone.now()) for one in _in_use()):
        current_app.send_task(TASK, queue="train", expires=NUDGE_EXPIRES_SECONDS)


def carry_out_all() -> None:
    """Scores what is wanted, campaign by campaign."""
    for reward_model in _in_use():
        if is_wanted(reward_model, timezone.now()):
            carry_out(reward_model)


def campaigns_with_reward_model() -> list[int]:
    """Campaigns whose responses are scored by a reward model, and so by nothing else."""
    return [one.campaign_id for one in _in_use()]


def _in_use() -> list[RewardModel]:
    campaigns = Campaign.objects.filter(status=Campaign.Status.ACTIVE, reward_models__is_active=True)
    found = (reward_models.in_use(campaign) for campaign in campaigns.order_by("pk"))
    return [one for one in found if one]


def is_wanted(reward_model: RewardModel, now: datetime) -> bool:
    """Whether responses wait for this reward model, no run comes first, and the last job did not just fail."""
    if Run.objects.filter(status__in=Run.ACTIVE).exists():
        return False
    last = reward_model.scorings.order_by("-id").first()
    if last and last.status == Scoring.Status.FAILED and last.finished_at and last.finished_at > now - REST:
        return False
    return rewards.wanted_from(reward_model.campaign, reward_model.sha256).exists()


def carry_out(reward_model: RewardModel) -> Scoring | None:
    """One job, from claim to stored rewards; None when another worker has it."""
    scoring = claim(reward_model, timezone.now())
    if scoring is None:
        return None
    try:
        code, why = _run_process(scoring, prepare(scoring))
        _settle(scoring, code, why)
    except OSError as error:  # the disk, or no process to be had
        log.exception("scoring %d failed", scoring.pk)
        end(scoring, Scoring.Status.FAILED, str(error))
    scoring.refresh_from_db()
    return scoring


def claim(reward_model: RewardModel, now: datetime) -> Scoring | None:
    """A new job, or the one whose worker is gone, with a new fencing token. None while a worker has it."""
    values = {"lease_until": runs.lease_end(now), "worker": processes.worker_name()[:120]}
    stale = reward_model.scorings.filter(status=Scoring.Status.RUNNING, lease_until__lt=now).first()
    if stale:
        _kill_orphan(stale)
        taken = Scoring.objects.filter(pk=stale.pk, attempt=stale.attempt, status=Scoring.Status.RUNNING)
        if stale.attempt >= settings.RUN_MAX_ATTEMPTS:
            end(
                stale,
                Scoring.Status.FAILED,
                _("Its process was killed again and again, most often for lack of memory."),
            )
            return None
        if not taken.update(attempt=F("attempt") + 1, trainer_pid=None, trainer_started=None, **values):
            return None
        stale.refresh_from_db()
        return stale
    try:
        with transaction.atomic():
            return Scoring.objects.create(reward_model=reward_model, **values)
    except IntegrityError:  # another has one
        return None


def prepare(scoring: Scoring) -> Path:
    """The job's folder, with what it is to score."""
    reward_model, folder = scoring.reward_model, scoring.folder
    folder.mkdir(parents=True, exist_ok=True)
    wanted = rewards.wanted_from(reward_model.campaign, reward_model.sha256).select_related("prompt")[:MAX_RESPONSES]
    lines = [_line(response) for response in wanted]
    (folder / "input.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "token": scoring.attempt,
        "model": str(settings.MODEL),
        "reward_model": str(reward_model.folder),
        "input": str(folder / "input.jsonl"),
        "cache": str(settings.ARTIFACTS_DIR / "cache" / "reference"),
        "threads": settings.TRAIN_THREADS,
        "nice": settings.TRAIN_NICE,
    }
    attempts.write_json(folder / "config.json", config)
    attempts.write_lease(folder, scoring.attempt, runs.lease_end(timezone.now()))
    _update(scoring, n_responses=len(lines))
    return folder


def _line(response: Response) -> dict[str, Any]:
    """As in a snapshot's edits.jsonl."""
    prompt = response.prompt
    return {
        "prompt_sha256": prompt.sha256,
        "messages": prompt.messages,
        "response": response.text,
        "response_id": response.pk,
    }


def _run_process(scoring: Scoring, folder: Path) -> tuple[int | None, str]:
    """(exit code, why it was asked to stop if it was); no code: it did not listen, or the job is another's."""
    process = processes.start_scorer(folder)
    why, asked_at = "", math.inf
    try:
        _update(scoring, trainer_pid=process.pid, trainer_started=processes.started_at(process.pid))
        while (code := process.poll()) is None:
            time.sleep(TICK_SECONDS)
            if not _renew(scoring, folder) or time.monotonic() - asked_at > processes.STOP_SECONDS:
                return None, why
            if not why and (why := _reason_to_stop(scoring)):
                processes.terminate(process)
                asked_at = time.monotonic()
        return code, why
    finally:
        processes.kill(process)


def _renew(scoring: Scoring, folder: Path) -> bool:
    """False when the job is another's."""
    until = runs.lease_end(timezone.now())
    attempts.write_lease(folder, scoring.attempt, until)
    return _update(scoring, lease_until=until)


def _reason_to_stop(scoring: Scoring) -> str:
    if supervisor.is_stopping():
        return _("Stopped with its worker.")
    if Run.objects.filter(status__in=Run.ACTIVE).exists():
        return _("A run comes first.")
    if not _is_in_use(scoring):
        return str(OUT_OF_USE)
    return _("Cancelled.") if _owned(scoring).filter(is_cancel_requested=True).exists() else ""


def _is_in_use(scoring: Scoring) -> bool:
    return RewardModel.objects.filter(pk=scoring.reward_model_id, is_active=True).exists()


def _settle(scoring: Scoring, code: int | None, why: str) -> None:
    if code == EXIT_DONE:
        if store(scoring, read_scores(scoring.folder)):
            end(scoring, Scoring.Status.SUCCEEDED)
        else:
            end(scoring, Scoring.Status.CANCELLED, str(OUT_OF_USE))
    elif code == EXIT_FAILED:
        said = attempts.read_error(scoring.folder) or attempts.read_log_tail(scoring.folder)[-LOG_CHARS:].strip()
        end(scoring, Scoring.Status.FAILED, said or _("Scoring failed without a word."))
    elif why:  # another job goes on from what the cache has
        end(scoring, Scoring.Status.CANCELLED, why)
    else:  # killed: this job is taken up again, RUN_MAX_ATTEMPTS times
        _update(scoring, lease_until=timezone.now())


def read_scores(folder: Path) -> dict[int, float]:
    """scores.jsonl by response, what is no finite number left out: it comes from another process."""
    found = {}
    for line in (folder / "scores.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
            pk, value = int(row["response_id"]), float(row["reward"])
        except (ValueError, KeyError, TypeError):
            continue
        if math.isfinite(value):
            found[pk] = value
    return found


def store(scoring: Scoring, scores: dict[int, float]) -> bool:
    """Writes the rewards onto labeling's rows; what was asked for and not scored is marked as done without. False, and none
    is written, where the reward model is out of use by now.
    """
    if not _is_in_use(scoring):
        return False
    asked = [json.loads(line)["response_id"] for line in (scoring.folder / "input.jsonl").read_text().splitlines()]
    values = {pk: scores.get(pk) for pk in asked}
    rewards.store(scoring.reward_model.campaign, scoring.reward_model.sha256, values)
    if _is_in_use(scoring):
        return True
    # It was put away in between, and its rewards cleared before the last were written.
    rewards.forget(scoring.reward_model.campaign, scoring.reward_model.sha256)
    return False


def request_cancel(scoring: Scoring) -> None:
    Scoring.objects.filter(pk=scoring.pk, status=Scoring.Status.RUNNING).update(is_cancel_requested=True)


def end(scoring: Scoring, status: str, error: str = "") -> bool:
    """Ends the job, whose files nobody needs any more; False when it is another's."""
    values = {"finished_at": timezone.now(), "lease_until": None, "trainer_pid": None}
    if not _update(scoring, status=status, error=error, **values):
        return False
    for folder in settings.SCORINGS_DIR.glob(f"{scoring.pk}-*"):  # of every attempt
        shutil.rmtree(folder, ignore_errors=True)
    return True


def end_forsaken(now: datetime) -> None:
    """Ends jobs whose worker is gone and whose reward model nobody uses: nobody takes them up again."""
    stale = Scoring.objects.filter(status=Scoring.Status.RUNNING, lease_until__lt=now, reward_model__is_active=False)
    for scoring in stale:
        _kill_orphan(scoring)
        end(scoring, Scoring.Status.CANCELLED, str(OUT_OF_USE))


def _kill_orphan(scoring: Scoring) -> None:
    if processes.is_on_this_host(scoring.worker) and scoring.trainer_pid and scoring.trainer_started:
        processes.kill_orphan(scoring.trainer_pid, scoring.trainer_started)


def _owned(scoring: Scoring) -> Any:
    return Scoring.objects.filter(pk=scoring.pk, attempt=scoring.attempt, status=Scoring.Status.RUNNING)


def _update(scoring: Scoring, **values: Any) -> bool:
    return bool(_owned(scoring).update(**values))
