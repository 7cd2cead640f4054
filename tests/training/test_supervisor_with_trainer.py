"""The real trainer under supervision, on a tiny model: a whole run, and one whose trainer is killed in the middle."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from django.db import connection
from pytest_django import Settings

from serving.models import Adapter
from tests.training.rows import add_campaign, add_judged
from training import attempts, runs, snapshots, supervisor
from training.models import Evaluation, Run

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _model(tiny_model_dir: Path, tmp_path: Path, settings: Settings) -> None:
    settings.MODEL = str(tiny_model_dir)
    settings.ADAPTERS_DIR = tmp_path / "adapters"  # numbers start again with every test, and with them names
    supervisor.resume()


def supervise(run: Run) -> Run:
    supervisor.supervise(run.pk)
    run.refresh_from_db()
    return run


def test_it_carries_a_run_from_judgments_to_a_judged_adapter() -> None:
    campaign = add_campaign()
    add_judged(campaign, 8, 3)
    run = supervise(runs.create(campaign, "dpo", {"epochs": 2.0, "batch_pairs": 4, "learning_rate": 1e-3}))
    assert (run.status, run.error) == (Run.Status.SUCCEEDED, "")
    assert run.adapter
    assert run.adapter.folder.is_dir()
    assert run.incumbent
    assert run.incumbent.is_base
    assert list(run.metrics.values_list("step", flat=True)) == list(range(1, run.n_steps + 1))
    assert run.evaluation.verdict == "not enough judgments to tell: 3 held-out pairs, at least 20 wanted"
    assert set(run.timings) == set(supervisor.STAGES) - {"publish"}  # PostgreSQL keeps no order of keys
    assert snapshots.waiting(campaign) == 0
    assert not list(run.folder.glob("attempt-*/checkpoint-*"))
    assert run.metrics.get(step=1).values["loss"] == pytest.approx(0.6931, abs=1e-3)  # DPO starts at ln 2


def test_it_registers_equal_bytes_once() -> None:
    campaign = add_campaign()
    add_judged(campaign, 6)
    params = {"epochs": 1.0, "learning_rate": 1e-3}
    first = supervise(runs.create(campaign, "dpo", params))
    second = supervise(runs.create(campaign, "dpo", params))
    assert first.adapter == second.adapter is not None
    assert Adapter.objects.filter(is_base=False).count() == 1
    assert Evaluation.objects.count() == 2


def test_it_resumes_after_the_trainer_was_killed() -> None:
    campaign = add_campaign()
    add_judged(campaign, 12)
    run = runs.create(campaign, "dpo", {"epochs": 10.0, "batch_pairs": 2, "learning_rate": 1e-3})

    def kill_in_the_middle() -> None:
        while Run.objects.get(pk=run.pk).step < 5:
            time.sleep(0.05)
        os.kill(Run.objects.get(pk=run.pk).trainer_pid or 0, signal.SIGKILL)
        connection.close()

    thread = threading.Thread(target=kill_in_the_middle)
    thread.start()
    supervise(run)
    thread.join()
    assert (run.status, run.n_lost, run.attempt) == (Run.Status.QUEUED, 1, 1)
    supervise(run)
    assert (run.status, run.attempt) == (Run.Status.SUCCEEDED, 2)
    assert list(run.metrics.values_list("step", flat=True)) == list(range(1, run.n_steps + 1))
    assert Adapter.objects.filter(is_base=False).count() == 1


def test_it_goes_on_where_a_stopped_worker_left_off() -> None:
    campaign = add_campaign()
    add_judged(campaign, 12)
    run = runs.create(campaign, "dpo", {"epochs": 10.0, "batch_pairs": 2, "learning_rate": 1e-3})

    def stop_in_the_middle() -> None:
        while Run.objects.get(pk=run.pk).step < 5:
            time.sleep(0.05)
        supervisor.stop()
        connection.close()

    thread = threading.Thread(target=stop_in_the_middle)
    thread.start()
    supervise(run)
    thread.join()
    assert (run.status, run.n_lost) == (Run.Status.QUEUED, 0)
    checkpoint = attempts.newest_checkpoint(run)
    assert checkpoint
    supervisor.resume()
    supervise(run)
    assert run.status == Run.Status.SUCCEEDED
    assert f"resumed at step {checkpoint.name.partition('-')[2]}" in attempts.read_log_tail(attempts.folder(run.pk, 2))


def test_it_takes_over_what_a_dead_supervisor_left_done() -> None:
    campaign = add_campaign()
    add_judged(campaign, 6)
    run = supervise(runs.create(campaign, "dpo", {"epochs": 1.0, "learning_rate": 1e-3}))
    Evaluation.objects.all().delete()
    Run.objects.filter(pk=run.pk).update(status=Run.Status.QUEUED, adapter=None)  # died before it could say so
    supervise(run)
    assert (run.status, run.attempt) == (Run.Status.SUCCEEDED, 2)
    assert not attempts.folder(run.pk, 2).exists()  # nothing was trained again
    assert Adapter.objects.filter(is_base=False).count() == 1
