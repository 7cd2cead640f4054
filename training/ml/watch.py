"""The trainer's contact with its supervisor: the lease it must hold, the signal to stop, the progress it reports.

SIGTERM raises Stopped in the main thread at once, wherever it is, except in a `shielded` block (an optimizer step, a
checkpoint), where it waits for the end. So the state that a checkpoint sees is always that of a finished step.
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from training.ml import files, system
from training.ml.errors import LeaseLost, Stopped

STALE_SECONDS = 60.0
REPORT_SECONDS = 0.5


class Watch:
    """Context of a run in `folder`, which holds `token`. Without a lease.json at the start nobody supervises: no lease."""

    def __init__(self, folder: Path, token: int) -> None:
        self.lease = folder / "lease.json"
        self.status = folder / "status.json"
        self.token = token
        self.is_leased = self.lease.exists()
        self.is_stopping = False
        self._n_shields = 0
        self._reported_at = 0.0
        self._values: dict[str, Any] = {"phase": "Starting", "step": 0, "n_steps": 0, "seconds_left": None}

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self.is_stopping = True
        if not self._n_shields:
            raise Stopped

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """A block that a signal does not interrupt; the signal is obeyed at the block's end."""
        self._n_shields += 1
        try:
            yield
        finally:
            self._n_shields -= 1
        if self.is_stopping and not self._n_shields:
            raise Stopped

    def check(self) -> None:
        """Raises Stopped after a signal, LeaseLost when the lease is stale for a minute or another's."""
        if self.is_stopping:
            raise Stopped
        if self.is_leased:
            self._check_lease()

    def _check_lease(self) -> None:
        if not self._holds_lease(STALE_SECONDS):
            raise LeaseLost

    def _holds_lease(self, overdue: float) -> bool:
        """Whether the lease is ours and ended at most `overdue` seconds ago."""
        try:
            lease = json.loads(self.lease.read_text(encoding="utf-8"))
            return bool(lease["token"] == self.token and time.time() <= lease["until"] + overdue)
        except (OSError, ValueError, TypeError, KeyError):
            return False  # it is replaced atomically: an unreadable one is nobody's

    def is_alone(self) -> bool:
        """Whether no other attempt can have begun: past its time a lease is given to the next one."""
        return not self.is_leased or self._holds_lease(0)

    def report(self, *, is_due: bool = False, **values: Any) -> None:
        """Puts values into status.json, at most twice a second unless `is_due`, and checks."""
        self._values |= values
        if is_due or time.monotonic() - self._reported_at > REPORT_SECONDS:
            self._reported_at = time.monotonic()
            files.write_json(self.status, self._values | system.figures(), durable=False)
        self.check()

    def phase(self, phase: str) -> None:
        self.report(is_due=True, phase=phase)
