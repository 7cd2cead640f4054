"""An answer that is continued: the same row, longer. What one answer goes through is in test_gateway.py."""

from collections.abc import Callable

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User

from serving import adapters, chat, database, writing
from serving.models import Adapter, Message, ServedRequest
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("closed_connections")]


@pytest.fixture
def answer(engine: ScriptedEngine, ada: User) -> Message:
    return chat.start(ada, "Hi").children.get()


async def written(answer: Message) -> list[str]:
    claimed = await database.run(chat.claim, answer.pk)
    assert claimed is not None
    texts = [text async for text in writing.write(claimed)]
    await answer.arefresh_from_db()
    return texts


async def test_it_goes_on_where_the_answer_was_cut(answer: Message, engine: ScriptedEngine) -> None:
    engine.finish_reason = "length"
    await written(answer)
    first = answer.usage
    engine.finish_reason, engine.pieces = "stop", [" And", " more."]
    await database.run(chat.continue_answer, answer)
    texts = await written(answer)
    assert texts[0] == "Hello, world! And"
    assert (answer.content, answer.status) == ("Hello, world! And more.", Message.Status.COMPLETE)
    [began, went_on] = engine.paths("/v1/chat/completions")
    assert went_on["messages"] == [*began["messages"], {"role": "assistant", "content": "Hello, world!"}]
    assert (went_on["continue_final_message"], went_on["add_generation_prompt"]) == (True, False)
    assert {name: went_on[name] for name in ("model", "seed", "temperature")} == {
        name: began[name] for name in ("model", "seed", "temperature")
    }
    assert answer.usage["finish_reason"] == "stop"
    assert answer.usage["prompt_tokens"] == first["prompt_tokens"]
    assert answer.usage["seconds"] >= first["seconds"]


async def test_it_keeps_the_first_part_when_the_second_fails(answer: Message, engine: ScriptedEngine) -> None:
    engine.finish_reason = "length"
    await written(answer)
    await database.run(chat.continue_answer, answer)
    engine.refusal = (503, "loading")
    await written(answer)
    assert (answer.content, answer.status) == ("Hello, world!", Message.Status.FAILED)
    assert "starting" in answer.error  # not "stopped in the middle"


async def read_a_word(answer: Message) -> None:
    """As a reader who leaves then."""
    claimed = await database.run(chat.claim, answer.pk)
    assert claimed is not None
    texts = writing.write(claimed)
    await anext(texts)
    await texts.aclose()
    await answer.arefresh_from_db()


def longest_asked(engine: ScriptedEngine) -> list[int]:
    return [body["max_tokens"] for body in engine.paths("/v1/chat/completions")]


async def test_it_ends_where_it_would_have_without_the_cuts(answer: Message, engine: ScriptedEngine) -> None:
    for _ in range(2):
        engine.hold.clear()
        await read_a_word(answer)
        engine.hold.set()
        await database.run(chat.go_on, answer)
    await written(answer)
    assert longest_asked(engine) == [1024, 1023, 1022]
    assert answer.usage["completion_tokens"] == 1 + 1 + 4
    counts = [row.completion_tokens async for row in ServedRequest.objects.order_by("at")]
    assert counts == [1, 1, 4]


async def test_it_always_asks_for_a_word(answer: Message, engine: ScriptedEngine) -> None:
    answer.sampling["max_tokens"] = 1
    await answer.asave()
    engine.hold.clear()
    await read_a_word(answer)
    await database.run(chat.go_on, answer)
    await read_a_word(answer)
    assert longest_asked(engine) == [1, 1]


async def test_it_allows_as_much_again_for_each_continue(answer: Message, engine: ScriptedEngine) -> None:
    engine.finish_reason = "length"
    await written(answer)
    await database.run(chat.continue_answer, answer)
    engine.hold.clear()
    await read_a_word(answer)
    await database.run(chat.go_on, answer)
    await read_a_word(answer)
    assert longest_asked(engine) == [1024, 1024, 1023]


async def test_it_tells_a_reader_that_the_version_has_no_place(
    engine: ScriptedEngine, ada: User, good_adapter: Callable[[int], Adapter]
) -> None:
    answer = await sync_to_async(_asked_without_a_place)(engine, ada, good_adapter)
    await written(answer)
    assert answer.status == Message.Status.FAILED
    assert answer.error == (
        "The model server has no place for this version now. Try again in a minute, or choose another version."
    )


def _asked_without_a_place(engine: ScriptedEngine, ada: User, good_adapter: Callable[[int], Adapter]) -> Message:
    """Every place is kept by what an alias points at."""
    rows = [good_adapter(seed) for seed in (1, 2, 3)]
    for row in rows:
        adapters.publish(row)
    engine.adapters.pop(rows[0].name)
    engine.max_adapters = 2
    return chat.start(ada, "Hi", versions=[rows[0].name]).children.get()


def test_it_counts_what_was_cut() -> None:
    before = {"completion_tokens": 20, "seconds": 2.0, "seconds_to_first_token": 0.5, "n_gone_on": 1}
    now = {"prompt_tokens": 30, "completion_tokens": 5, "seconds": 1.0, "seconds_to_first_token": 0.1}
    summed = writing._summed(before, now)
    assert summed == {
        "prompt_tokens": 10, "completion_tokens": 25, "seconds": 3.0, "seconds_to_first_token": 0.6, "n_gone_on": 1,
    }  # fmt: skip


def test_it_tells_the_speed_of_the_part_that_had_words() -> None:
    before = {"completion_tokens": 20, "seconds": 2.0, "seconds_to_first_token": 0.5}
    summed = writing._summed(before, {"seconds": 60.0})
    assert summed["seconds"] - summed["seconds_to_first_token"] == 1.5


def test_it_tells_the_speed_of_the_second_part_when_the_first_was_never_counted() -> None:
    now = {"prompt_tokens": 30, "completion_tokens": 5, "seconds": 1.0, "seconds_to_first_token": 0.1}
    assert writing._summed({"seconds": 60.0, "seconds_to_first_token": 0.5}, now) == now


def test_it_counts_the_tokens_of_both_parts_once() -> None:
    before = {"prompt_tokens": 10, "completion_tokens": 20, "seconds": 2.0, "seconds_to_first_token": 0.5}
    now = {"prompt_tokens": 30, "completion_tokens": 5, "seconds": 1.0, "seconds_to_first_token": 0.1}
    summed = writing._summed(before, now)
    assert summed == {"prompt_tokens": 10, "completion_tokens": 25, "seconds": 3.0, "seconds_to_first_token": 0.6}
