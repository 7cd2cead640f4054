import asyncio
import json
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_django import Settings

from serving import client
from serving.client import (
    MAX_EVENT_BYTES,
    Delta,
    Engine,
    EngineDown,
    EngineError,
    EngineSlow,
    EventParser,
    Usage,
    engines,
)
from tests.serving.scripted import TOKEN, ScriptedEngine

MESSAGES = [{"role": "user", "content": "Hi"}]
STREAM = 'data: {"a": "é—😀"}\n\n: ping\n\nevent: x\r\ndata: one\r\ndata:two\r\n\r\ndata: last\r\r'.encode()
PARSED = ['{"a": "é—😀"}', "one\ntwo", "last"]


async def collect(engine: Engine, **sampling: Any) -> list[Delta | Usage]:
    """What a streamed chat says."""
    body = json.dumps({"model": "base", "messages": MESSAGES, "stream": True, **sampling}).encode()
    batches = engine.events("/v1/chat/completions", body)
    return [piece async for batch in batches for data in batch for piece in client.pieces(data)]


@settings(deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_it_parses_events_whatever_the_borders_of_chunks(cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), len(STREAM)]
    parser = EventParser()
    found = [data for a, b in pairwise(borders) for data in parser.feed(STREAM[a:b])]
    found += parser.feed(b"\n")  # a final CR may have been half of a CRLF
    assert found == PARSED


def test_it_parses_events_byte_by_byte() -> None:
    parser = EventParser()
    assert [data for byte in STREAM + b"\n" for data in parser.feed(bytes([byte]))] == PARSED


def test_it_drops_an_event_that_was_cut_off() -> None:
    assert list(EventParser().feed(b"data: half")) == []


def test_it_refuses_an_event_without_end() -> None:
    with pytest.raises(EngineError, match="1 MiB"):
        list(EventParser().feed(b"x" * (MAX_EVENT_BYTES + 1)))


async def test_it_streams_deltas_and_then_usage(engine: ScriptedEngine) -> None:
    pieces = await collect(engines()[0], temperature=0.5)
    assert [p.text for p in pieces if isinstance(p, Delta)] == ["Hello", ", ", "world", "!", ""]
    assert pieces[-2] == Delta("", "stop")
    assert pieces[-1] == Usage(prompt_tokens=3, completion_tokens=4)
    assert engine.requests[0][1]["temperature"] == 0.5


async def test_it_says_that_a_stream_was_cut(engine: ScriptedEngine) -> None:
    engine.cut_after = 2
    with pytest.raises(EngineDown):
        await collect(engines()[0])


@pytest.mark.parametrize(
    "raw",
    [b"data: nonsense\n\n", b'data: {"choices": [{}]}\n\n', b'data: {"usage": {"x": 1}}\n\n', b"data: 7\n\n"],
)
async def test_it_calls_a_stream_that_breaks_the_protocol_an_error(engine: ScriptedEngine, raw: bytes) -> None:
    engine.raw_stream = raw
    with pytest.raises(EngineError):
        await collect(engines()[0])


async def test_it_passes_on_an_error_inside_a_stream(engine: ScriptedEngine) -> None:
    engine.raw_stream = b'data: {"error": {"message": "out of memory"}}\n\n'
    with pytest.raises(EngineError, match="out of memory"):
        await collect(engines()[0])


async def test_it_passes_on_a_refusal(engine: ScriptedEngine) -> None:
    engine.refusal = (400, "too long")
    with pytest.raises(EngineError, match="too long") as caught:
        await collect(engines()[0])
    assert caught.value.status == 400


async def test_it_takes_503_for_an_engine_that_is_starting(engine: ScriptedEngine) -> None:
    engine.refusal = (503, "loading")
    with pytest.raises(EngineDown):
        await collect(engines()[0])
    with pytest.raises(EngineDown):
        engines()[0].models()


def test_it_says_when_nobody_answers(settings: Settings) -> None:
    with pytest.raises(EngineDown):
        Engine("http://127.0.0.1:9", "x").models()


