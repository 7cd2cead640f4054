import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from pytest_django import Settings

from serving import adapters, chat, database, gateway, streams, writing
from serving.client import Delta, Engine, EngineError
from serving.models import Adapter, Message
from tests.serving.scripted import ScriptedEngine, running

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("closed_connections")]
Maker = Callable[[int], Adapter]


@pytest.fixture
def answer(engine: ScriptedEngine, ada: User) -> Message:
    return chat.start(ada, "Hi").children.get()


async def written(answer: Message) -> list[str]:
    claimed = await database.run(chat.claim, answer.pk)
    assert claimed is not None
    texts = [text async for text in writing.write(claimed)]
    await answer.arefresh_from_db()
    return texts


async def read_until(answer: Message, condition: Callable[[str], bool]) -> None:
    """Reads a claimed answer up to a text, then leaves."""
    claimed = await database.run(chat.claim, answer.pk)
    assert claimed is not None
    async with aclosing(writing.write(claimed)) as texts:
        async for text in texts:
            if condition(text):
                break
    await answer.arefresh_from_db()


async def test_it_writes_an_answer_to_its_end(answer: Message, engine: ScriptedEngine) -> None:
    assert (await written(answer))[-1] == "Hello, world!"
    assert (answer.status, answer.content, answer.error) == (Message.Status.COMPLETE, "Hello, world!", "")
    assert answer.usage["completion_tokens"] == 4
    assert 0 <= answer.usage["seconds_to_first_token"] <= answer.usage["seconds"]
    assert answer.usage["finish_reason"] == "stop"


async def test_it_asks_as_the_message_says(answer: Message, engine: ScriptedEngine, ada: User) -> None:
    await written(answer)
    [body] = engine.paths("/v1/chat/completions")
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert {key: body[key] for key in answer.sampling} == answer.sampling
    assert engine.callers[-1] == f"person-{ada.pk}"


async def test_it_stops_the_engine_when_the_reader_leaves(answer: Message, engine: ScriptedEngine) -> None:
    engine.hold.clear()
    await read_until(answer, lambda text: text == "Hello")
    assert (answer.status, answer.content) == (Message.Status.STOPPED, "Hello")
    assert await asyncio.to_thread(engine.left.wait, 10)


async def test_it_records_the_end_when_it_is_cancelled(answer: Message, engine: ScriptedEngine) -> None:
    engine.hold.clear()
    seen = asyncio.Event()

    claimed = await database.run(chat.claim, answer.pk)
    assert claimed is not None

    async def read() -> None:
        async for _text in streams.paced(writing.write(claimed)):
            seen.set()

    task = asyncio.create_task(read())
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await answer.arefresh_from_db()
    assert (answer.status, answer.content) == (Message.Status.STOPPED, "Hello")


async def test_it_keeps_the_partial_text_when_the_engine_dies(answer: Message, engine: ScriptedEngine) -> None:
    engine.cut_after = 2
    assert (await written(answer))[-1] == "Hello, "
    assert (answer.status, answer.content) == (Message.Status.FAILED, "Hello, ")
    assert "stopped in the middle" in answer.error


async def test_it_says_that_the_engine_is_starting(answer: Message, settings: Settings) -> None:
    settings.ENGINE_URLS = ["http://127.0.0.1:9"]
    assert await written(answer) == []
    assert answer.status == Message.Status.FAILED
    assert answer.error == "The model server is starting; try again in a few seconds."


async def test_it_passes_on_why_the_engine_refused(answer: Message, engine: ScriptedEngine) -> None:
    engine.refusal = (400, "This model's maximum context length is 8192 tokens.")
    await written(answer)
    assert answer.status == Message.Status.FAILED
    assert "maximum context length" in answer.error


async def test_it_tries_another_engine_before_the_first_word(
    answer: Message, engine: ScriptedEngine, settings: Settings
) -> None:
    settings.ENGINE_URLS = ["http://127.0.0.1:9", *settings.ENGINE_URLS, "http://127.0.0.1:10"]
    assert (await written(answer))[-1] == "Hello, world!"


async def test_it_loads_the_version_on_an_engine_that_was_restarted(
    good_adapter: Maker, engine: ScriptedEngine, ada: User
) -> None:
    row = await sync_to_async(good_adapter)(1)
    await sync_to_async(adapters.publish)(row)
    answer = await sync_to_async(lambda: chat.start(ada, "Hi").children.get())()
    engine.adapters.clear()
    assert (await written(answer))[-1] == "Hello, world!"
    assert row.name in engine.adapters


