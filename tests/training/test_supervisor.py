"""Supervision: whatever a trainer does, the row tells it, and no trainer outlives its supervisor.

Most tests start a short script in the trainer's place, as a process of its own, to see every way in which a trainer
can end. That the real one keeps the same contract is tested in test_supervisor_with_trainer.py.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.conf import settings
from django.db import OperationalError, connection
from django.utils import timezone
from pytest_django import Settings

from labeling import retractions
from labeling.models import Judgment
from serving import adapters
from serving.models import Adapter, Deployment
from tests.training.rows import add_annotator, add_campaign, add_judged
from training import attempts, processes, runs, supervisor
from training.models import Run

pytestmark = pytest.mark.django_db(transaction=True)

Execute = Callable[[str, Any, bool, dict[str, Any]], Any]
START = "import json, os, signal, sys, time; from pathlib import Path; folder = Path(sys.argv[1]); "
WAIT = START + "signal.signal(signal.SIGTERM, lambda *_: os._exit(3)); (folder / 'ready').touch(); time.sleep(600)"
DEAF = START + "signal.signal(signal.SIGTERM, signal.SIG_IGN); (folder / 'ready').touch(); time.sleep(600)"
WORDY = (
    START + '(folder / \'metrics.jsonl\').write_text(\'{"step": 1, "loss": 0.7}\\n{"step": 2, "loss": 0.6}\\n\');'
    "(folder / 'status.json').write_text(json.dumps({'phase': 'Training', 'step': 2, 'n_steps': 9, 'seconds_left': 4, "
    "'rss_mb': 812, 'cpu_percent': 187}));"
    "print('hello from the trainer', flush=True); sys.exit(1)"
)


@pytest.fixture(autouse=True)
def _model(tmp_path: Path, settings: Settings) -> Iterator[None]:
    """The identity of a base model, which is all that the control plane asks of it here."""
    (tmp_path / "alignapp-model.json").write_text(json.dumps({"sha256": "b" * 64, "chat_template_sha256": "c" * 64}))
    settings.MODEL = str(tmp_path)
    supervisor.resume()
    yield
    supervisor.resume()


@pytest.fixture
def run() -> Run:
    campaign = add_campaign()
    add_judged(campaign, 4)
    return runs.create(campaign, "dpo", {})


def in_place_of_trainer(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(processes, "TRAINER", [sys.executable, "-c", code])


def supervise(run: Run) -> Run:
    supervisor.supervise(run.pk)
    run.refresh_from_db()
    return run


def meanwhile(run: Run, act: Callable[[], object]) -> threading.Thread:
    """Does something once the trainer's stand-in is ready to be told to stop."""

    def body() -> None:
        deadline = time.monotonic() + 60
        while not list(run.folder.glob("attempt-*/ready")) and time.monotonic() < deadline:
            time.sleep(0.02)
        act()
        connection.close()

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def is_trainer_gone(run: Run) -> bool:
    folder = str(attempts.folder(run.pk, 1))
    return not any(folder in (p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))


@pytest.mark.parametrize(
    ("code", "status", "n_lost"),
    [
        ("sys.exit(3)", Run.Status.QUEUED, 0),
        ("sys.exit(4)", Run.Status.QUEUED, 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", Run.Status.QUEUED, 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", Run.Status.QUEUED, 0),
        ("sys.exit(1)", Run.Status.FAILED, 0),
    ],
)
def test_it_reads_how_the_trainer_ended(
    run: Run, monkeypatch: pytest.MonkeyPatch, code: str, status: str, n_lost: int
) -> None:
    in_place_of_trainer(monkeypatch, START + code)
    supervise(run)
    assert (run.status, run.n_lost, run.attempt) == (status, n_lost, 1)


def test_it_fails_with_the_trainers_own_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "(folder / 'error.json').write_text(json.dumps({'message': 'The loss is no number.'})); sys.exit(1)"
    in_place_of_trainer(monkeypatch, START + code)
    assert supervise(run).error == "The loss is no number."


