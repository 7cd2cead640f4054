"""Background work and the engine's steps take turns, so that it slows them down by a share that is known beforehand.

Left to the operating system, even a thread of low priority took a core for whole phases of a step: beside eight streams,
while a version was loaded, one step in ten took twice its time.
"""

import threading
import time

SHARE = 1 / 3  # of a step's time that background work may take after it
MAX_STEP = 0.25  # seconds; what is longer, as when the machine was away, counts as this
MAX_DEBT = 1.0  # seconds
PATIENCE = 0.02  # seconds that the steps wait for the end of a part beyond its turn; then they go on beside it


class Turns:
    """Between the engine's thread and one thread of background work, which is cut into parts of some milliseconds."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_busy = False  # steps follow each other
        self._is_asking = self._is_working = False  # the background, for its turn and in it
        self._credit = 0.0  # seconds that it may still take
        self._since = self._until = 0.0  # monotonic; its turn

    # --- the engine's thread -----------------------------------------------------------------------------------------
    def begin(self) -> None:
        """A step follows: background work that has not waited so far does from now on."""
        with self._changed:
            self._is_busy = True

    def idle(self) -> None:
        """No step follows: background work need not wait."""
        with self._changed:
            self._is_busy = False
            self._changed.notify_all()

    def after_step(self, seconds: float) -> None:
        """Lets background work have its turn, if any waits, after a step that took `seconds`."""
        with self._changed:
            # What nobody took is lost, what was overrun is not.
            self._credit = min(self._credit, 0.0) + SHARE * min(seconds, MAX_STEP)
            if not self._is_asking or self._credit <= 0:
                return
            self._since = time.monotonic()
            self._until = self._since + self._credit
            self._is_asking, self._is_working = False, True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_working, self._credit + PATIENCE)

    # --- the background's --------------------------------------------------------------------------------------------
    def wait(self) -> None:
        """Between two parts of the work: returns when the next may begin."""
        with self._changed:
            if self._is_working and time.monotonic() < self._until:
                return
            self.end()
            while True:
                self._is_asking = True
                self._changed.wait_for(lambda: self._is_working or not self._is_busy)
                self._is_asking = False
                if not self._is_working or time.monotonic() < self._until:
                    return
                self._is_working = False  # too late to begin: this thread had no core, and the steps have gone on

    def end(self) -> None:
        """The work is done, or given up, or its turn is over."""
        with self._changed:
            if self._is_working:
                self._credit = max(self._credit - (time.monotonic() - self._since), -MAX_DEBT)
            self._is_asking = self._is_working = False
            self._changed.notify_all()
