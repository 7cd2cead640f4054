"""A publication needs room that versions with answers on them give up only when these have ended."""

import asyncio

import openai
import pytest

from serving import adapters, database
from serving.client import engines
from serving.models import Adapter

pytestmark = [pytest.mark.slow, pytest.mark.ml, pytest.mark.django_db(transaction=True)]


async def test_it_publishes_when_answers_on_versions_that_were_pushed_out_have_ended(
    rows: list[Adapter], async_client: openai.AsyncOpenAI
) -> None:
    for row in rows[:4]:
        await database.run_long(adapters.publish, row)

    async def read(row: Adapter) -> str:
        stream = await async_client.completions.create(
            model=row.name, prompt="Once", max_tokens=600, stream=True, extra_body={"ignore_eos": True}
        )
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].text
            begun[row.name].set()
        return text

    begun = {row.name: asyncio.Event() for row in rows[:2]}
    readers = [asyncio.create_task(read(row)) for row in rows[:2]]
    await asyncio.gather(*(event.wait() for event in begun.values()))
    await database.run_long(adapters.publish, rows[4])
    assert all(await asyncio.gather(*readers))
    assert rows[4].name in await asyncio.to_thread(engines()[0].models)
