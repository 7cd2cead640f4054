"""How much a model can read and write at once: its context, in tokens. Prompt and answer share it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from django.core.cache import cache
from django.utils.translation import gettext as _

from serving import database, gateway
from serving.client import Delta, Engine, EngineDown, EngineError, Usage, engines
from serving.models import Adapter

MIN_ROOM = 32  # tokens; a shorter answer says nothing
CACHE_SECONDS = 60


class TooLong(EngineError):
    """The conversation leaves no room for an answer; the message says what to do, for people."""

    def __init__(self) -> None:
        super().__init__(
            400,
            _(
                "This conversation has become longer than the model can read. Edit an earlier question to go on from there"
                " with less, or start a new chat."
            ),
        )


async def fitting(
    adapter: Adapter, messages: list[dict[str, str]], options: dict[str, Any]
) -> AsyncGenerator[Delta | Usage, None]:
    """`gateway.deltas`, with a shorter answer allowed where the longest one has no room any more. Raises what it raises,
    and TooLong.
    """
    try:
        async with aclosing(gateway.deltas(adapter, messages, **options)) as pieces:
            async for piece in pieces:
                yield piece
        return
    except EngineError as error:
        if error.status != 400:
            raise
        # Engines refuse a prompt together with an answer that may be too long. Asked only then: it takes a request.
        found = await database.run_long(room, adapter, messages)
        if found is None or found >= options.get("max_tokens", 1):
            raise  # the fault is another one
        if found < MIN_ROOM:
            raise TooLong from error
    async with aclosing(gateway.deltas(adapter, messages, **options | {"max_tokens": found})) as pieces:
        async for piece in pieces:
            yield piece


def room(adapter: Adapter, messages: list[dict[str, str]]) -> int | None:
    """How many tokens an answer to `messages` may have; None where no engine says so."""
    for engine in engines():
        try:
            n_tokens, size = engine.measure(adapter.engine_name, messages)
        except (EngineDown, EngineError):
            continue
        return size - n_tokens if size else None
    return None


def size() -> int | None:
    """Tokens that prompt and answer may have together, on the engine that allows least; None while none answers."""
    known: int | None = cache.get("context-size")
    if known is None:
        sizes = [found for engine in engines() if (found := _size(engine))]
        known = min(sizes, default=None)
        if known is not None:
            cache.set("context-size", known, CACHE_SECONDS)
    return known


def _size(engine: Engine) -> int | None:
    try:
        return engine.context()
    except (EngineDown, EngineError):
        return None