def test_it_stores_all_that_the_trainer_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, WORDY)
    supervise(run)
    assert [metric.values for metric in run.metrics.all()] == [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}]
    assert (run.step, run.n_steps, run.system) == (2, 9, {"rss_mb": 812.0, "cpu_percent": 187.0})
    assert attempts.read_log_tail(attempts.folder(run.pk, 1)) == "hello from the trainer\n"


def test_it_fails_when_done_means_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, START + "sys.exit(0)")
    assert supervise(run).status == Run.Status.FAILED
    assert run.error


def test_it_fails_in_words_without_judgments(monkeypatch: pytest.MonkeyPatch) -> None:
    run = supervise(runs.create(add_campaign(), "dpo", {}))
    assert run.status == Run.Status.FAILED
    assert run.error.startswith("There are 0 usable pairs")
    assert not run.folder.exists()


def test_it_cancels(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, WAIT)
    thread = meanwhile(run, lambda: runs.request_cancel(run, timezone.now()))
    supervise(run)
    thread.join()
    assert (run.status, run.phase) == (Run.Status.CANCELLED, "cancelled")
    assert is_trainer_gone(run)


def test_it_ends_a_trainer_that_does_not_listen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, DEAF)
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.5)
    thread = meanwhile(run, lambda: runs.request_cancel(run, timezone.now()))
    supervise(run)
    thread.join()
    assert run.status == Run.Status.CANCELLED
    assert is_trainer_gone(run)


def test_it_gives_the_run_back_when_the_worker_stops(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, WAIT)
    thread = meanwhile(run, supervisor.stop)
    supervise(run)
    thread.join()
    assert (run.status, run.n_lost) == (Run.Status.QUEUED, 0)
    assert is_trainer_gone(run)
    assert supervise(run).attempt == 1  # a worker that stops takes no run


def test_it_stops_writing_when_the_run_was_given_to_another(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, WAIT)

    def take_away() -> None:
        later = timezone.now() + timedelta(seconds=settings.RUN_LEASE_SECONDS + 5)
        Run.objects.filter(pk=run.pk).update(worker="another-host:1")
        runs.sweep(later)
        assert runs.claim(run.pk, "another-host:2", later)

    thread = meanwhile(run, take_away)
    supervise(run)
    thread.join()
    assert (run.status, run.worker, run.attempt) == (Run.Status.RUNNING, "another-host:2", 2)
    assert is_trainer_gone(run)


def test_it_renews_the_lease_of_row_and_trainer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, WAIT)
    monkeypatch.setattr(supervisor, "BEAT_SECONDS", 0.1)
    seen: list[tuple[object, ...]] = []

    def look_twice() -> None:
        for _ in range(2):
            row = Run.objects.get(pk=run.pk)
            lease = attempts.read_json(attempts.folder(run.pk, 1) / "lease.json") or {}
            seen.append((row.lease_until, lease["until"], lease["token"], row.trainer_pid))
            time.sleep(1.5)
        runs.request_cancel(run, timezone.now())

    thread = meanwhile(run, look_twice)
    supervise(run)
    thread.join()
    (row_first, file_first, token, pid), (row_second, file_second, _, _) = seen
    assert row_second > row_first  # type: ignore[operator]
    assert file_second > file_first  # type: ignore[operator]
    assert (token, run.fencing_token) == (1, 1)
    assert pid


def test_it_supervises_no_run_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, START + "sys.exit(1)")
    supervise(run)
    before = Run.objects.values().get(pk=run.pk)
    supervisor.supervise(run.pk)
    supervisor.supervise(10**6)
    assert Run.objects.values().get(pk=run.pk) == before


def test_it_records_what_nobody_foresaw(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TRAINER", ["/nonexistent/trainer"])
    assert supervise(run).status == Run.Status.FAILED
    assert "/nonexistent/trainer" in run.error


def test_it_gives_the_run_back_when_the_database_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, START + "sys.exit(3)")
    failures = iter([OperationalError("the database restarts")])

    def fail_once(execute: Execute, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if sql.startswith('INSERT INTO "training_snapshot"') and (error := next(failures, None)):
            raise error
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail_once):
        assert (supervise(run).status, run.n_lost, run.error) == (Run.Status.QUEUED, 1, "")
        assert (supervise(run).status, run.attempt) == (Run.Status.QUEUED, 2)
    assert run.snapshot


