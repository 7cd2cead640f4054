"""Streams of the chat page as its readers see them: what they cost, and those that end before they began. What one answer
goes through is in test_gateway.py.
"""

import asyncio
import threading
from typing import Any

import psutil
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection
from django.test import AsyncClient
from django.urls import reverse

from alignapp.asgi import application
from serving import chat, database, streams
from serving.models import Message
from serving.sampling import Settings
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("engine", "closed_connections")]
N_READERS = 30


class Reader:
    """A browser that reads one answer of the site's own application."""

    def __init__(self, answer: Message, session: str, language: str = "en") -> None:
        headers = [("host", "localhost"), ("cookie", f"sessionid={session}"), ("accept-language", language)]
        self._scope = {
            "type": "http", "method": "GET", "path": reverse("message_stream", args=[answer.pk]), "root_path": "",
            "query_string": b"", "headers": [(name.encode(), value.encode()) for name, value in headers],
        }  # fmt: skip
        self._is_asked = False
        self.has_text = asyncio.Event()
        self.body = b""

    async def read(self) -> None:
        await application(self._scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._is_asked:
            await asyncio.Event().wait()  # it stays
        self._is_asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message: dict[str, Any]) -> None:
        self.body += message.get("body", b"")
        if b"event: text" in self.body:
            self.has_text.set()


def asked(ada: User, n: int) -> list[Message]:
    settings = Settings("", {"temperature": 0.5})
    return [chat.start(ada, f"Hi {i}", settings=settings).children.get() for i in range(n)]


def n_threads_of_requests() -> int:
    """Those that asgiref keeps for one request each."""
    return sum(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


def n_connections() -> int:
    """To the database, that this process holds now."""
    if connection.vendor == "sqlite":
        name = str(settings.DATABASES["default"]["NAME"])
        return sum(file.path == name for file in psutil.Process().open_files())
    stats = connection.pool.get_stats()  # type: ignore[attr-defined]
    return int(stats["pool_size"] - stats["pool_available"])


async def test_it_holds_neither_a_thread_nor_a_connection_for_a_reader(
    async_client: AsyncClient, engine: ScriptedEngine, ada: User
) -> None:
    await async_client.aforce_login(ada)
    session = async_client.cookies["sessionid"].value
    engine.hold.clear()
    n_threads = n_threads_of_requests()
    readers = [Reader(answer, session) for answer in await database.run(asked, ada, N_READERS)]
    reading = [asyncio.create_task(reader.read()) for reader in readers]
    await asyncio.gather(*(reader.has_text.wait() for reader in readers))
    for _ in range(1000):  # those that Django asked before the view end by themselves
        if n_threads_of_requests() <= n_threads:
            break
        await asyncio.sleep(0.01)
    assert n_threads_of_requests() <= n_threads
    # What the database's threads keep of SQLite's, what SQLite has closed and not let go of yet, and the test's own.
    assert n_connections() <= database.N_THREADS + settings.WEB_THREADS + 2 < N_READERS
    engine.hold.set()
    await asyncio.gather(*reading)
    assert all(b"event: end" in reader.body for reader in readers)


async def test_it_goes_on_in_the_language_of_its_reader(async_client: AsyncClient, ada: User) -> None:
    await async_client.aforce_login(ada)
    session = async_client.cookies["sessionid"].value
    answers = await database.run(asked, ada, 2)
    english, german = Reader(answers[0], session), Reader(answers[1], session, "de")
    await asyncio.gather(english.read(), german.read())
    assert b"<dd>0.5</dd>" in english.body
    assert b"<dd>0,5</dd>" in german.body


async def test_it_stops_the_answer_of_a_reader_who_leaves_while_it_is_claimed(ada: User) -> None:
    answer = await database.run(lambda: chat.start(ada, "Hi").children.get())

    def end(_pk: Any) -> dict[str, Any]:
        return {}

    events = streams.events(answer.pk, end)
    reading = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)  # it asks for the row
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await answer.arefresh_from_db()
    assert answer.status == Message.Status.STOPPED
