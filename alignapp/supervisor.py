"""Runs several processes as one: starts them together, restarts what dies, and leaves nothing behind.

Every process leads a process group of its own, so that a Ctrl-C in the terminal reaches only us. What a dead process
leaves behind becomes our child, and is stopped too. Should we be killed ourselves, the kernel kills every process that
we started (alignapp/launch.py); a trainer then ends by itself, because nobody renews its lease.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

import psutil

from alignapp.console import Console

LAUNCH = Path(__file__).with_name("launch.py")
PR_SET_CHILD_SUBREAPER = 36
TICK = 0.1  # seconds between two looks at the processes
STOP_SECONDS = 12.0  # from SIGTERM to SIGKILL; a worker gives its trainer ten seconds to write a checkpoint
LONGEST_PAUSE = 30.0
CALM_SECONDS = 60.0  # healthy for this long: earlier deaths are forgotten
OURSELVES = "up"  # the name in front of our own lines


@dataclass(frozen=True)
class Service:
    """What to run. `is_healthy` gets the time (seconds since the epoch) at which the process started."""

    name: str
    command: Sequence[str]
    is_healthy: Callable[[float], bool]
    environment: Mapping[str, str] = field(default_factory=dict)


def pause_before_restart(n_deaths: int) -> float:
    """Seconds to wait after the n-th death in a row: 1, 2, 4, … 30."""
    return min(2.0 ** (n_deaths - 1), LONGEST_PAUSE)


def cause_of_death(code: int) -> str:
    """A process's return code in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class Running:
    """One service and the process that runs it at the moment, if any."""

    def __init__(self, service: Service, console: Console) -> None:
        self.service = service
        self.is_healthy = False
        self._console = console
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0  # when to start the next process
        self._n_deaths = 0

    @property
    def pid(self) -> int | None:
        """The process at the moment; None between its death and the next start."""
        return self._process.pid if self._process else None

    def look(self, now: float) -> bool:
        """Start the process when it is due, and ask whether it is healthy until it is. True: it has died."""
        if self._process is None:
            if now >= self._start_at:
                self._start(now)
        elif (code := self._process.poll()) is not None:
            self._bury(code, now)
            return True
        elif not self.is_healthy and self.service.is_healthy(self._started_at):
            self.is_healthy = True
            if self._n_deaths:
                self._console.say(OURSELVES, f"{self.service.name} is back")
        return False

    def _start(self, now: float) -> None:
        self._started_at = now
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), *self.service.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self.service.environment},
            process_group=0,
        )
        threading.Thread(target=self._copy_lines, args=(self._process.stdout,), daemon=True).start()

    def _copy_lines(self, output: IO[bytes]) -> None:
        for line in output:
            if line.strip():
                self._console.say(self.service.name, line.decode(errors="replace").rstrip())

    def _bury(self, code: int, now: float) -> None:
        """The process has ended by itself: stop what it left behind, and plan the next one."""
        self.signal(signal.SIGTERM)
        self._process = None
        self._n_deaths = 1 if self.is_healthy and now - self._started_at > CALM_SECONDS else self._n_deaths + 1
        self.is_healthy = False
        pause = pause_before_restart(self._n_deaths)
        self._start_at = now + pause
        self._console.say(OURSELVES, f"{self.service.name} {cause_of_death(code)}; starting it again in {pause:.0f} s")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def is_gone(self) -> bool:
        """Whether the process has ended, and has been taken note of."""
        return self._process is None or self._process.poll() is not None


class Supervisor:
    """Used as a context: `with Supervisor(console) as s: s.add(…); s.watch(on_ready)`. Leaving it stops everything."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._all: list[Running] = []
        self._n_signals = 0
        self._may_have_orphans = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._strangers: set[int] = set()  # children of this process that were there before us

    def __enter__(self) -> Self:
        self._strangers = {child.pid for child in psutil.Process().children()}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, self._on_signal)
        _adopt_orphans(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        _adopt_orphans(False)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._n_signals += 1  # a plain number: a lock taken here could be held by the code that we interrupt

    @property
    def is_stopping(self) -> bool:
        """Whether somebody asked us to end."""
        return self._n_signals > 0

    def add(self, service: Service) -> None:
        """Start a service now; `watch` looks after it."""
        running = Running(service, self._console)
        self._all.append(running)
        running.look(time.time())

    def watch(self, on_ready: Callable[[], None]) -> None:
        """Look after the services until a signal comes. `on_ready` is called once, when all are healthy."""
        was_ready = False
        while not self.is_stopping:
            n_deaths = sum(running.look(time.time()) for running in self._all)
            if n_deaths or self._may_have_orphans:
                self._may_have_orphans = bool(self._orphans())
            if n_deaths:
                self._signal_orphans(signal.SIGTERM)
            if not was_ready and all(running.is_healthy for running in self._all):
                was_ready = True
                on_ready()
            time.sleep(TICK)

    def stop(self) -> None:
        """SIGTERM to everything; SIGKILL to what is left after twelve seconds, or at once on a second signal."""
        n_signals = max(self._n_signals, 1)
        deadline = time.monotonic() + STOP_SECONDS
        self._signal_all(signal.SIGTERM)
        while not self._are_all_gone():
            if time.monotonic() > deadline or self._n_signals > n_signals:
                self._signal_all(signal.SIGKILL)
            time.sleep(TICK)

    def _signal_all(self, number: signal.Signals) -> None:
        for running in self._all:
            running.signal(number)
        self._signal_orphans(number)

    def _signal_orphans(self, number: signal.Signals) -> None:
        for orphan in self._orphans():
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.send_signal(number)

    def _are_all_gone(self) -> bool:
        return all(running.is_gone() for running in self._all) and not self._orphans()

    def _orphans(self) -> list[psutil.Process]:
        """Living children of ours that no service is known by; dead ones are taken note of on the way."""
        known = {running.pid for running in self._all} | self._strangers
        orphans = [child for child in psutil.Process().children() if child.pid not in known]
        for orphan in orphans:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(orphan.pid, os.WNOHANG)
        return [orphan for orphan in orphans if orphan.is_running()]


def _adopt_orphans(is_wanted: bool) -> None:
    """On Linux, have what our processes leave behind become our child: nothing gets out of sight."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(is_wanted), 0, 0, 0)
