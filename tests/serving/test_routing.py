"""Several engines, some of which are down, full, or without the version."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from pytest_django import Settings

from serving import adapters, client, gateway, routing
from serving.client import Delta, EngineDown, EngineError, EngineGone, EngineSlow
from serving.models import Adapter
from serving.requests import Served
from tests.serving.scripted import ScriptedEngine, running

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("closed_connections")]
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
DEAD = "http://127.0.0.1:9"
Maker = Callable[[int], Adapter]


@pytest.fixture
def two(engine: ScriptedEngine, settings: Settings) -> Iterator[list[ScriptedEngine]]:
    other = ScriptedEngine()
    with running(other) as url:
        settings.ENGINE_URLS = [engine.url, url]
        yield [engine, other]


@pytest.fixture
def base(base_model: object) -> Adapter:
    return adapters.base()


async def ask(adapter: Adapter) -> str:
    """The URL of the engine that answered."""
    served = Served("chat.completions", adapter)
    answer = json.loads(await gateway.whole(adapter, gateway.CHAT, ASKED, served))
    assert answer["choices"][0]["message"]["content"] == "Hello, world!"
    return served.engine


async def stream(adapter: Adapter) -> tuple[str, list[str]]:
    """The URL of the engine that answered, and the pieces."""
    served = Served("chat.completions", adapter)
    found = [piece async for piece in gateway.deltas(adapter, ASKED["messages"], served=served)]
    return served.engine, [piece.text for piece in found if isinstance(piece, Delta) and piece.text]


async def test_it_finds_the_one_engine_that_can_answer(
    engine: ScriptedEngine, settings: Settings, base: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "monotonic", lambda: 1_000.0)
    loading, full = ScriptedEngine(), ScriptedEngine()
    loading.refusal, full.refusal = (503, "loading"), (429, "too much to do")
    with running(loading) as a, running(full) as b:
        settings.ENGINE_URLS = [DEAD, a, b, engine.url]
        for _ in range(6):
            assert await ask(base) == engine.url
            assert await stream(base) == (engine.url, engine.pieces)
    assert max(len(loading.requests), len(full.requests)) <= 1  # then it is remembered


async def test_it_asks_only_engines_that_hold_the_version(
    two: list[ScriptedEngine], good_adapter: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "monotonic", lambda: 1_000.0)
    row = await sync_to_async(good_adapter)(1)
    two[1].effects = two[0].effects
    await sync_to_async(adapters.publish)(row)
    del two[1].adapters[row.name]
    for _ in range(10):
        assert await ask(row) == two[0].url
    assert len(two[1].paths("/v1/chat/completions")) <= 1 + 1  # the warm-up and one look
    assert row.name not in two[1].adapters  # that it was missing there was no reason to wait for it


async def test_it_asks_the_engine_that_is_least_at_work(two: list[ScriptedEngine], base: Adapter) -> None:
    for one in two:
        one.hold.clear()
    held = [gateway.events(base, gateway.CHAT, ASKED | {"stream": True}) for _ in range(6)]
    for events in held:
        await anext(events)
    assert [len(one.requests) for one in two] == [3, 3]
    for one in two:
        one.hold.set()
    for events in held:
        await events.aclose()
    assert [routing.n_running(one) for one in client.engines()] == [0, 0]


async def test_it_asks_again_when_an_engine_hangs_up(two: list[ScriptedEngine], base: Adapter) -> None:
    two[0].hang_ups = 1
    assert await ask(base) in {one.url for one in two}
    assert len((await stream(base))[1]) == 4


async def test_it_does_not_let_one_request_end_all_engines(two: list[ScriptedEngine], base: Adapter) -> None:
    for one in two:
        one.hang_ups = 9
    with pytest.raises(EngineGone):
        await ask(base)
    assert sum(len(one.requests) for one in two) == 2


async def test_it_asks_the_only_engine_again_once(engine: ScriptedEngine, base: Adapter) -> None:
    engine.hang_ups = 1
    assert await ask(base) == engine.url
    engine.hang_ups = 9
    with pytest.raises(EngineGone):
        await ask(base)
    assert len(engine.requests) == 2 + 2


async def test_it_loses_no_request_when_an_engine_is_restarted(
    base_model: object, settings: Settings, good_adapter: Maker, engine: ScriptedEngine
) -> None:
    """In a new process at the same address, kept connections are dead and no version is loaded."""
    row = await sync_to_async(good_adapter)(1)
    first, second = ScriptedEngine(), ScriptedEngine()
    with running(first) as url:
        port = int(url.rsplit(":", 1)[1])
        settings.ENGINE_URLS = [url]
        first.effects = second.effects = engine.effects
        await sync_to_async(adapters.publish)(row)
        for _ in range(3):
            await ask(row)
    with running(second, port):
        answers = await asyncio.gather(*(ask(row) for _ in range(20)))
        assert answers == [url] * 20
        assert len(second.paths("/v1/load_lora_adapter")) == 1  # for all of them
        assert (await stream(row))[1] == second.pieces


async def test_it_never_goes_on_elsewhere_after_the_first_token(two: list[ScriptedEngine], base: Adapter) -> None:
    for one in two:
        one.cut_after = 1
    said: list[str] = []

    async def read() -> None:
        async for piece in gateway.deltas(base, ASKED["messages"]):
            assert isinstance(piece, Delta)
            said.append(piece.text)

    with pytest.raises(EngineDown):
        await read()
    assert said == ["Hello"]
    assert sum(len(one.requests) for one in two) == 1


async def test_it_goes_elsewhere_when_a_stream_breaks_before_its_first_token(
    two: list[ScriptedEngine], base: Adapter
) -> None:
    two[
        0
    ].raw_stream = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
    for _ in range(4):
        assert await stream(base) == (two[1].url, two[1].pieces)


async def test_it_asks_nobody_else_what_was_refused(two: list[ScriptedEngine], base: Adapter) -> None:
    for one in two:
        one.refusal = (400, "too long")
    with pytest.raises(EngineError, match="too long"):
        await ask(base)
    assert sum(len(one.requests) for one in two) == 1


async def test_it_asks_nobody_else_while_one_may_be_at_work_on_it() -> None:
    assert not routing.is_worth_another(EngineSlow())
    assert routing.is_worth_another(EngineGone())


async def test_it_keeps_its_connections(engine: ScriptedEngine, base: Adapter) -> None:
    before = engine.n_connections
    for _ in range(5):
        await ask(base)
    assert engine.n_connections - before == 1


async def test_it_ends_the_request_when_a_stream_is_closed(engine: ScriptedEngine, base: Adapter) -> None:
    engine.hold.clear()
    async with aclosing(gateway.events(base, gateway.CHAT, ASKED | {"stream": True})) as events:
        await anext(events)
    assert await asyncio.to_thread(engine.left.wait, 10)
    assert routing.n_running(client.engines()[0]) == 0
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def test_it_asks_an_engine_that_was_down_last_and_soon_first_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000.0]
    monkeypatch.setattr(routing, "monotonic", lambda: clock[0])
    up, down = (client.Engine(f"http://{name}.test", "x") for name in ("up", "down"))
    routing.remember(down, "base", EngineDown())
    for _ in range(20):
        assert routing.in_order([up, down], "base") == [up, down]
    clock[0] += 1.1
    assert {routing.in_order([up, down], "base")[0] for _ in range(60)} == {up, down}
    for _ in range(9):
        routing.remember(down, "base", EngineDown())
    clock[0] += routing.LONGEST_DOWN + 0.1  # however often it was down
    assert {routing.in_order([up, down], "base")[0] for _ in range(60)} == {up, down}
