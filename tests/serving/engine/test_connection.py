"""A connection's time limits: for headers that do not come, and for answers that are not read."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.engine import connection
from serving.engine.connection import Connection

LARGE = b"x" * (1 << 20)
ASK = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
Talk = Callable[[socket.socket, ServerState], Awaitable[None]]


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """16 MiB, more than any socket's buffers: at once at /whole, a piece at a time at /pieces; else two bytes."""
    pieces = {"/whole": [LARGE * 16 + b"end"], "/pieces": [LARGE] * 16 + [b"end"]}.get(scope["path"], [b"ok"])
    size = sum(map(len, pieces))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    for i, piece in enumerate(pieces):
        await send({"type": "http.response.body", "body": piece, "more_body": i < len(pieces) - 1})


def connected(talk: Talk) -> None:
    """Let `talk` be a client of a server that answers by `Connection`."""

    async def run() -> None:
        config = uvicorn.Config(answer, lifespan="off", log_level="warning", timeout_keep_alive=3600)
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, server.sockets[0].getsockname())
            await until(lambda: len(state.connections) == 1)
            await talk(client, state)
        await until(lambda: not state.connections)
        server.close()

    asyncio.run(run())


async def until(is_true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if is_true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not happen")


async def read(client: socket.socket, end: bytes) -> None:
    received = b""
    while not received.endswith(end):
        new = await asyncio.get_running_loop().sock_recv(client, 1 << 20)
        assert new
        received = received[-100:] + new


def only(state: ServerState) -> Any:
    (found,) = state.connections
    return found


@pytest.mark.parametrize("path", [b"whole", b"pieces"])
def test_it_lets_go_of_a_reader_who_sends_more(monkeypatch: pytest.MonkeyPatch, path: bytes) -> None:
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.5)

    async def talk(client: socket.socket, state: ServerState) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, ASK % path)
        await until(lambda: only(state).flow.write_paused)
        await loop.sock_sendall(client, b"G")
        await until(lambda: not state.connections)

    connected(talk)


def test_it_lets_go_of_a_reader_who_leaves_the_last_write_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.2)

    async def talk(client: socket.socket, state: ServerState) -> None:
        await asyncio.get_running_loop().sock_sendall(client, ASK % b"whole")
        await until(lambda: not state.connections)

    connected(talk)


@pytest.mark.parametrize("path", [b"whole", b"pieces"])
def test_it_keeps_a_reader_who_reads_in_the_end(path: bytes) -> None:
    async def talk(client: socket.socket, state: ServerState) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, ASK % path)
        await until(lambda: only(state).flow.write_paused)
        await read(client, b"end")
        await until(lambda: not only(state).flow.write_paused)
        assert only(state)._unread_timer is None
        await loop.sock_sendall(client, ASK % b"small")
        await read(client, b"ok")

    connected(talk)


@pytest.mark.parametrize("beginning", [b"", b"GET / HT"])
def test_it_waits_for_headers_for_a_while_only(monkeypatch: pytest.MonkeyPatch, beginning: bytes) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)

    async def talk(client: socket.socket, state: ServerState) -> None:
        await asyncio.get_running_loop().sock_sendall(client, beginning)
        await until(lambda: not state.connections)

    connected(talk)


def test_it_waits_no_longer_for_headers_that_come_in_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)

    async def talk(client: socket.socket, state: ServerState) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nX: ")
        for _ in range(500):
            if not state.connections:
                return
            await loop.sock_sendall(client, b"x")
            await asyncio.sleep(0.02)
        raise AssertionError("drops keep the connection")

    connected(talk)


def test_it_keeps_nothing_of_a_client_that_hangs_up_rudely() -> None:
    """uvicorn itself leaves the timer of the next request running, for an hour here, and the connection with it."""

    async def talk(client: socket.socket, state: ServerState) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, ASK % b"a")
        await read(client, b"ok")
        await until(lambda: only(state).timeout_keep_alive_task is not None)
        lost = only(state)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing sends a reset
        client.close()
        await until(lambda: not state.connections)
        assert lost.timeout_keep_alive_task is None

    connected(talk)