def test_it_tells_an_engine_that_does_not_answer_in_time_from_one_that_is_down(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "GENERATING", httpx.Timeout(0.2))
    engine.silence.clear()
    with pytest.raises(EngineSlow):
        engines()[0].chat("base", MESSAGES)
    with pytest.raises(EngineDown) as caught:
        Engine("http://127.0.0.1:9", "x").chat("base", MESSAGES)
    assert not isinstance(caught.value, EngineSlow)


async def test_it_waits_longer_for_a_whole_answer_than_between_two_events(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "GENERATING", httpx.Timeout(0.1))
    engine.silence.clear()
    body = json.dumps({"model": "base", "messages": MESSAGES}).encode()
    answer = asyncio.create_task(engines()[0].ask("/v1/chat/completions", body))
    await asyncio.sleep(0.5)
    engine.silence.set()
    assert b"Hello, world!" in await answer


def test_it_lists_loads_and_unloads(engine: ScriptedEngine) -> None:
    [one] = engines()
    one.load("adapter-1-aaaaaa", "/somewhere")
    assert one.models() == ["base", "adapter-1-aaaaaa"]
    one.unload("adapter-1-aaaaaa")
    assert one.models() == ["base"]


def test_it_reads_answers_and_prompt_logprobs(engine: ScriptedEngine) -> None:
    [result] = engines()[0].chat("base", MESSAGES, max_tokens=5)
    assert (result.text, result.finish_reason) == ("Hello, world!", "stop")
    assert engines()[0].prompt_logprobs("base", [[5, 6, 7], [5, 6]]) == [[-2.0, -2.0], [-2.0]]


def test_it_never_shows_the_token(engine: ScriptedEngine, caplog: pytest.LogCaptureFixture) -> None:
    engine.refusal = (400, "no")
    [one] = engines()
    with caplog.at_level("DEBUG"), pytest.raises(EngineError) as caught:
        one.models()
    shown = json.dumps([repr(one), str(one), str(caught.value), repr(caught.value), caplog.text])
    assert TOKEN not in shown


def test_it_tokenizes_a_conversation_up_to_the_answer_or_as_a_whole(engine: ScriptedEngine) -> None:
    whole = [*MESSAGES, {"role": "assistant", "content": "Yes."}]
    prompt = engines()[0].tokenize("base", MESSAGES, is_open=True)
    tokens = engines()[0].tokenize("base", whole, is_open=False)
    assert tokens[: len(prompt)] == prompt
    assert tokens[len(prompt) :] == [ord(character) for character in "Yes.\x03"]


async def test_it_keeps_few_connections_where_many_streams_were(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, closed_connections: None
) -> None:
    monkeypatch.setattr(client, "POOL_SIZE", 2)
    body = json.dumps({"model": "base", "messages": MESSAGES, "stream": True}).encode()
    [one], path = engines(), "/v1/chat/completions"
    engine.hold.clear()
    streams = [one.events(path, body) for _ in range(7)]
    for stream in streams:
        await anext(stream)
    pools = client._pools[asyncio.get_running_loop()]
    assert [pool.n_used for pool in pools] == [2, 2, 2, 1]
    for stream in streams:
        await stream.aclose()
    assert [pool.n_used for pool in pools] == [0]
    before = engine.n_connections
    for _ in range(3):
        await one.ask(path, body.replace(b"true", b"false"))
    assert engine.n_connections - before == 1


def test_it_takes_a_proxys_page_for_no_answer(engine: ScriptedEngine) -> None:
    engine.page = "Back in a minute."
    (asked,) = engines()
    for ask in (
        asked.models,
        asked.context,
        lambda: asked.chat("base", []),
        lambda: asked.tokenize("base", [], is_open=True),
        lambda: asked.measure("base", []),
        lambda: asked.prompt_logprobs("base", [[1, 2]]),
    ):
        with pytest.raises(EngineError, match="does not follow the protocol"):
            ask()
