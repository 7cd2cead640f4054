"""A message on its way: the broker that is configured carries it to a real worker, once."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from django.conf import settings

from alignapp import liveness
from alignapp.celery import app

pytestmark = [pytest.mark.backends, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker")


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[Celery]:
    """A worker of threads on a queue of its own, with the site's broker settings, and one task that writes a file."""
    site = Celery("tests", broker=settings.CELERY_BROKER_URL, set_as_current=False)
    site.conf.update(
        broker_transport_options=settings.CELERY_BROKER_TRANSPORT_OPTIONS,
        task_default_queue="test-celery",
        task_ignore_result=True,
        accept_content=["json"],
    )
    site.steps["consumer"].update(app.steps["consumer"])

    @site.task(name="write", shared=False)
    def write(number: int) -> None:
        with (folder / "written").open("a") as file:
            file.write(f"{number}\n")

    with start_worker(site, pool="threads", concurrency=2, perform_ping_check=False, hostname="tested@here"):
        yield site


def test_it_carries_each_message_to_a_worker_once(worker: Celery, folder: Path) -> None:
    for number in range(50):
        worker.send_task("write", [number])
    written = folder / "written"
    while not written.exists() or written.read_text().count("\n") < 50:
        time.sleep(0.05)
    assert sorted(map(int, written.read_text().split())) == list(range(50))


def test_it_shows_that_a_worker_is_at_work(worker: Celery) -> None:
    assert liveness.is_alive("tested", 0)


def test_it_uses_the_broker_that_is_configured() -> None:
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1)
        expected = "redis" if settings.REDIS_URL else "files"
        assert connection.transport.driver_type == expected


def test_it_takes_json_only_and_keeps_no_results() -> None:
    assert app.conf.task_ignore_result
    assert list(app.conf.accept_content) == ["json"]
