"""Nobody takes more than is theirs: time, patience, connections, memory."""

import json
import socket
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from serving.engine import connection, door, job, weights
from serving.engine.admission import Limits
from serving.engine.engine import Engine, Options, build
from serving.engine.model_folder import BrokenModel
from serving.engine.sequence import TIMEOUT, Ending
from serving.engine.versions import Full
from tests.serving.engine.conftest import TOKEN, drain, make_adapter, submit

Serve = Callable[[Engine], str]
ENDLESS: dict[str, Any] = {"model": "base", "prompt": [5], "max_tokens": 8000, "ignore_eos": True, "temperature": 0}
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def wait_until_idle(engine: Engine) -> None:
    for _ in range(3000):
        if engine.scheduler.counts() == (0, 0):
            return
        time.sleep(0.01)
    raise AssertionError("the engine keeps working for nobody")


@contextmanager
def connected(url: str) -> Any:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        yield client


def raw(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


# --- time ------------------------------------------------------------------------------------------------------------
def test_it_ends_what_is_out_of_time_with_what_there_is(tiny: Engine) -> None:
    late, late_listener = submit(tiny, [1, 2, 3], max_tokens=500, ignore_eos=True)
    other, other_listener = submit(tiny, [1, 2, 3], max_tokens=20, ignore_eos=True)
    for _ in range(6):
        tiny.scheduler.step()
    late.end_by = 0.0
    drain(tiny, late_listener, other_listener)
    assert late_listener.done
    assert (late_listener.done.reason, late_listener.done.stop_reason) == ("length", TIMEOUT)
    assert 0 < len(late.tokens) < 10
    assert other.tokens[: len(late.tokens)] == late.tokens
    assert late_listener.text == tiny.tokenizer.decode(late.tokens)
    assert (tiny.metrics.endings["timeout"], tiny.metrics.endings["done"]) == (1, 1)
    assert tiny.versions.base.n_users == 0


def test_it_fails_what_is_out_of_time_before_its_first_token(tiny: Engine) -> None:
    sequence, listener = submit(tiny, list(range(300)))
    tiny.scheduler.step()
    sequence.end_by = 0.0
    drain(tiny, listener)
    assert listener.failed
    assert listener.failed.status == 504


def test_it_refuses_what_could_not_begin_in_time(tiny_model_dir: Path) -> None:
    engine = build(Options(model=tiny_model_dir, limits=Limits(max_running=1, max_wait_seconds=50, max_seconds=70)))
    _, first = submit(engine, [1], max_tokens=30, ignore_eos=True)
    waiting, listener = submit(engine, [2])
    hasty, hasty_listener = submit(engine, [3], ending=Ending(seconds=1.5))
    assert waiting.begin_by - waiting.arrived_at == pytest.approx(50)
    assert waiting.end_by - waiting.arrived_at == pytest.approx(70)
    assert hasty.begin_by - hasty.arrived_at == hasty.end_by - hasty.arrived_at == pytest.approx(1.5)
    engine.scheduler.step()
    waiting.begin_by = hasty.begin_by = 0.0
    engine.scheduler.step()
    assert listener.failed
    assert hasty_listener.failed
    assert (listener.failed.status, engine.scheduler.counts()) == (503, (1, 0))
    drain(engine, first)
    assert engine.versions.base.n_users == 0


@pytest.mark.parametrize("stream", [False, True])
def test_it_tells_callers_that_their_time_is_over(tiny_model_dir: Path, serve: Serve, stream: bool) -> None:
    engine = build(Options(model=tiny_model_dir, limits=Limits(max_running=1)))
    url = f"{serve(engine)}/v1/completions"
    with httpx.stream("POST", url, json={**ENDLESS, "stream": True}, headers=HEADERS) as running:
        lines = running.iter_lines()  # kept: an iterator that is let go of closes the stream
        next(lines)
        answer = httpx.post(url, json={**ENDLESS, "timeout_seconds": 0.05, "stream": stream}, headers=HEADERS)
        assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "2"), answer.text
        assert answer.json()["error"]["code"] == "overloaded"
    found = httpx.post(url, json={**ENDLESS, "timeout_seconds": 0.5}, headers=HEADERS, timeout=60).json()["choices"][0]
    assert (found["finish_reason"], found["stop_reason"]) == ("length", "timeout")
    assert found["text"]


# --- patience --------------------------------------------------------------------------------------------------------
def test_it_ends_an_answer_that_nobody_reads(tiny: Engine, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "MAX_UNREAD", 20)
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 3600.0)
    url = serve(tiny)
    with connected(url) as client:
        client.sendall(raw({**ENDLESS, "n": 16, "logprobs": 20, "max_tokens": 4000, "stream": True}))
        wait_for_work(tiny)
        wait_until_idle(tiny)
        assert tiny.metrics.endings["cancelled"] == 16
        assert tiny.versions.base.n_users == 0
        assert httpx.post(f"{url}/tokenize", json={"prompt": "a"}, headers=HEADERS).status_code == 200
        received = b""
        while b"[DONE]" not in received:
            received = received[-200:] + client.recv(1 << 20)
    assert b"read too slowly" in received


def test_it_lets_go_of_a_client_that_stops_reading(tiny: Engine, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.2)
    with connected(serve(tiny)) as client:
        client.sendall(raw({**ENDLESS, "n": 16, "logprobs": 20, "max_tokens": 4000, "stream": True}))
        wait_for_work(tiny)
        wait_until_idle(tiny)
        with suppress(ConnectionResetError):
            assert all(iter(lambda: len(client.recv(1 << 20)), 0))  # up to the end
    assert tiny.metrics.endings["cancelled"] == 16


