"""The row is the truth: one active run, one owner, and an owner given up for dead writes nothing."""

import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from celery import current_app
from django.conf import settings
from django.db import connection
from pytest_django import Settings

from serving.models import Adapter
from tests.training.rows import NOW, add_campaign
from training import catalog, processes, runs
from training.models import Metric, Run
from training.runs import Claim, RunExists

LATER = NOW + timedelta(seconds=settings.RUN_LEASE_SECONDS + 1)
WORKER = "elsewhere:1"


def add_run(**fields: Any) -> Run:
    return Run.objects.create(campaign=add_campaign(), method="dpo", params={}, **fields)


def add_adapter() -> Adapter:
    return Adapter.objects.create(name="adapter-7-abcdef", sha256="a" * 64, base_sha256="b" * 64)


def claimed(run: Run) -> Claim:
    claim = runs.claim(run.pk, WORKER, NOW)
    assert claim
    return claim


@pytest.mark.django_db
def test_it_stores_every_parameter_of_the_method() -> None:
    run = runs.create(add_campaign(), "dpo", {"beta": 0.2})
    assert run.params == {**catalog.to_dict(catalog.DPO()), "beta": 0.2}
    assert run.status == Run.Status.QUEUED


@pytest.mark.django_db
@pytest.mark.parametrize(("method", "params"), [("dpo", {"bta": 1.0}), ("dpo", {"beta": -1.0}), ("magic", {})])
def test_it_refuses_what_the_catalog_does_not_know(method: str, params: dict[str, Any]) -> None:
    with pytest.raises(catalog.ParameterError):
        runs.create(add_campaign(), method, params)
    assert not Run.objects.exists()


@pytest.mark.django_db
def test_it_refuses_a_second_active_run_in_words() -> None:
    campaign = add_campaign(name="Manners")
    run = runs.create(campaign, "dpo", {})
    with pytest.raises(RunExists, match="“Manners” has a run already"):
        runs.create(campaign, "ipo", {})
    runs.request_cancel(run, NOW)
    assert runs.create(campaign, "ipo", {})


