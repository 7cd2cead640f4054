"""People who vote, as an event loop: the smallest HTTP client that will do, since it shares the machine with the site."""

import asyncio
import json
import random
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

TOKEN = "c" * 32  # any token passes, as long as cookie and header agree


class Connection:
    """One kept-alive HTTP/1.1 connection of one logged-in person."""

    def __init__(self, port: int, session: str) -> None:
        self.port = port
        self.head = (
            f"Host: 127.0.0.1:{port}\r\nCookie: sessionid={session}; csrftoken={TOKEN}\r\nX-CSRFToken: {TOKEN}\r\n"
        )
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON. A connection that the server closed meanwhile is opened anew, once."""
        data = json.dumps(body).encode()
        request = (
            f"POST {path} HTTP/1.1\r\n{self.head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        try:
            return await self._exchange(request.encode() + data)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.streams = None
            return await self._exchange(request.encode() + data)

    async def _exchange(self, request: bytes) -> tuple[int, Any]:
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        body = await reader.readexactly(length)
        return int(head[9:12]), json.loads(body) if "json" in head else body[:60].decode(errors="replace")

    def close(self) -> None:
        if self.streams:
            self.streams[1].close()


@dataclass
class Measured:
    """Milliseconds of each request that was answered well, and what went wrong, by its first words."""

    seconds: float = 0.0
    next_ms: list[float] = field(default_factory=list)
    submit_ms: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def votes_per_s(self) -> float:
        return len(self.submit_ms) / self.seconds

    def fail(self, what: str) -> None:
        self.failures[what] = self.failures.get(what, 0) + 1


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def run(port: int, sessions: list[str], seconds: float, think: float = 0.0) -> Measured:
    """Everybody votes for `seconds`, thinking for `think` seconds (exponentially distributed) before each submit."""
    return asyncio.run(_run(port, sessions, seconds, think))


async def _run(port: int, sessions: list[str], seconds: float, think: float) -> Measured:
    measured = Measured()
    started = time.monotonic()
    everybody = [_vote(Connection(port, session), measured, started + seconds, think) for session in sessions]
    await asyncio.gather(*everybody)
    measured.seconds = time.monotonic() - started
    return measured


async def _vote(person: Connection, measured: Measured, ends: float, think: float) -> None:
    # People do not all connect in the same millisecond, in which one web process would accept them all.
    await asyncio.sleep(random.random() * (think or 0.5))
    while time.monotonic() < ends:
        asked = time.monotonic()
        status, answer = await person.post("/api/campaigns/open/leases/", {"n": 1, "undoable": False})
        if status != 200 or not answer["leases"]:
            measured.fail(f"next: {status} {str(answer)[:60]}")
            return
        measured.next_ms.append(1000 * (time.monotonic() - asked))
        if think:
            await asyncio.sleep(min(random.expovariate(1 / think), 5 * think))
        await _submit(person, answer["leases"][0], measured)
    person.close()


async def _submit(person: Connection, lease: dict[str, Any], measured: Measured) -> None:
    sent = time.monotonic()
    choice = {"verdict": "preference", "choice": random.choice(lease["order"]), "strength": random.randint(1, 3)}
    body = {"lease": lease["id"], "client_key": str(uuid.uuid4()), "order": lease["order"], "shown_ms": 900, **choice}
    status, answer = await person.post("/api/judgments/", body)
    if status == 201:
        measured.submit_ms.append(1000 * (time.monotonic() - sent))
    else:
        measured.fail(f"submit: {status} {str(answer)[:60]}")