def wait_for_work(engine: Engine) -> None:
    for _ in range(3000):
        if engine.metrics.generation_tokens:
            return
        time.sleep(0.01)
    raise AssertionError("nothing happens")


def test_it_waits_for_headers_and_bodies_for_a_while_only(
    tiny: Engine, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(door, "MAX_BODY_SECONDS", 0.2)
    url = serve(tiny)
    for beginning in (b"", b"GET / HT", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"):
        with connected(url) as client:
            client.sendall(beginning)
            with suppress(ConnectionResetError):
                assert client.recv(100) == b""
    request = raw(ENDLESS)
    with connected(url) as client:
        client.sendall(request[:-5])
        assert client.recv(12) == b"HTTP/1.1 408"
    assert tiny.scheduler.counts() == (0, 0)


def test_it_takes_so_many_connections_and_no_more(tiny: Engine, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 2)
    url = serve(tiny)
    with connected(url) as one, connected(url) as two:
        for client in (one, two):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        answer = httpx.get(f"{url}/health")
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
    assert httpx.get(f"{url}/health").status_code == 200


def test_it_tells_a_crowding_caller_apart_from_the_others(tiny_model_dir: Path, serve: Serve) -> None:
    engine = build(Options(model=tiny_model_dir, limits=Limits(max_running=1, max_waiting=4)))
    url = f"{serve(engine)}/v1/completions"
    with httpx.stream("POST", url, json={**ENDLESS, "stream": True}, headers=HEADERS) as running:
        lines = running.iter_lines()  # kept: an iterator that is let go of closes the stream
        next(lines)
        waiting, _ = submit(engine, [1], caller="ada")
        crowd = {**ENDLESS, "n": 3}
        for field, header in (({"user": "ada"}, {}), ({}, {"X-Caller": "ada"})):
            answer = httpx.post(url, json={**crowd, **field}, headers={**HEADERS, **header})
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert answer.headers["Retry-After"]
        too_many = httpx.post(url, json={**ENDLESS, "n": 4}, headers=HEADERS)
        assert (too_many.status_code, too_many.json()["error"]["code"]) == (503, "overloaded")
        never = httpx.post(url, json={**ENDLESS, "n": 5}, headers=HEADERS)
        assert (never.status_code, never.json()["error"]["param"]) == (400, "n")
        engine.scheduler.cancel([waiting])
    wait_until_idle(engine)
    assert engine.versions.base.n_users == 0


# --- memory ----------------------------------------------------------------------------------------------------------
def test_it_loads_versions_within_its_memory(tiny_model_dir: Path, adapters_dir: Path) -> None:
    free = build(Options(model=tiny_model_dir, adapters=adapters_dir))
    make_adapter(adapters_dir / "one", tiny_model_dir)
    base = free.versions.n_bytes
    own = free.versions.load("x", "one", 0).n_bytes
    layers = free.versions.base.weights.layers
    assert own == sum(p.weight.nbytes for layer in layers for p in (layer.qkv, layer.out, layer.gate_up, layer.down))
    limits = Limits(max_tokens=1000)
    caches = 1000 * free.model.new_cache(1).store.nbytes + 2**20
    budget = base + own + own // 2 + caches
    options: dict[str, Any] = {
        "model": tiny_model_dir,
        "adapters": adapters_dir,
        "limits": limits,
        "prefix_cache_bytes": 2**20,
    }
    engine = build(Options(**options, memory_bytes=budget))
    version = engine.versions.load("x", "one", 0)
    _, listener = submit(engine, [1, 2], "x", max_tokens=4)
    with pytest.raises(Full, match="MiB"):
        engine.versions.load("y", "one", 0)
    engine.versions.unload("x")
    with pytest.raises(Full, match="unload one first"):
        engine.versions.load("y", "one", 0)  # its stream still needs it
    drain(engine, listener)
    assert version.n_users == 0
    engine.versions.load("y", "one", 0)
    assert engine.versions.n_bytes == base + own
    with pytest.raises(BrokenModel, match="--memory-mib"):
        build(Options(**options, memory_bytes=base))


NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to …"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_it_says_so_when_the_base_does_not_fit(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(weights, "load", fail)
    with pytest.raises(BrokenModel, match="has no memory for"):
        build(Options(model=tiny_model_dir))


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_it_keeps_nothing_of_a_load_that_failed(
    tiny: Engine, tiny_model_dir: Path, adapters_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    make_adapter(adapters_dir / "one", tiny_model_dir)

    def fail(*_: Any) -> None:
        raise error

    before = tiny.versions.n_bytes
    with monkeypatch.context() as patch:
        patch.setattr(weights, "merge", fail)
        with pytest.raises(Full, match="no memory"):
            tiny.versions.load("x", "one", 0)
    assert tiny.versions.n_bytes == before
    assert [v.name for v in tiny.versions.names()] == ["base"]
    tiny.versions.load("x", "one", 0)


def test_it_holds_no_more_tokens_than_it_may(tiny_model_dir: Path) -> None:
    engine = build(Options(model=tiny_model_dir, prefix_cache_bytes=2**20, limits=Limits(max_tokens=2000)))
    listeners = [submit(engine, list(range(500)), draw=i, temperature=1.0, max_tokens=60)[1] for i in range(16)]
    n_most = 0
    while not all(listener.has_ended for listener in listeners):
        engine.scheduler.step()
        caches = [s.cache.capacity for s in engine.scheduler._running if s.cache]
        assert sum(caches) <= engine.scheduler.n_held <= 2000
        assert engine.prefixes.n_bytes <= 2**20
        n_most = max(n_most, len(caches))
    assert n_most == 3
    assert engine.scheduler.n_held == 0
