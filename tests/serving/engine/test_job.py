"""A request's events on their way to its reader."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from serving.engine import job, protocol
from serving.engine.engine import Engine
from serving.engine.fields import BadRequest
from serving.engine.job import Job
from serving.engine.sequence import Done, Sequence

ASKED: dict[str, Any] = {"model": "base", "prompt": [5, 6], "max_tokens": 3, "ignore_eos": True, "temperature": 0}


def ask(engine: Engine) -> Job:
    asked = protocol.parse_completion(ASKED, engine.tokenizer.n_vocabulary)
    return Job(engine, asked, [[5, 6]])


async def step(engine: Engine) -> None:
    engine.scheduler.step()
    await asyncio.sleep(0)  # the loop hands the events on


def test_it_hands_out_everything_until_the_end(tiny: Engine) -> None:
    async def run() -> int:
        asked = ask(tiny)
        for _ in range(3):
            await step(tiny)
        async with asyncio.timeout(5):
            events = [event async for batch in asked.batches() for event in batch]
        assert isinstance(events[-1], Done)
        return sum(len(event.tokens) for event in events if not isinstance(event, Done))

    assert asyncio.run(run()) == 3


def test_it_ends_when_it_is_closed_beside_unread_events(tiny: Engine) -> None:
    """One wake-up for the events and for the end: after the events nothing would come, for ever."""

    async def run() -> list[int]:
        asked = ask(tiny)
        await step(tiny)
        asked.close()
        async with asyncio.timeout(5):
            return await _sizes(asked)

    assert asyncio.run(run()) == [1]


def test_it_ends_when_it_is_closed_while_it_waits(tiny: Engine) -> None:
    async def run() -> list[int]:
        asked = ask(tiny)
        reading = asyncio.create_task(_sizes(asked))
        await step(tiny)
        await asyncio.sleep(0.05)
        asked.close()
        async with asyncio.timeout(5):
            return await reading

    assert asyncio.run(run())[0] == 1


async def _sizes(asked: Job) -> list[int]:
    return [len(batch) async for batch in asked.batches()]


def test_it_pins_nothing_when_it_cannot_begin(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    made = itertools.count()

    def scarce(*args: Any) -> Sequence:
        if next(made) == 1:
            raise MemoryError
        return Sequence(*args)

    async def run() -> None:
        asked = protocol.parse_completion({**ASKED, "n": 2, "temperature": 1}, tiny.tokenizer.n_vocabulary)
        Job(tiny, asked, [[5, 6]])

    monkeypatch.setattr(job, "Sequence", scarce)
    with pytest.raises(MemoryError):
        asyncio.run(run())
    assert tiny.versions.base.n_users == 0


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (lambda n: protocol.parse_completion(ASKED, n), "prompt"),
        (
            lambda n: protocol.parse_chat({"model": "base", "messages": [{"role": "user", "content": "Hi"}]}, n),
            "messages",
        ),
    ],
)
def test_it_names_the_field_of_a_prompt_that_is_too_long(
    tiny: Engine, asked: Callable[[int], protocol.Generation], field: str
) -> None:
    async def run() -> None:
        Job(tiny, asked(tiny.tokenizer.n_vocabulary), [[5] * tiny.model.context])

    with pytest.raises(BadRequest) as refused:
        asyncio.run(run())
    assert (refused.value.param, refused.value.code) == (field, "context_length_exceeded")
