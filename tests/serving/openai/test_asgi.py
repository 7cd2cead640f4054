"""Hostile requests, at the application itself: whatever comes, there is an answer in the one format, and nothing is left."""

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from django.conf import settings as site
from django.db import connection
from pytest_django import Settings

from alignapp.asgi import application
from serving import client, database, limits, routing
from serving.models import ApiKey, ServedRequest
from serving.openai import asgi
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("closed_connections")]
CHAT = "/v1/chat/completions"
GOOD = {"model": "current", "messages": [{"role": "user", "content": "Hi"}]}
Headers = list[tuple[bytes, bytes]]


class Sender:
    """One request's ASGI side: its body in chunks, and its leaving after so many sent messages (None: never)."""

    def __init__(self, chunks: list[bytes], leaves_after: int | None = None) -> None:
        self.messages: list[dict[str, Any]] = []
        more = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        self._coming: list[dict[str, Any]] = [*more, {"type": "http.request", "body": b"", "more_body": False}]
        self._leaves_after = leaves_after
        self._left = asyncio.Event()
        if leaves_after == 0:
            self._left.set()

    async def receive(self) -> dict[str, Any]:
        if self._coming:
            return self._coming.pop(0)
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if self._leaves_after is not None and len(self.messages) >= self._leaves_after:
            self._left.set()
        await asyncio.sleep(0)

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])


