"""`manage.py up` as a whole, on the tiny model: starts, heals, stops, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.site import REPOSITORY, Site

SECONDS = 120.0


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def _processes(site: Site) -> list[psutil.Process]:
    """Every living process that was started with this site's VAR_DIR, whoever its parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("VAR_DIR") == str(site.var) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def _pid(site: Site, *words: str) -> int:
    """The process whose command line holds all `words`."""
    for process in _processes(site):
        command = " ".join(process.cmdline())
        if all(word in command for word in words):
            return process.pid
    raise AssertionError(f"no process {words}")


@pytest.fixture(scope="module")
def site(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("up"), model=tiny_model_dir) as site:
        yield site
    assert _processes(site) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("web", ("uvicorn",)),
        ("engine", ("serving.engine",)),
        ("worker", ("celery", "worker@alignapp", "default")),
        ("train-worker", ("celery", "train-worker@alignapp")),
        ("beat", ("celery", "beat")),
    ],
)
def test_it_brings_back_what_was_killed(site: Site, name: str, words: tuple[str, ...]) -> None:
    killed = _pid(site, *words)
    os.kill(killed, signal.SIGKILL)
    _wait_until(lambda: f"{name} is back" in site.log.read_text(), f"{name} to be back")
    assert _pid(site, *words) != killed
    assert httpx.get(f"{site.address}/healthz").status_code == 200


@pytest.mark.slow
def test_it_refuses_a_second_start_on_the_same_folder(site: Site) -> None:
    second = subprocess.run(
        [sys.executable, "manage.py", "up"], cwd=REPOSITORY, env=site.environment, capture_output=True, text=True
    )
    assert second.returncode == 1
    assert second.stderr.strip().startswith("Alignapp is already running on")
    assert second.stderr.count("\n") == 1


@pytest.mark.slow
def test_it_ends_with_0_and_leaves_nothing_behind(site: Site) -> None:
    assert len(_processes(site)) >= 6
    assert site.stop() == 0
    assert _processes(site) == []
    site.start()
    assert httpx.get(f"{site.address}/healthz").status_code == 200
    assert "Password:" not in site.log.read_text().rpartition("Starting;")[2]


@pytest.mark.slow
def test_it_leaves_nothing_behind_even_when_killed(site: Site) -> None:
    assert site.process is not None
    site.process.kill()
    _wait_until(lambda: _processes(site) == [], "every process to end")
    site.start()  # the lock went with the killed process


@pytest.mark.slow
def test_it_says_that_the_port_is_taken(tmp_path: Path, tiny_model_dir: Path) -> None:
    site = Site(tmp_path, model=tiny_model_dir)
    with socket.socket() as other:
        other.bind(("127.0.0.1", site.port))
        other.listen()
        refused = subprocess.run(
            [sys.executable, "manage.py", "up"], cwd=REPOSITORY, env=site.environment, capture_output=True, text=True
        )
    assert refused.returncode == 1
    assert (
        refused.stderr == f"Port {site.port} is taken by another program: stop it, or choose another port with PORT=…\n"
    )
    assert not (tmp_path / "db.sqlite3").exists()
