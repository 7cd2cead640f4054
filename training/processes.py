"""Start, stop and recognise trainer processes. A process is known by pid and start time: a pid alone is reused."""

import logging
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
from django.conf import settings

log = logging.getLogger(__name__)

SECRETS = ("SECRET_KEY", "ENGINE_TOKEN", "ADMIN_PASSWORD", "DATABASE_URL", "REDIS_URL")
TRAINER = [sys.executable, "-m", "training.ml.train"]
LAUNCHER = [sys.executable, "-m", "training.ml.launch"]  # the trainer in several processes: how many, then its folder
SCORER = [sys.executable, "-m", "training.ml.score"]
GPUS = Path("/proc/driver/nvidia/gpus")  # the kernel's list: asking torch would load it
STOP_SECONDS = 10.0
SAME_START_SECONDS = 2.0  # the kernel's idea of its own boot time moves a little when the clock is set


def worker_name() -> str:
    """Who supervises: host and process, so that another process on the host can tell whether it lives."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_on_this_host(worker: str) -> bool:
    return worker.rpartition(":")[0] == socket.gethostname()


def start_trainer(folder: Path) -> subprocess.Popen[bytes]:
    """Starts the trainer on an attempt's folder, in a process group of its own, logging to log.txt."""
    n = n_trainer_processes()
    return _start(TRAINER if n == 1 else [*LAUNCHER, str(n)], folder)


def n_trainer_processes() -> int:
    """TRAIN_PROCESSES, or where it is 0 one for every GPU that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    n_gpus = len(list(GPUS.iterdir())) if GPUS.exists() else 0
    if visible is not None:
        n_gpus = min(n_gpus, len([name for name in visible.split(",") if name.strip()]))
    return settings.TRAIN_PROCESSES or max(1, n_gpus)


def start_scorer(folder: Path) -> subprocess.Popen[bytes]:
    """Likewise the job that scores responses, on a scoring's folder."""
    return _start(SCORER, folder)


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log.txt").open("ab") as log_file:
        return subprocess.Popen(
            [*command, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            cwd=settings.BASE_DIR,
            env=_environment(),
            start_new_session=True,
        )


def started_at(pid: int) -> float | None:
    """The process's start in unix seconds; None when it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Asks the trainer to write a checkpoint and end."""
    _signal_group(process.pid, signal.SIGTERM)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the trainer and all of its children at once, and reaps it."""
    _kill_tree(process.pid, _descendants(process.pid) if process.poll() is None else [])
    process.wait()


def kill_orphan(pid: int, started: float) -> bool:
    """Ends a trainer whose supervisor is gone; never another process that has got the same pid. True if it lived."""
    found = started_at(pid)
    if found is None or abs(found - started) > SAME_START_SECONDS:
        return False
    log.warning("ending trainer %d, whose supervisor is gone", pid)
    _kill_tree(pid, _descendants(pid))
    return True


def _descendants(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _kill_tree(pid: int, descendants: list[psutil.Process]) -> None:
    """torchrun and its workers are in sessions of their own, so the group is not all; who they are must be known
    before: a child of a dead process is nobody's."""
    _signal_group(pid, signal.SIGKILL)
    for process in descendants:
        with suppress(psutil.Error):  # it has ended with the others
            process.kill()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _environment() -> dict[str, str]:
    """What the trainer gets: everything but the secrets, which it has no use for."""
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
    if settings.TRAIN_THREADS:
        environment["OMP_NUM_THREADS"] = str(settings.TRAIN_THREADS)
    return environment
