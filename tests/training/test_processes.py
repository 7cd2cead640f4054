"""Trainer processes are known by pid and start: nothing else is ever signalled."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from training import processes

SLEEPER = "import time; time.sleep(600)"
PARENT = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', '{SLEEPER}']); print(p.pid, flush=True); p.wait()"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_it_ends_an_orphan(sleeper: subprocess.Popen[bytes]) -> None:
    started = processes.started_at(sleeper.pid)
    assert started is not None
    assert processes.kill_orphan(sleeper.pid, started)
    assert sleeper.wait(timeout=30) < 0
    assert not processes.kill_orphan(sleeper.pid, started)


def test_it_leaves_a_process_alone_that_got_the_same_pid_later(sleeper: subprocess.Popen[bytes]) -> None:
    assert not processes.kill_orphan(sleeper.pid, time.time() - 3600)
    assert sleeper.poll() is None


def test_it_ends_a_trainers_children_with_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    processes.kill(parent)
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_it_keeps_the_secrets_from_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in processes.SECRETS:
        monkeypatch.setenv(name, "hidden-value")
    show = "import os; print(sorted(k for k, v in os.environ.items() if v == 'hidden-value'))"
    monkeypatch.setattr(processes, "TRAINER", [sys.executable, "-c", show])
    assert processes.start_trainer(tmp_path).wait(timeout=60) == 0
    assert (tmp_path / "log.txt").read_text() == "[]\n"


def test_it_tells_this_host_from_others() -> None:
    assert processes.is_on_this_host(processes.worker_name())
    assert not processes.is_on_this_host(f"another-host:{os.getpid()}")
