"""What `manage.py up` prints: lines of several processes, each with its name in front, and the box with the address."""

import logging
import os
import threading
from collections.abc import Iterable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

COLOURS = (36, 33, 35, 32, 34, 31)  # ANSI: cyan, yellow, magenta, green, blue, red
LOG_BYTES = 10 * 1024 * 1024
N_OLD_LOGS = 3


class Console:
    """One terminal (or file) that several threads write whole lines to."""

    def __init__(self, stream: TextIO, log_dir: Path, names: Iterable[str]) -> None:
        self._stream = stream
        self._log_dir = log_dir
        self._names = list(names)
        self._width = max(map(len, self._names))
        self._has_colour = stream.isatty() and not os.environ.get("NO_COLOR")
        self._is_read = True
        self._lock = threading.Lock()
        self._logs: dict[str, RotatingFileHandler] = {}

    def say(self, name: str, line: str) -> None:
        """Print one line of the process `name`, and add it to its log file."""
        self._log(name).emit(logging.makeLogRecord({"msg": line}))
        prefix = f"{name:<{self._width}} │"
        if self._has_colour:
            prefix = f"\033[{COLOURS[self._names.index(name) % len(COLOURS)]}m{prefix}\033[0m"
        self._print(f"{prefix} {line}")

    def box(self, lines: list[str]) -> None:
        """Print `lines` in a frame that stands out from the logs."""
        width = max(map(len, lines))
        framed = [f"│ {line:<{width}} │" for line in lines]
        self._print("\n".join([f"┌{'─' * (width + 2)}┐", *framed, f"└{'─' * (width + 2)}┘"]))

    def _print(self, text: str) -> None:
        with self._lock:
            if self._is_read:
                try:
                    print(text, file=self._stream, flush=True)
                except OSError:
                    self._is_read = False  # the terminal is gone; the log files go on

    def _log(self, name: str) -> RotatingFileHandler:
        with self._lock:
            if name not in self._logs:
                self._logs[name] = _open_log(self._log_dir / f"{name}.log")
            return self._logs[name]


def _open_log(path: Path) -> RotatingFileHandler:
    """A fresh file for each start; the last three are kept as .1 to .3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=N_OLD_LOGS, encoding="utf-8")
    if path.stat().st_size:
        handler.doRollover()
    return handler
