"""An answer as server-sent events: sanitised HTML that grows, keep-alive comments, and the finished turn."""

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from serving import chat, gateway
from serving.rendering import to_html

PING = ": ping\n\n"
PING_SECONDS = 10.0  # well below the idle time-out of any proxy
# Between two snapshots: a longer text takes longer to render and to send.
SNAPSHOT_SECONDS = 0.1
SNAPSHOT_SECONDS_PER_CHAR = 1 / 10_000


async def events(message_id: uuid.UUID, end: Callable[[uuid.UUID], dict[str, Any]]) -> AsyncGenerator[str, None]:
    """Writes the answer while somebody reads. Events: `text` {"html": all of it so far}, then `end` with what `end`
    returns for the message. An answer that is written elsewhere, or finished, has only its `end`.
    """
    answer = await gateway.in_database(chat.claim, message_id)
    if answer is not None:
        async with aclosing(paced(gateway.write(answer))) as texts:
            async for text in texts:
                yield PING if text is None else _event("text", {"html": await asyncio.to_thread(to_html, text)})
    yield _event("end", await gateway.in_database(end, message_id))


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
            changed.set()
            await texts.aclose()

    reader, shown = asyncio.create_task(read()), ""
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
            await asyncio.wait({reader}, timeout=SNAPSHOT_SECONDS + len(shown) * SNAPSHOT_SECONDS_PER_CHAR)
        await reader  # what went wrong in there is raised here
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
