"""Writes an answer of a conversation from its first word to its end, whatever that is, into its row and the request log."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext as _

from serving import branches, chat, context, database, gateway, requests
from serving.client import Delta, EngineDown, EngineError, Usage
from serving.models import Adapter, Message


@dataclass
class _Progress:
    text: str = ""  # all of it, with what was there before
    before: dict[str, Any] = field(default_factory=dict)  # usage, of an answer that is continued
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    finish_reason: str = ""
    n_pieces: int = 0
    usage: Usage | None = None

    def add(self, piece: Delta | Usage) -> None:
        if isinstance(piece, Usage):
            self.usage = piece
            return
        if self.first_token is None:
            self.first_token = time.monotonic()
        self.text += piece.text
        self.n_pieces += bool(piece.text)
        self.finish_reason = piece.finish_reason or self.finish_reason

    def counted(self) -> Usage:
        """As the engine counted. One that was left before its end says nothing: a piece has at least a token."""
        return self.usage or Usage(0, self.n_pieces)

    def measured(self) -> dict[str, Any]:
        """What is stored as Message.usage; times in seconds since the request was sent."""
        now = time.monotonic()
        measured: dict[str, Any] = {"seconds": round(now - self.started, 3), "finish_reason": self.finish_reason}
        if self.first_token is not None:
            measured["seconds_to_first_token"] = round(self.first_token - self.started, 3)
        if self.usage:
            measured |= {"prompt_tokens": self.usage.prompt_tokens, "cached_tokens": self.usage.cached_tokens}
        if n_tokens := self.counted().completion_tokens:
            measured["completion_tokens"] = n_tokens
        return _summed(self.before, measured) if self.before else measured


def _summed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Of an answer written in parts. What a later part read again of those before is no prompt."""
    total, written = before | now, before.get("completion_tokens", 0)
    if not written:
        return total
    total["seconds"] = round(before.get("seconds", 0.0) + now["seconds"], 3)
    if "seconds_to_first_token" in before:
        # Both waits, so that the speed is that of writing. A part without a word was nothing else.
        waits = before["seconds_to_first_token"] + now.get("seconds_to_first_token", now["seconds"])
        total["seconds_to_first_token"] = round(waits, 3)
    total["completion_tokens"] = written + now.get("completion_tokens", 0)
    if "prompt_tokens" in now:
        total["prompt_tokens"] = before.get("prompt_tokens", max(now["prompt_tokens"] - written, 0))
    return total


async def write(answer: Message) -> AsyncGenerator[str, None]:
    """Yields the text of a claimed answer as it grows, and writes the row to the end, however that comes:

    COMPLETE; STOPPED when the reader leaves (the generator is closed or cancelled); FAILED, with words, when the engine
    does. The text so far is kept in each case, and the request log says the same.
    """
    progress, served, status, error = _Progress(answer.content, answer.usage), None, Message.Status.STOPPED, ""
    try:
        adapter = _adapter(answer)
        messages, options, served = await database.run(_admit, answer, adapter)
        async with aclosing(context.fitting(adapter, messages, {**options, "served": served})) as pieces:
            async for piece in pieces:
                progress.add(piece)
                if isinstance(piece, Delta):
                    yield progress.text
        status = Message.Status.COMPLETE
        served.note_done()
    except (EngineDown, EngineError) as failure:
        status, error = Message.Status.FAILED, in_words(failure, is_begun=progress.first_token is not None)
        if served:
            served.note_failure(failure)
    finally:
        # Shielded: a reader who leaves cancels this task, and may do so twice.
        await asyncio.shield(database.run(_finish, answer, status, progress, error, served))


def in_words(failure: EngineDown | EngineError, *, is_begun: bool) -> str:
    """What happened and what to do, for the reader of an answer."""
    if isinstance(failure, context.TooLong):
        return failure.message
    if isinstance(failure, EngineError) and failure.is_full:
        return _(
            "The model server has no place for this version now. Try again in a minute, or choose another version."
        )
    return gateway.in_words(failure, is_begun=is_begun)


def _admit(answer: Message, adapter: Adapter) -> tuple[list[dict[str, str]], dict[str, Any], requests.Served]:
    return *branches.sent(answer), requests.of_page(answer, adapter)


def _finish(answer: Message, status: str, progress: _Progress, error: str, served: requests.Served | None) -> None:
    chat.finish(answer.pk, status, progress.text, progress.measured(), error)
    if served:
        served.first_token, served.usage = progress.first_token, progress.counted()
        requests.record(served)


def _adapter(answer: Message) -> Adapter:
    if answer.adapter is None:
        raise EngineError(404, _("The version that was asked no longer exists."))
    return answer.adapter
