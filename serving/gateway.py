"""The way to an engine and back: one request, pinned to the version that it was admitted with, on whichever engine holds
that version.

Until the first token another engine may be tried; from then on a sequence never changes engine or version. `events` and
`whole` pass on what the engine says, for programs; `deltas` reads it, for pages. No database connection is held while
tokens flow.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from django.utils.translation import gettext as _

from serving import adapters, database, routing
from serving.client import Delta, Engine, EngineDown, EngineError, EngineGone, Usage, engines, error_of, pieces
from serving.models import Adapter
from serving.requests import Served

CHAT = "/v1/chat/completions"
MAX_RELOADS = (
    3  # of one version for one request: each time, so many publications came in between that it was pushed out
)
Batches = AsyncGenerator[list[str], None]
Result = TypeVar("Result")


# --- one request ------------------------------------------------------------------------------------------------------
async def deltas(
    adapter: Adapter, messages: list[dict[str, str]], *, served: Served | None = None, **sampling: Any
) -> AsyncGenerator[Delta | Usage, None]:
    """The pieces of one answer by exactly this version, then its Usage. Raises EngineDown, EngineError.

    Closing the generator ends the request in the engine.
    """
    asked = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}, **sampling}
    async with aclosing(events(adapter, CHAT, asked, served)) as batches:
        async for batch in batches:
            for data in batch:
                for piece in pieces(data):
                    yield piece


async def events(adapter: Adapter, path: str, asked: dict[str, Any], served: Served | None = None) -> Batches:
    """The data of the events of a streamed answer, as they come; nothing comes before the first token is there.

    Raises what `whole` does. Closing the generator ends the request in the engine.
    """
    body, caller = _body(adapter, asked), _caller(served)
    engine, held, rest = await _anywhere(adapter, lambda engine: _opened(engine, engine.events(path, body, caller)))
    if served:
        served.engine = engine.url
        served.note_token()
    async with aclosing(rest):
        yield held
        async for batch in rest:
            yield batch


async def whole(adapter: Adapter, path: str, asked: dict[str, Any], served: Served | None = None) -> bytes:
    """The answer to a request that is not streamed. Raises EngineDown, EngineError; cancelled, it ends in the engine."""
    body, caller = _body(adapter, asked), _caller(served)

    async def ask(engine: Engine) -> tuple[Engine, bytes]:
        with routing.at_work(engine):
            return engine, await engine.ask(path, body, caller)

    engine, answer = await _anywhere(adapter, ask)
    if served:
        served.engine = engine.url  # when its first token was there, nobody knows
    return answer


def _caller(served: Served | None) -> str:
    if served is None:
        return ""
    served.is_asked = True
    return served.caller


def _body(adapter: Adapter, asked: dict[str, Any]) -> bytes:
    return json.dumps({**asked, "model": adapter.engine_name}, separators=(",", ":")).encode()


# --- engines ----------------------------------------------------------------------------------------------------------
async def _anywhere(adapter: Adapter, ask: Callable[[Engine], Awaitable[Result]]) -> Result:
    """What the first engine that begins to answer says. When all that answer lack the version (they were restarted, or
    publications have pushed it out since), it is loaded and they are asked again.
    """
    candidates = engines()
    for _try in range(MAX_RELOADS):
        try:
            return await _first(candidates, adapter, ask)
        except EngineError as error:
            if error.status != 404:
                raise
        candidates = await _loaded(adapter)
    return await _first(candidates, adapter, ask)


async def _first(candidates: list[Engine], adapter: Adapter, ask: Callable[[Engine], Awaitable[Result]]) -> Result:
    """Asks one engine after the other; a refusal of the request itself is final. One that hung up is asked
    again; the request ends with the second time, for it may be what ends the engines.
    """
    waiting, failures = routing.in_order(candidates, adapter.engine_name), []
    has_hung_up = False
    while waiting:
        engine = waiting.pop(0)
        try:
            result = await ask(engine)
        except (EngineDown, EngineError) as failure:
            routing.remember(engine, adapter.engine_name, failure)
            if not routing.is_worth_another(failure):
                raise
            failures.append(failure)
            if isinstance(failure, EngineGone):
                if has_hung_up:
                    raise
                has_hung_up = True
                waiting.append(engine)
        else:
            routing.remember(engine, adapter.engine_name, None)
            return result
    raise _most_telling(failures)


def _most_telling(failures: list[EngineDown | EngineError]) -> EngineDown | EngineError:
    """ "No such model" comes first: that engine is up, and can be given the version."""
    refusals = sorted((f for f in failures if isinstance(f, EngineError)), key=lambda failure: failure.status)
    return (refusals or failures or [EngineDown()])[0]


async def _opened(engine: Engine, batches: Batches) -> tuple[Engine, list[str], Batches]:
    """The events up to the first token, and the rest."""
    rest, held = _at_work(engine, batches), list[str]()
    try:
        async for batch in rest:
            held += batch
            if any(_has_token(data) for data in batch):
                return engine, held, rest
    except BaseException:
        await rest.aclose()
        raise
    raise EngineError(500, _("The model server sent an empty answer."))


async def _at_work(engine: Engine, batches: Batches) -> Batches:
    with routing.at_work(engine):
        async with aclosing(batches):
            async for batch in batches:
                yield batch


def _has_token(data: str) -> bool:
    """Whether the event has a piece of an answer in it, or an answer's end. Raises EngineError when it is an error."""
    try:
        event = json.loads(data)
        if "error" in event:
            raise error_of(data)
        return any(
            choice.get("finish_reason") or choice.get("text") or (choice.get("delta") or {}).get("content")
            for choice in event.get("choices", [])
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise EngineError(500, _("The model server's answer does not follow the protocol.")) from error


_loading: dict[tuple[asyncio.AbstractEventLoop, int], asyncio.Task[list[Engine]]] = {}


async def _loaded(adapter: Adapter) -> list[Engine]:
    """The engines that hold the version now. Of many requests that miss it at once, one has it loaded for all."""
    key = (asyncio.get_running_loop(), adapter.pk)
    if key not in _loading:
        _loading[key] = asyncio.create_task(database.run_long(adapters.ensure_loaded, adapter))
        _loading[key].add_done_callback(lambda _task: _loading.pop(key, None))
    return await asyncio.shield(_loading[key])


def in_words(failure: EngineDown | EngineError, *, is_begun: bool) -> str:
    """What happened and what to do, for the reader of an answer."""
    if isinstance(failure, EngineError):
        return _("The model server refused: %s") % failure.message
    if is_begun:
        return _("The model server stopped in the middle of this answer. Regenerate to ask again.")
    return _("The model server is starting; try again in a few seconds.")