def test_it_keeps_its_lease_while_judgments_are_frozen(
    run: Run, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    in_place_of_trainer(monkeypatch, START + "sys.exit(3)")
    settings.RUN_LEASE_SECONDS = 1
    is_held: list[bool] = []

    def take_long(execute: Execute, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if sql.startswith("SELECT") and 'FROM "labeling_judgment"' in sql and not is_held:
            is_held.append(False)
            time.sleep(1.5)
            is_held[0] = Run.objects.filter(pk=run.pk, lease_until__gt=timezone.now()).exists()
        return execute(sql, params, many, context)

    with connection.execute_wrapper(take_long):
        supervise(run)
    assert is_held == [True]


def test_it_stores_what_an_attempt_said_whose_supervisor_died(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, START + "sys.exit(3)")
    supervise(run)
    lines = "".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(1, 6))
    (attempts.folder(run.pk, 1) / "metrics.jsonl").write_text(lines)
    (attempts.folder(run.pk, 1) / "checkpoint-4").mkdir()
    supervise(run)
    assert list(run.metrics.values_list("step", flat=True)) == [1, 2, 3, 4]  # the fifth is to be taken again


def retract_one(run: Run) -> Judgment:
    assert run.snapshot
    row = run.snapshot.judgments.order_by("pk")[0]
    retractions.retract_judgment(row, add_annotator(), "Answered at random.", timezone.now())
    return row


def test_it_learns_nothing_that_was_retracted_between_two_attempts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, WORDY.replace("sys.exit(1)", "sys.exit(3)"))
    add_judged(run.campaign, 1)
    before = supervise(run).snapshot
    (attempts.folder(run.pk, 1) / "checkpoint-2").mkdir()
    row = retract_one(run)
    in_place_of_trainer(monkeypatch, START + "sys.exit(3)")
    supervise(run)
    assert run.snapshot not in (None, before)
    assert run.snapshot
    assert not run.snapshot.judgments.filter(pk=row.pk).exists()
    config = attempts.read_json(attempts.folder(run.pk, 2) / "config.json") or {}
    assert (config["snapshot_sha256"], config["resume"]) == (run.snapshot.sha256, None)
    assert not run.metrics.exists()  # they were measured on what it no longer learns from
    after = run.snapshot
    assert supervise(run).snapshot == after  # once is enough


def test_it_learns_nothing_that_was_retracted_before_a_retry(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_trainer(monkeypatch, START + "sys.exit(1)")
    add_judged(run.campaign, 1)
    supervise(run)
    (attempts.folder(run.pk, 1) / "checkpoint-2").mkdir()
    assert runs.retry(run).snapshot == run.snapshot
    again = Run.objects.get(retry_of=run)
    row = retract_one(run)  # while it waits
    assert again.snapshot
    assert supervise(again).snapshot != run.snapshot
    assert again.snapshot
    assert not again.snapshot.judgments.filter(pk=row.pk).exists()
    assert runs.retry(run).snapshot is None  # nor is a later one shown with what it will not learn from


def test_it_begins_from_the_base_where_the_version_it_goes_on_from_had_learned_what_is_retracted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place_of_trainer(monkeypatch, START + "sys.exit(3)")
    add_judged(run.campaign, 1)
    supervise(run)
    version = Adapter.objects.create(name="adapter-1-abcdef", sha256="1" * 64, base_sha256="b" * 64)
    Run.objects.filter(pk=run.pk).update(status=Run.Status.SUCCEEDED, adapter=version)
    Deployment.objects.filter(pk=adapters.deployment().pk).update(adapter=version)
    following = supervise(runs.create(run.campaign, "dpo", {"start": "incumbent"}))
    assert (following.incumbent, following.params["start"]) == (version, "incumbent")
    retract_one(run)
    supervise(following)
    assert (following.incumbent, following.params["start"]) == (version, "base")
    config = attempts.read_json(attempts.folder(following.pk, 2) / "config.json") or {}
    assert config["params"]["start"] == "base"