async def ask(
    method: str,
    path: str,
    headers: Headers,
    chunks: list[bytes],
    *,
    query: bytes = b"",
    leaves_after: int | None = None,
) -> Sender:
    sender = Sender(chunks, leaves_after)
    scope = {
        "type": "http", "method": method, "path": path, "root_path": "", "query_string": query,
        "headers": [(b"host", b"localhost"), *headers], "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await application(scope, sender.receive, sender.send)
    return sender


def bearer(shown_key: str) -> Headers:
    return [(b"authorization", f"Bearer {shown_key}".encode())]


async def check_nothing_left(key: ApiKey) -> None:
    """Soon: a sender who leaves while the end is written is not waited for, and it is written all the same."""
    for _ in range(10_000):
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if not others and not limits.n_running(key):
            break
        await asyncio.sleep(0.001)
    assert not others
    assert limits.n_running(key) == 0
    assert [routing.n_running(engine) for engine in client.engines()] == [0]


# --- nonsense ---------------------------------------------------------------------------------------------------------
class Nonsense:
    """Requests that are wrong in some way, from a seed."""

    def __init__(self, seed: int, shown_key: str) -> None:
        self.random, self.shown_key = random.Random(seed), shown_key

    def value(self, depth: int = 0) -> Any:
        simple: list[Any] = [
            None, True, False, 0, -1, 1, 2**31, 2**70, 1e308, 0.5, "", "x", "\x00", "\ud800", "😀" * 50, "current", "a" * 3000,
        ]  # fmt: skip
        choice = self.random.randrange(10)
        if depth > 3 or choice < 6:
            return self.random.choice(simple)
        many = range(self.random.randrange(4))
        if choice < 8:
            return [self.value(depth + 1) for _ in many]
        return {str(self.value(9)): self.value(depth + 1) for _ in many}

    def body(self) -> bytes:
        kind = self.random.randrange(8)
        if kind == 0:
            return self.random.randbytes(self.random.randrange(300))
        if kind == 1:
            return b"[" * self.random.choice([5, 900, 5000, 100_000]) + b"1"
        if kind == 2:
            return b'{"a":' * self.random.choice([5, 17, 980, 50_000]) + b"1" + b"}" * 5
        if kind == 3:
            return self.random.choice(
                [b"NaN", b'{"n": NaN}', b"1" * 5000, b"", b"null", b'{"model": "\xff"}', b"\xef\xbb\xbf{}"]
            )
        body = dict(GOOD)
        names = [
            "model",
            "messages",
            "stream",
            "stream_options",
            "n",
            "max_tokens",
            "user",
            "prompt",
            "logit_bias",
            "x\x00",
        ]
        for name in self.random.sample(names, self.random.randrange(1, 5)):
            body[name] = self.value()
        raw = json.dumps(body).encode()
        return raw[: self.random.randrange(len(raw))] if kind == 4 else raw

    def headers(self) -> Headers:
        header = self.random.choice(
            [b"Bearer %s", b"bearer  %s", b"Basic %s", b"%s", b"Bearer %s extra", b"\xff\xfe%s", b"Bearer \x00%s", b""]
        )
        shown = header % self.shown_key.encode() if b"%s" in header else header
        good = [(b"authorization", f"Bearer {self.shown_key}".encode())]
        found = good if self.random.random() < 0.7 else [(b"authorization", shown)]
        odd = [(b"x-request-id", self.random.randbytes(20)), (b"content-type", b"text/\xff"), (b"content-length", b"-5"),
               (b"transfer-encoding", b"gzip"), (b"x_evil", b"1"), (b"cookie", b"sessionid=x"), (b"host", b"evil")]  # fmt: skip
        return [*found, *self.random.sample(odd, self.random.randrange(3))]

    def path(self) -> str:
        odd = [
            "/v1", "/v1/", "/v1//models", "/v1/models/%00", "/v1/models/\x00", "/v1/models/\ud800", "/v1/models/" + "a" * 5000,
            "/v1/models/current/x", "/v1/\udcff", "/v1/chat/completions/", "/v1/models", "/v1/models/base", "/v1/admin/",
            "/v1/\n", "/v1/models/a\nb",
        ]  # fmt: skip
        return self.random.choice([CHAT, CHAT, CHAT, "/v1/completions", self.random.choice(odd)])

    async def ask(self) -> Sender:
        method = self.random.choice(["POST"] * 8 + ["GET", "PUT", "HEAD", "OPTIONS", "BREW"])
        raw = self.body()
        cuts = sorted(self.random.randrange(len(raw) + 1) for _ in range(self.random.randrange(3)))
        chunks = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        leaves_after = self.random.choice([None, None, None, 0, 1, 2])
        query = self.random.choice([b"", b"a=%ff", b"\xff\xfe", b"a" * 5000])
        return await ask(method, self.path(), self.headers(), chunks, query=query, leaves_after=leaves_after)


@pytest.fixture
def no_limits(settings: Settings) -> None:
    settings.KEY_REQUESTS_PER_MINUTE = settings.KEY_TOKENS_PER_MINUTE = 0
    settings.KEY_MAX_CONCURRENT = 1000


@pytest.mark.parametrize("seed", range(4))
async def test_it_answers_nonsense(
    seed: int, engine: ScriptedEngine, shown_key: str, key: ApiKey, no_limits: None
) -> None:
    nonsense = Nonsense(seed, shown_key)
    seen: dict[int | None, int] = {}
    for _ in range(100):
        for sender in await asyncio.gather(*(nonsense.ask() for _ in range(10))):
            seen[sender.status] = seen.get(sender.status, 0) + 1
            if sender.status is None:
                continue  # it left before there was an answer
            assert sender.status in (200, 400, 401, 404, 405, 413), sender.body
            is_stream = sender.headers[b"content-type"].startswith(b"text/event-stream")
            assert is_stream or sender.headers[b"content-type"] == b"application/json"
            if sender.status != 200 and sender.body:
                assert set(json.loads(sender.body)["error"]) == {"message", "type", "param", "code"}
    await check_nothing_left(key)
    assert {200, 400, 401, 404, 405} <= seen.keys()


# --- leaving ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("is_stream", [False, True])
async def test_it_gives_back_what_a_request_holds_whenever_its_sender_leaves(
    is_stream: bool, engine: ScriptedEngine, shown_key: str, key: ApiKey, no_limits: None
) -> None:
    """In whichever turn of the event loop that is: while it is admitted, asked, answered, settled."""
    body = json.dumps({**GOOD, "stream": is_stream}).encode()
    n_answered = 0
    for n_turns in [*range(60), *range(60, 300, 8)]:
        sender = Sender([body])

        async def leave(sender: Sender = sender, n_turns: int = n_turns) -> None:
            for _ in range(n_turns):
                await asyncio.sleep(0.0002)
            sender._left.set()

        scope = {
            "type": "http", "method": "POST", "path": CHAT, "query_string": b"", "client": None, "server": None,
            "headers": [(b"host", b"localhost"), *bearer(shown_key)],
        }  # fmt: skip
        await asyncio.gather(application(scope, sender.receive, sender.send), leave())
        n_answered += sender.status == 200
        await check_nothing_left(key)
    outcomes = [row.outcome async for row in ServedRequest.objects.all()]
    assert set(outcomes) <= {"done", "cancelled"}
    assert n_answered <= len(outcomes)


async def test_it_ends_a_request_whose_handler_is_cancelled(
    engine: ScriptedEngine, shown_key: str, key: ApiKey
) -> None:
    """As the server does with those that are left when it stops."""
    engine.hold.clear()
    body = json.dumps({**GOOD, "stream": True}).encode()
    task = asyncio.create_task(ask("POST", CHAT, bearer(shown_key), [body]))
    assert await asyncio.to_thread(engine.asked.wait, 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await check_nothing_left(key)
    assert [row.outcome async for row in ServedRequest.objects.all()] == ["cancelled"]


class Admission:
    """Queries wait from the first one on until `goes_on`: a request is being admitted, and has taken nothing yet."""

    def __init__(self) -> None:
        self.has_begun, self.goes_on = threading.Event(), threading.Event()

    def hold(self, execute: Callable[..., Any], *query: Any) -> Any:
        self.has_begun.set()
        self.goes_on.wait(20)
        return execute(*query)


async def in_each_thread(function: Callable[[], None]) -> None:
    """Of the database's."""
    meeting = threading.Barrier(database.N_THREADS, timeout=10)

    def meet() -> None:
        meeting.wait()
        function()

    await asyncio.gather(*(database.run(meet) for _ in range(database.N_THREADS)))


@pytest.fixture
async def admission() -> AsyncIterator[Admission]:
    admission = Admission()
    await in_each_thread(lambda: connection.execute_wrappers.append(admission.hold))
    yield admission
    admission.goes_on.set()
    await in_each_thread(connection.execute_wrappers.clear)


async def test_it_ends_a_request_that_is_cancelled_twice_while_it_is_admitted(
    engine: ScriptedEngine, shown_key: str, key: ApiKey, admission: Admission
) -> None:
    """Its sender leaves, and the server stops."""
    task = asyncio.create_task(ask("POST", CHAT, bearer(shown_key), [json.dumps(GOOD).encode()], leaves_after=0))
    assert await asyncio.to_thread(admission.has_begun.wait, 10)
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    admission.goes_on.set()
    await asyncio.gather(task, return_exceptions=True)
    for _ in range(10_000):
        if await ServedRequest.objects.aexists():
            break
        await asyncio.sleep(0.001)
    await check_nothing_left(key)


# --- slow and large ---------------------------------------------------------------------------------------------------
async def test_it_does_not_wait_for_ever_for_a_body(
    engine: ScriptedEngine, shown_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.05)
    sender = Sender([])
    sender._coming = []
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": bearer(shown_key)}
    await application(scope, sender.receive, sender.send)
    assert sender.status == 408
    assert json.loads(sender.body)["error"]["code"] == "request_timeout"


async def test_it_reads_no_more_of_a_body_than_it_may_have(engine: ScriptedEngine, shown_key: str) -> None:
    chunk = b"x" * 100_000
    sender = Sender([chunk] * 200)
    scope = {
        "type": "http", "method": "POST", "path": CHAT, "query_string": b"",
        "headers": [(b"host", b"localhost"), *bearer(shown_key)],
    }  # fmt: skip
    left = [0]

    async def receive() -> dict[str, Any]:
        if not sender.messages:
            left[0] = len(sender._coming)
        return await sender.receive()

    await application(scope, receive, sender.send)
    assert sender.status == 413
    assert left[0] > 200 - 2 * site.MAX_PROMPT_BYTES // len(chunk)


async def test_it_does_not_wait_for_ever_for_a_reader(
    engine: ScriptedEngine, shown_key: str, key: ApiKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its connection open and reads nothing."""
    monkeypatch.setattr(asgi, "UNREAD_SECONDS", 0.05)
    sender = Sender([json.dumps({**GOOD, "stream": True}).encode()])
    scope = {
        "type": "http", "method": "POST", "path": CHAT, "query_string": b"",
        "headers": [(b"host", b"localhost"), *bearer(shown_key)],
    }  # fmt: skip

    async def send(message: dict[str, Any]) -> None:
        if sender.messages:
            await asyncio.Event().wait()
        await sender.send(message)

    async with asyncio.timeout(20):
        await application(scope, sender.receive, send)
    assert sender.status == 200
    await check_nothing_left(key)
