import asyncio
import threading
from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from pytest_django import Settings

from serving import chat, context, database, writing
from serving.models import Message
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("closed_connections")]


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def answer(engine: ScriptedEngine, ada: User) -> Message:
    return chat.start(ada, "x" * 100).children.get()


async def written(answer: Message) -> None:
    claimed = await database.run(chat.claim, answer.pk)
    assert claimed is not None
    async for _text in writing.write(claimed):
        pass
    await answer.arefresh_from_db()


async def test_it_allows_a_shorter_answer_where_the_longest_has_no_room(
    answer: Message, engine: ScriptedEngine
) -> None:
    engine.context = 400
    await written(answer)
    assert (answer.status, answer.content) == (Message.Status.COMPLETE, "Hello, world!")
    asked = [body["max_tokens"] for body in engine.paths("/v1/chat/completions")]
    [measured] = engine.paths("/tokenize")
    n_prompt = len(measured["messages"][0]["content"]) + len("\x02user:\x03\x02assistant:")
    assert asked == [1024, 400 - n_prompt]


async def test_it_says_what_to_do_when_a_conversation_is_too_long(answer: Message, engine: ScriptedEngine) -> None:
    engine.context = 120
    await written(answer)
    assert answer.status == Message.Status.FAILED
    assert "longer than the model can read. Edit an earlier question" in answer.error
    assert "refused" not in answer.error


async def test_it_waits_for_an_engine_where_it_holds_up_no_stream(answer: Message, engine: ScriptedEngine) -> None:
    """All of asyncio's own threads, which render the answers, are busy: it needs none of them."""
    engine.context = 400
    others_end = threading.Event()
    others = [asyncio.create_task(asyncio.to_thread(others_end.wait, 30)) for _ in range(40)]
    try:
        await asyncio.wait_for(written(answer), 20)
    finally:
        others_end.set()
        await asyncio.gather(*others)
    assert answer.status == Message.Status.COMPLETE


async def test_it_passes_on_other_refusals(answer: Message, engine: ScriptedEngine) -> None:
    engine.refusal = (400, "The template refuses this.")
    await written(answer)
    assert answer.error == "The model server refused: The template refuses this."


async def test_it_knows_how_much_fits(engine: ScriptedEngine, settings: Settings) -> None:
    assert await asyncio.to_thread(context.size) is None
    engine.context = 8192
    assert await asyncio.to_thread(context.size) == 8192
    n_questions = engine.n_questions
    assert await asyncio.to_thread(context.size) == 8192
    assert engine.n_questions == n_questions  # remembered for a minute
    cache.clear()
    settings.ENGINE_URLS = ["http://127.0.0.1:9"]
    assert await asyncio.to_thread(context.size) is None