async def test_it_loads_a_version_again_that_was_pushed_out_meanwhile(
    good_adapter: Maker, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, load, pushes = await sync_to_async(good_adapter)(1), adapters.ensure_loaded, [1, 2]

    def loaded_and_pushed_out(adapter: Adapter) -> list[Engine]:
        ready = load(adapter)
        if pushes:
            pushes.pop()
            engine.adapters.clear()
        return ready

    monkeypatch.setattr(adapters, "ensure_loaded", loaded_and_pushed_out)
    assert Delta("Hello") in [piece async for piece in gateway.deltas(row, [{"role": "user", "content": "Hi"}])]
    assert not pushes


async def test_it_does_not_serve_another_version_instead(
    good_adapter: Maker, engine: ScriptedEngine, ada: User
) -> None:
    row = await sync_to_async(good_adapter)(1)
    await sync_to_async(adapters.publish)(row)
    engine.adapters.clear()
    engine.unloadable.add(row.name)
    with pytest.raises(EngineError):
        async for _piece in gateway.deltas(row, [{"role": "user", "content": "Hi"}]):
            pass
    assert {body["model"] for body in engine.paths("/v1/chat/completions")} <= {row.name}


async def test_it_finishes_on_the_version_that_it_began_with(
    good_adapter: Maker, engine: ScriptedEngine, ada: User
) -> None:
    old, new = await sync_to_async(good_adapter)(1), await sync_to_async(good_adapter)(2)
    await sync_to_async(adapters.publish)(old)
    engine.scripts = {old.name: ["old "] * 20, new.name: ["new "] * 20}
    answer = await sync_to_async(lambda: chat.start(ada, "Hi").children.get())()
    engine.hold.clear()
    claimed = await database.run(chat.claim, answer.pk)
    assert claimed is not None
    texts: list[str] = []
    async with aclosing(writing.write(claimed)) as running_answer:
        async for text in running_answer:
            texts.append(text)
            if len(texts) == 1:
                await sync_to_async(adapters.publish)(new)
                engine.hold.set()
    await answer.arefresh_from_db()
    assert (answer.content, answer.adapter_id) == ("old " * 20, old.pk)
    again = await sync_to_async(lambda: chat.start(ada, "Hi").children.get())()
    assert (await written(again))[-1] == "new " * 20


# --- server-sent events -----------------------------------------------------------------------------------------------
def end(pk: Any) -> dict[str, Any]:
    return {"status": Message.objects.get(pk=pk).status}


def parsed(events: list[str]) -> list[tuple[str, dict[str, Any]]]:
    found = [re.fullmatch(r"event: (\w+)\ndata: (.*)\n\n", event) for event in events if event != streams.PING]
    return [(match[1], json.loads(match[2])) for match in found if match]


async def test_it_sends_growing_html_and_the_end(answer: Message, engine: ScriptedEngine) -> None:
    engine.pieces = ["**bold", "**", " <script>alert(1)</script>"]
    events = parsed([event async for event in streams.events(answer.pk, end)])
    assert [kind for kind, _data in events][-1] == "end"
    texts = [data["html"] for kind, data in events if kind == "text"]
    assert texts[-1] == "<p><strong>bold</strong> &lt;script&gt;alert(1)&lt;/script&gt;</p>\n"
    assert events[-1][1] == {"status": "complete"}


async def test_it_sends_only_the_end_of_what_somebody_else_writes(answer: Message) -> None:
    await database.run(chat.claim, answer.pk)
    assert parsed([event async for event in streams.events(answer.pk, end)]) == [("end", {"status": "streaming"})]


async def test_it_keeps_a_silent_stream_alive(
    answer: Message, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PING_SECONDS", 0.02)
    engine.hold.clear()
    async with aclosing(streams.events(answer.pk, end)) as events:
        seen = [await anext(events) for _ in range(4)]
    assert seen.count(streams.PING) >= 2


async def test_it_never_misses_that_a_reader_left() -> None:
    """The cancellation may come in the very tick in which a text arrives."""
    closed: list[bool] = []

    async def texts() -> AsyncGenerator[str, None]:
        try:
            for i in range(10_000):
                yield str(i)
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def read() -> None:
        async for _text in streams.paced(texts()):
            pass

    for n_ticks in range(60):
        task = asyncio.create_task(read())
        for _ in range(n_ticks + 2):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(closed) == n_ticks + 1


async def test_it_ends_as_soon_as_the_text_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PING_SECONDS", 60)
    monkeypatch.setattr(streams, "MAX_SNAPSHOT_SECONDS", 0.01)

    async def texts() -> AsyncGenerator[str, None]:
        try:
            yield "one"
        finally:
            await asyncio.sleep(0.2)  # a connection that closes slowly

    async with asyncio.timeout(20):
        assert [text async for text in streams.paced(texts())] == ["one"]


async def test_it_raises_what_goes_wrong_in_the_text() -> None:
    async def texts() -> AsyncGenerator[str, None]:
        yield "one"
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        async for _text in streams.paced(texts()):
            pass


async def test_it_answers_again_after_the_engine_was_restarted(
    base_model: object, settings: Settings, good_adapter: Maker, engine: ScriptedEngine, ada: User
) -> None:
    row = await sync_to_async(good_adapter)(1)
    await sync_to_async(adapters.publish)(row)
    fresh = ScriptedEngine()
    fresh.effects = engine.effects
    with running(fresh) as url:  # the same address book entry, a process without adapters
        settings.ENGINE_URLS = [url]
        await sync_to_async(adapters.reconcile)()
        pieces = [piece async for piece in gateway.deltas(row, [{"role": "user", "content": "Hi"}])]
    assert Delta("Hello") in pieces
