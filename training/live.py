"""What is happening in a run now, for whoever looks: asked once, or as server-sent events that end with the run.

All who follow the same run in this process share one look at the database a second. Between looks nobody holds a thread
or a connection: a viewer is a coroutine that sleeps.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any
from weakref import WeakValueDictionary

from serving import database
from training import attempts, curves
from training.models import Run

Origin = tuple[int, int | None]  # of metric lines: attempt and snapshot

LOOK_SECONDS = 1.0
PING_SECONDS = 10.0  # of silence; well below the idle time-out of any proxy
PING = ": ping\n\n"
RETRY = "retry: 2000\n\n"  # milliseconds until a browser that lost the connection asks again
# Then the stream ends without its `end`, and the browser comes back, as the person that it is by then: who was logged
# out, or lost the permission, sees no more of the run than this.
STREAM_SECONDS = 240.0
MAX_LINES = 2000  # in one answer; the rest comes with the next
SHARED_LINES = 500  # that are kept for viewers who all have almost everything


def state_key(run: Run) -> str:
    """Changes when the page has something to show that the figures have not: then it is loaded anew."""
    return f"{run.status} {run.attempt} {run.snapshot_id} {run.is_cancel_requested}"


def state_of(run: Run) -> dict[str, Any]:
    """What changes while a run goes on, without its curves and its log. `seconds_left` in seconds."""
    return {
        "status": run.status,
        "is_active": run.status in Run.ACTIVE,
        "state": state_key(run),
        "phase": run.phase,
        "step": run.step,
        "n_steps": run.n_steps,
        "seconds_left": run.seconds_left,
        "attempt": run.attempt,
        "error": run.error,
        "system": run.system,
    }


def log_of(run: Run) -> str:
    """The last 16 KB of the current attempt's log."""
    return attempts.read_log_tail(attempts.folder(run.pk, run.attempt))


def lines_after(run_id: int, step: int) -> list[dict[str, Any]]:
    """The run's metric lines after a step, at most MAX_LINES of them."""
    run = Run(pk=run_id)
    lines = run.metrics.filter(step__gt=step).values_list("values", flat=True)[:MAX_LINES]
    return [curves.with_rate(line) for line in lines]


class _Feed:
    """One run as all its viewers in this process see it; `lines` are the newest ones."""

    def __init__(self, run_id: int, after: int) -> None:
        self.run_id = run_id
        self.lock = asyncio.Lock()
        self.looked_at = float("-inf")
        self.begins_after = self.last_step = after
        self.lines: deque[dict[str, Any]] = deque(maxlen=SHARED_LINES)
        self.state: dict[str, Any] = {}
        self.origin: Origin | None = None

    async def look(self) -> dict[str, Any]:
        """The state of at most LOOK_SECONDS ago; of many who ask at a time, one asks the database."""
        async with self.lock:
            if time.monotonic() - self.looked_at >= LOOK_SECONDS:
                self.state, origin, lines = await database.run(_read, self.run_id, self.last_step)
                if self.origin not in (None, origin):  # a new attempt overwrites lines, or begins without any
                    self.lines.clear()
                    self.begins_after = self.last_step = 0
                    lines = await database.run(lines_after, self.run_id, 0)
                self.origin = origin
                self._keep(lines)
                self.looked_at = time.monotonic()
            return self.state

    def _keep(self, lines: list[dict[str, Any]]) -> None:
        self.lines.extend(lines)
        if lines:
            self.last_step = lines[-1]["step"]
            if len(self.lines) == SHARED_LINES:
                self.begins_after = self.lines[0]["step"] - 1

    async def after(self, step: int) -> list[dict[str, Any]]:
        if step < self.begins_after:
            return await database.run(lines_after, self.run_id, step)
        return [line for line in self.lines if line["step"] > step]


_feeds: WeakValueDictionary[tuple[int, int], _Feed] = WeakValueDictionary()  # by event loop and run


def _feed(run_id: int, after: int) -> _Feed:
    key = (id(asyncio.get_running_loop()), run_id)
    feed = _feeds.get(key)
    if feed is None:
        feed = _feeds[key] = _Feed(run_id, after)
    return feed


async def events(run_id: int, after: int) -> AsyncGenerator[str, None]:
    """Events `state` (state_of, with `metrics` after the last step that was sent, and `log` where it changed), then `end`.

    An event's id is the last step that it carries, so that a browser that comes back says how far it got.
    """
    yield RETRY
    feed, began_at, spoke_at = _feed(run_id, after), time.monotonic(), time.monotonic()
    sent: dict[str, Any] = {"state": {}, "log": None}
    while time.monotonic() - began_at < STREAM_SECONDS:
        seen = await feed.look()
        lines = await feed.after(after)
        after = lines[-1]["step"] if lines else after
        if text := _changed(seen, lines, sent, after):
            yield text
            spoke_at = time.monotonic()
        elif time.monotonic() - spoke_at >= PING_SECONDS:
            yield PING
            spoke_at = time.monotonic()
        if not seen["is_active"] and len(lines) < MAX_LINES:
            yield "event: end\ndata: {}\n\n"
            return
        await asyncio.sleep(LOOK_SECONDS)


def _changed(seen: dict[str, Any], lines: list[dict[str, Any]], sent: dict[str, Any], after: int) -> str:
    """The event that says what is new to somebody who was `sent` that much, which is brought up to date."""
    state = {name: value for name, value in seen.items() if name != "log"}
    if state == sent["state"] and seen["log"] == sent["log"] and not lines:
        return ""
    data = {**state, "metrics": lines}
    if seen["log"] != sent["log"]:
        data["log"] = seen["log"]
    sent.update(state=state, log=seen["log"])
    return f"id: {after}\nevent: state\ndata: {json.dumps(data)}\n\n"


def _read(run_id: int, after: int) -> tuple[dict[str, Any], Origin, list[dict[str, Any]]]:
    run = Run.objects.filter(pk=run_id).first()
    if run is None:  # deleted meanwhile, by hand
        return {"is_active": False, "log": ""}, (0, None), []
    return {**state_of(run), "log": log_of(run)}, (run.attempt, run.snapshot_id), lines_after(run_id, after)
