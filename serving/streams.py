"""Answers as server-sent events: sanitised HTML that grows, keep-alive comments, and what there is to say at the end."""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from serving import chat, database, writing
from serving.client import EngineDown, EngineError
from serving.growing import presentable
from serving.models import Message
from serving.rendering import to_html

PING = ": ping\n\n"
PING_SECONDS = 10.0  # well below the idle time-out of any proxy
# Between two snapshots: a longer text takes longer to render and to send.
SNAPSHOT_SECONDS = 0.1
SNAPSHOT_SECONDS_PER_CHAR = 1 / 40_000
MAX_SNAPSHOT_SECONDS = 0.4  # beyond it, a page does not seem to write


async def events(message_id: uuid.UUID, end: Callable[[uuid.UUID], dict[str, Any]]) -> AsyncGenerator[str, None]:
    """Writes the answer while somebody reads. Events: `text` {"html": all of it so far}, then `end` with what `end`
    returns for the message. An answer that is written elsewhere, or finished, has only its `end`.
    """
    answer = await _claim(message_id)
    if answer is not None:
        async with aclosing(_growing(writing.write(answer))) as snapshots:
            async for snapshot in snapshots:
                yield snapshot
    yield _event("end", await database.run(end, message_id))


async def _claim(message_id: uuid.UUID) -> Message | None:
    """As chat.claim; when the reader leaves meanwhile, the claimed answer is STOPPED."""
    claiming = database.run(chat.claim, message_id)
    try:
        return await asyncio.shield(claiming)
    except asyncio.CancelledError:
        await asyncio.shield(_stop_claimed(claiming))
        raise


async def _stop_claimed(claiming: Awaitable[Message | None]) -> None:
    if answer := await claiming:
        await database.run(chat.finish, answer.pk, Message.Status.STOPPED, answer.content, answer.usage)


async def passing(texts: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The same for a text that no row keeps. Its `end` is {"html": all of it, "error": why there is no more, or ""}."""
    whole, error = "", ""

    async def kept() -> AsyncGenerator[str, None]:
        nonlocal whole
        async with aclosing(texts):
            async for whole in texts:
                yield whole

    try:
        async with aclosing(_growing(kept())) as snapshots:
            async for snapshot in snapshots:
                yield snapshot
    except (EngineDown, EngineError) as failure:
        error = writing.in_words(failure, is_begun=bool(whole))
    yield _event("end", {"html": await asyncio.to_thread(to_html, whole), "error": error})


async def _growing(texts: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    async with aclosing(paced(texts)) as snapshots:
        async for text in snapshots:
            if text is None:
                yield PING
            else:
                yield _event("text", {"html": await asyncio.to_thread(_html, text)})


def _html(text: str) -> str:
    return to_html(presentable(text))


async def paced(texts: AsyncGenerator[str, None]) -> AsyncGenerator[str | None, None]:
    """The newest of `texts` at a rate that a page can follow, the last one always; None after PING_SECONDS of silence.

    `texts` is read as fast as it comes, so a slow reader never holds an engine back.
    """
    latest, changed = "", asyncio.Event()

    async def read() -> None:
        nonlocal latest
        try:
            async for text in texts:
                latest = text
                changed.set()
        finally:
            await texts.aclose()

    reader, shown = asyncio.create_task(read()), ""
    reader.add_done_callback(lambda _: changed.set())
    try:
        while not (reader.done() and latest == shown):
            try:
                # Not wait_for: before Python 3.12 it swallows a cancellation that comes together with a text.
                async with asyncio.timeout(PING_SECONDS):
                    await changed.wait()
            except TimeoutError:
                yield None
                continue
            changed.clear()
            if latest != shown:
                shown = latest
                yield shown
            pause = SNAPSHOT_SECONDS + len(shown) * SNAPSHOT_SECONDS_PER_CHAR
            await asyncio.wait({reader}, timeout=min(pause, MAX_SNAPSHOT_SECONDS))
        await reader  # what went wrong in there is raised here
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
