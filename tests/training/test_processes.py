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

pytestmark = pytest.mark.slow  # starts processes

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


def grandparent() -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """A trainer and its child's child, each in a session of its own, as torchrun makes them."""
    start = "subprocess.Popen([sys.executable, '-c', {}], start_new_session=True)"
    inner = f"import subprocess, sys; p = {start.format(repr(SLEEPER))}; print(p.pid, flush=True); p.wait()"
    outer = f"import subprocess, sys; {start.format(repr(inner))}.wait()"
    process = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout
    return process, psutil.Process(int(process.stdout.readline()))


def has_ended(process: psutil.Process) -> bool:
    psutil.wait_procs([process], timeout=30)
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_it_ends_processes_in_other_sessions_with_the_trainer() -> None:
    trainer, worker = grandparent()
    processes.kill(trainer)
    assert has_ended(worker)


def test_it_ends_processes_in_other_sessions_with_an_orphan() -> None:
    trainer, worker = grandparent()
    started = processes.started_at(trainer.pid)
    assert started is not None
    assert processes.kill_orphan(trainer.pid, started)
    assert trainer.wait(timeout=30) < 0
    assert has_ended(worker)


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
