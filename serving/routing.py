"""Which engine is asked first: what this process remembers of each, for seconds.

Nothing is ever ruled out: an engine that was down a moment ago is asked last, not never. So an engine that comes back is
found by the next request, and a site with one engine behaves as if there were no memory.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

from serving.client import Engine, EngineDown, EngineError, EngineGone, EngineSlow

LONGEST_DOWN = 8.0  # seconds; after 1, 2, 4 … without an answer it is asked first again
BUSY = 1.0
LACKS = 5.0  # an engine that lacked a version may have been given it


@dataclass
class _Memory:
    n_running: int = 0  # requests of this process that it is at work on
    n_failures: int = 0  # to connect, since it last answered
    down_until: float = 0.0  # monotonic seconds
    busy_until: float = 0.0
    lacks_until: dict[str, float] = field(default_factory=dict)  # by version


_memories: defaultdict[str, _Memory] = defaultdict(_Memory)


def in_order(candidates: list[Engine], version: str) -> list[Engine]:
    """Those believed to be up, to hold the version and to have room come first; of these, the one least at work."""
    now = monotonic()

    def rank(engine: Engine) -> tuple[bool, bool, bool, int]:
        memory = _memories[engine.url]
        is_without = memory.lacks_until.get(version, 0.0) > now
        return memory.down_until > now, is_without, memory.busy_until > now, memory.n_running

    return sorted(random.sample(candidates, len(candidates)), key=rank)


@contextmanager
def at_work(engine: Engine) -> Iterator[None]:
    """Counts a request while it is with the engine."""
    memory = _memories[engine.url]
    memory.n_running += 1
    try:
        yield
    finally:
        memory.n_running -= 1


def n_running(engine: Engine) -> int:
    return _memories[engine.url].n_running


def remember(engine: Engine, version: str, failure: EngineDown | EngineError | None) -> None:
    """What the engine's last answer says of it; None: it answered with this version."""
    memory, now = _memories[engine.url], monotonic()
    if isinstance(failure, EngineDown) and not isinstance(failure, EngineSlow | EngineGone):
        memory.n_failures += 1
        memory.down_until = now + min(2.0 ** (memory.n_failures - 1), LONGEST_DOWN)
        return
    memory.n_failures, memory.down_until = 0, 0.0
    status = failure.status if isinstance(failure, EngineError) else None
    if status == 404:
        memory.lacks_until = {name: until for name, until in memory.lacks_until.items() if until > now}
        memory.lacks_until[version] = now + LACKS
    else:
        memory.lacks_until.pop(version, None)
    memory.busy_until = now + BUSY if status == 429 else 0.0


def is_worth_another(failure: EngineDown | EngineError) -> bool:
    """Whether another engine may do better. One that took the request and is silent may be at work on it still."""
    if isinstance(failure, EngineError):
        return failure.status in (404, 429)
    return not isinstance(failure, EngineSlow)