def in_threads(n: int, work: Callable[[], None]) -> None:
    barrier = threading.Barrier(n)

    def body() -> None:
        barrier.wait()
        try:
            work()
        finally:
            connection.close()

    threads = [threading.Thread(target=body) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.django_db(transaction=True)
def test_it_creates_one_run_when_many_ask_at_once() -> None:
    campaign = add_campaign()
    outcomes: list[str] = []

    def create() -> None:
        try:
            runs.create(campaign, "dpo", {})
            outcomes.append("created")
        except RunExists:
            outcomes.append("refused")

    in_threads(6, create)
    assert sorted(outcomes) == ["created", *["refused"] * 5]
    assert Run.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_it_is_claimed_by_one_of_many_workers() -> None:
    run = add_run()
    claims: list[Claim | None] = []
    in_threads(6, lambda: claims.append(runs.claim(run.pk, WORKER, NOW)))
    assert [claim for claim in claims if claim] == [Claim(run.pk, token=1, attempt=1)]


@pytest.mark.django_db
def test_it_counts_attempts_and_tokens_up_with_every_claim() -> None:
    run = add_run()
    first = claimed(run)
    assert runs.claim(run.pk, WORKER, NOW) is None
    assert runs.release_for_resume(first, NOW)
    assert claimed(run) == Claim(run.pk, token=2, attempt=2)
    run.refresh_from_db()
    assert run.started_at == NOW
    assert run.lease_until == runs.lease_end(NOW)


@pytest.mark.django_db
def test_it_writes_nothing_with_a_stale_token() -> None:
    run, adapter = add_run(), add_adapter()
    stale = claimed(run)
    runs.sweep(LATER)
    fresh = runs.claim(run.pk, "another:2", LATER)
    assert fresh
    assert runs.heartbeat(fresh, LATER, step=3)
    before = Run.objects.values().get(pk=run.pk)
    writes: list[Callable[[], bool]] = [
        lambda: runs.heartbeat(stale, LATER, step=9),
        lambda: runs.add_metrics(stale, [{"step": 1, "loss": 0.1}], LATER),
        lambda: runs.attach_trainer(stale, 4711, 1.0),
        lambda: runs.finish(stale, adapter, {}, LATER),
        lambda: runs.fail(stale, "no", LATER),
        lambda: runs.cancel(stale, LATER),
        lambda: runs.release_for_resume(stale, LATER),
    ]
    assert [write() for write in writes] == [False] * len(writes)
    assert Run.objects.values().get(pk=run.pk) == before
    assert not Metric.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("end", ["finish", "fail", "cancel"])
def test_it_leaves_an_ended_run_as_it_ended(end: str) -> None:
    run, adapter = add_run(), add_adapter()
    claim = claimed(run)
    ends: dict[str, Callable[[], bool]] = {
        "finish": lambda: runs.finish(claim, adapter, {"training": 1.0}, NOW),
        "fail": lambda: runs.fail(claim, "broken", NOW),
        "cancel": lambda: runs.cancel(claim, NOW),
    }
    assert ends[end]()
    before = Run.objects.values().get(pk=run.pk)
    assert [again() for again in ends.values()] == [False] * 3
    assert not runs.heartbeat(claim, LATER)
    assert not runs.request_cancel(run, LATER)
    runs.sweep(LATER + timedelta(days=1))
    assert Run.objects.values().get(pk=run.pk) == before
    assert before["lease_until"] is before["trainer_pid"] is None
    assert before["finished_at"] == NOW


@pytest.mark.django_db
def test_it_overwrites_the_steps_that_a_resumed_run_repeats() -> None:
    run = add_run()
    claim = claimed(run)
    assert runs.add_metrics(claim, [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}], NOW)
    assert runs.add_metrics(claim, [{"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.4}], NOW)
    assert [metric.values["loss"] for metric in run.metrics.all()] == [0.7, 0.5, 0.4]


@pytest.mark.django_db
def test_it_cancels_a_queued_run_at_once_and_asks_a_running_one() -> None:
    queued, running = add_run(), add_run()
    claim = claimed(running)
    assert runs.request_cancel(queued, NOW)
    assert runs.request_cancel(running, NOW)
    queued.refresh_from_db()
    assert queued.status == Run.Status.CANCELLED
    assert runs.is_cancel_requested(claim)
    assert runs.claim(queued.pk, WORKER, NOW) is None


@pytest.mark.django_db
def test_it_does_not_requeue_a_run_whose_cancellation_was_asked_for() -> None:
    run = add_run()
    claim = claimed(run)
    runs.request_cancel(run, NOW)
    assert runs.release_for_resume(claim, NOW)
    run.refresh_from_db()
    assert run.status == Run.Status.CANCELLED


@pytest.mark.django_db
def test_it_takes_back_what_lost_its_worker_and_nothing_else() -> None:
    lost, alive = add_run(), add_run()
    claimed(lost)
    claim = claimed(alive)
    runs.heartbeat(claim, LATER)
    runs.sweep(LATER)
    lost.refresh_from_db()
    alive.refresh_from_db()
    assert (lost.status, lost.n_lost) == (Run.Status.QUEUED, 1)
    assert (alive.status, alive.n_lost) == (Run.Status.RUNNING, 0)


@pytest.mark.django_db
def test_it_fails_a_run_that_is_lost_too_often() -> None:
    run = add_run()
    now = NOW
    for _ in range(settings.RUN_MAX_ATTEMPTS):
        assert runs.claim(run.pk, WORKER, now)
        now += timedelta(seconds=settings.RUN_LEASE_SECONDS + 1)
        runs.sweep(now)
    run.refresh_from_db()
    assert run.status == Run.Status.FAILED
    assert f"killed {settings.RUN_MAX_ATTEMPTS} times" in run.error


@pytest.mark.django_db
def test_it_does_not_count_restarts_of_the_worker_as_losses() -> None:
    run = add_run()
    for _ in range(settings.RUN_MAX_ATTEMPTS + 2):
        assert runs.release_for_resume(claimed(run), NOW)
    run.refresh_from_db()
    assert (run.status, run.n_lost) == (Run.Status.QUEUED, 0)


@pytest.mark.django_db
def test_it_ends_the_trainer_of_a_dead_worker_on_this_host() -> None:
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    run = add_run()
    claim = runs.claim(run.pk, processes.worker_name(), NOW)
    assert claim
    runs.attach_trainer(claim, orphan.pid, processes.started_at(orphan.pid))
    runs.sweep(LATER)
    assert orphan.wait(timeout=30) < 0


@pytest.mark.django_db(transaction=True)
def test_it_tells_the_workers_and_the_sweeper_tells_them_again() -> None:
    with current_app.connection_for_read() as broker:
        queue = broker.SimpleQueue("train")
        queue.clear()
        run = runs.create(add_campaign(), "dpo", {})
        first = queue.get(timeout=20)
        first.ack()
        Run.objects.filter(pk=run.pk).update(created_at=NOW)
        runs.sweep(NOW + timedelta(seconds=16))
        runs.sweep(NOW + timedelta(seconds=17))  # told a second ago: not again
        second = queue.get(timeout=20)
        second.ack()
        assert [message.headers["task"] for message in (first, second)] == ["training.tasks.supervise"] * 2
        assert [message.payload[0] for message in (first, second)] == [[run.pk]] * 2
        with pytest.raises(queue.Empty):
            queue.get(timeout=0.5)
        queue.close()


@pytest.mark.django_db(transaction=True)
def test_it_tells_the_workers_of_the_queue_that_the_campaign_or_the_method_has(settings: Settings) -> None:
    settings.TRAIN_QUEUES = {"poems": "train-big", "ipo": "train-gpu"}
    poems = add_campaign(slug="poems")
    wanted = {"train-big": (poems, "ipo"), "train-gpu": (add_campaign(), "ipo"), "train": (add_campaign(), "dpo")}
    with current_app.connection_for_read() as broker:
        for name, (campaign, method) in wanted.items():
            queue = broker.SimpleQueue(name)
            queue.clear()
            run = runs.create(campaign, method, {})
            message = queue.get(timeout=20)
            message.ack()
            assert message.payload[0] == [run.pk]
            queue.close()


@pytest.mark.django_db
def test_it_retries_by_a_new_row_on_the_same_judgments() -> None:
    run = runs.create(add_campaign(), "ipo", {"beta": 0.3})
    with pytest.raises(runs.NotRetryable):
        runs.retry(run)
    runs.request_cancel(run, NOW)
    run.refresh_from_db()
    again = runs.retry(run)
    assert again.pk != run.pk
    assert (again.method, again.params, again.trigger) == ("ipo", run.params, Run.Trigger.RETRY)
    assert again.retry_of == run
