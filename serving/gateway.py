"""Streams an answer from an engine, on the version that it was admitted with, and records how it ended.

`deltas` is the core: one request, pinned to one version, on whichever engine holds it. `write` answers a message of a
conversation with it. No database connection is held while tokens flow.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import connections
from django.utils.translation import gettext as _

from serving import adapters, chat
from serving.client import Delta, Engine, EngineDown, EngineError, Usage, engines
from serving.models import Adapter, Message

Pieces = AsyncGenerator[Delta | Usage, None]
Result = TypeVar("Result")


# --- one request ------------------------------------------------------------------------------------------------------
async def deltas(adapter: Adapter, messages: list[dict[str, str]], **sampling: Any) -> Pieces:
    """The pieces of one answer by exactly this version, then its Usage. Raises EngineDown, EngineError.

    Closing the generator ends the request in the engine. After the first piece no other engine is tried: a sequence
    never changes engine or version.
    """
    first, rest = await _begin(adapter, messages, sampling)
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def _begin(
    adapter: Adapter, messages: list[dict[str, str]], sampling: dict[str, Any]
) -> tuple[Delta | Usage, Pieces]:
    """The first piece and the rest. When every engine that answers lacks the version (they were restarted), it is loaded
    and they are asked once more.
    """
    try:
        return await _begin_anywhere(engines(), adapter, messages, sampling)
    except EngineError as error:
        if error.status != 404:
            raise
    holders = await in_database(adapters.ensure_loaded, adapter)
    return await _begin_anywhere(holders, adapter, messages, sampling)


async def _begin_anywhere(
    candidates: list[Engine], adapter: Adapter, messages: list[dict[str, str]], sampling: dict[str, Any]
) -> tuple[Delta | Usage, Pieces]:
    """Asks the engines in random order until one begins to answer; a refusal of the request itself is final."""
    failure: Exception = EngineDown()
    for engine in random.sample(candidates, len(candidates)):
        pieces = engine.stream_chat(adapter.engine_name, messages, **sampling)
        try:
            return await anext(pieces), pieces
        except StopAsyncIteration:
            failure = EngineError(500, _("The model server sent an empty answer."))
        except EngineDown as error:
            # "No such model" of another engine says more: that one is up, and can be given the version.
            failure = failure if isinstance(failure, EngineError) else error
        except EngineError as error:
            if error.status not in (404, 429):
                raise
            failure = error
    raise failure


async def in_database(function: Callable[..., Result], *args: Any) -> Result:
    """Runs it in the request's thread, and gives its database connection back at once."""

    def run() -> Result:
        try:
            return function(*args)
        finally:
            for connection in connections.all(initialized_only=True):
                if not connection.in_atomic_block:  # else it is the caller's
                    connection.close_if_unusable_or_obsolete()

    return await sync_to_async(run)()


# --- one message ------------------------------------------------------------------------------------------------------
@dataclass
class _Progress:
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    parts: list[str] = field(default_factory=list)
    finish_reason: str = ""
    usage: Usage | None = None

    def add(self, piece: Delta | Usage) -> None:
        if isinstance(piece, Usage):
            self.usage = piece
            return
        if self.first_token is None:
            self.first_token = time.monotonic()
        self.parts.append(piece.text)
        self.finish_reason = piece.finish_reason or self.finish_reason

    def text(self) -> str:
        return "".join(self.parts)

    def measured(self) -> dict[str, Any]:
        """What is stored as Message.usage; times in seconds since the request was sent."""
        now = time.monotonic()
        measured: dict[str, Any] = {"seconds": round(now - self.started, 3), "finish_reason": self.finish_reason}
        if self.first_token is not None:
            measured["seconds_to_first_token"] = round(self.first_token - self.started, 3)
        if self.usage:
            measured |= {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
                "cached_tokens": self.usage.cached_tokens,
            }
        return measured


async def write(answer: Message) -> AsyncGenerator[str, None]:
    """Yields the text of a claimed answer as it grows, and writes the row to the end, however that comes:

    COMPLETE; STOPPED when the reader leaves (the generator is closed or cancelled); FAILED, with words, when the engine
    does. The text so far is kept in each case.
    """
    progress, status, error = _Progress(), Message.Status.STOPPED, ""
    try:
        messages = await in_database(chat.history, answer)
        async with aclosing(deltas(_adapter(answer), messages, **answer.sampling)) as pieces:
            async for piece in pieces:
                progress.add(piece)
                if isinstance(piece, Delta):
                    yield progress.text()
        status = Message.Status.COMPLETE
    except (EngineDown, EngineError) as failure:
        status, error = Message.Status.FAILED, in_words(failure, is_begun=bool(progress.parts))
    finally:
        # Shielded: a reader who leaves cancels this task, and may do so twice.
        await asyncio.shield(_record(answer, status, progress, error))


async def _record(answer: Message, status: str, progress: _Progress, error: str) -> None:
    await in_database(chat.finish, answer.pk, status, progress.text(), progress.measured(), error)


def _adapter(answer: Message) -> Adapter:
    if answer.adapter is None:
        raise EngineError(404, _("The version that was asked no longer exists."))
    return answer.adapter


def in_words(failure: EngineDown | EngineError, *, is_begun: bool) -> str:
    """What happened and what to do, for the reader of an answer."""
    if isinstance(failure, EngineError):
        return _("The model server refused: %s") % failure.message
    if is_begun:
        return _("The model server stopped in the middle of this answer. Regenerate to ask again.")
    return _("The model server is starting; try again in a few seconds.")
