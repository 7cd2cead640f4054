"""Workers and beat have no port to ask for their health, so each touches a file while it is at work."""

from pathlib import Path
from typing import Any

from celery import bootsteps
from django.conf import settings

INTERVAL = 2.0


def file_of(name: str) -> Path:
    """The file that the worker or beat called `name` touches."""
    return settings.VAR_DIR / "run" / f"{name}.alive"


def touch(name: str) -> None:
    """Say that `name` is at work now."""
    path = file_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def is_alive(name: str, since: float) -> bool:
    """Whether `name` has touched its file after `since` (seconds since the epoch)."""
    try:
        return file_of(name).stat().st_mtime >= since
    except FileNotFoundError:
        return False


class ReportLiveness(bootsteps.StartStopStep):
    """In a worker: touches the file once it consumes from its queues, and every two seconds after that."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        name = parent.hostname.partition("@")[0]
        touch(name)
        self._entry = parent.timer.call_repeatedly(INTERVAL, touch, (name,))

    def stop(self, parent: Any) -> None:
        self._entry.cancel()
