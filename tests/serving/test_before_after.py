from collections.abc import Callable

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.http import StreamingHttpResponse
from django.test import AsyncClient
from django.urls import reverse

from serving import adapters, before_after, chat
from serving.models import Adapter, Message, ServedRequest
from serving.sampling import Settings
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("closed_connections")]
Maker = Callable[[int], Adapter]


@pytest.fixture
def answer(engine: ScriptedEngine, ada: User) -> Message:
    question = chat.start(ada, "Hi", settings=Settings("Be brief.", {"seed": 4}))
    chat.finish(question.children.get().pk, Message.Status.COMPLETE, "An answer.", {})
    return question.children.get()


async def test_it_shows_each_version_once(good_adapter: Maker, engine: ScriptedEngine) -> None:
    def columns() -> list[tuple[Adapter, list[str]]]:
        return [(column.adapter, column.names) for column in before_after.columns()]

    base, first, second = await sync_to_async(lambda: (adapters.base(), good_adapter(1), good_adapter(2)))()
    assert await sync_to_async(columns)() == [(base, ["base", "current"])]
    await sync_to_async(adapters.publish)(first)
    assert await sync_to_async(columns)() == [(base, ["base", "previous"]), (first, ["current"])]
    await sync_to_async(adapters.publish)(second)
    assert await sync_to_async(columns)() == [(base, ["base"]), (first, ["previous"]), (second, ["current"])]


async def events(client: AsyncClient, url: str) -> str:
    response = await client.post(url)
    assert isinstance(response, StreamingHttpResponse)
    return b"".join([chunk async for chunk in response.streaming_content]).decode()


async def test_it_asks_the_same_again_and_stores_nothing(
    async_client: AsyncClient, engine: ScriptedEngine, ada: User, answer: Message
) -> None:
    await async_client.aforce_login(ada)
    url = reverse("message_version_stream", args=[answer.pk, answer.adapter_id])
    body = await events(async_client, url)
    assert '"html": "<p>Hello, world!</p>\\n", "error": ""' in body
    [asked] = engine.paths("/v1/chat/completions")
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert asked["seed"] == 4
    assert await Message.objects.acount() == 2
    row = await ServedRequest.objects.aget()
    assert (row.outcome, row.completion_tokens, row.engine) == ("done", 4, engine.url)
    assert row.seconds_to_first_token is not None


async def test_it_says_in_its_column_what_went_wrong(
    async_client: AsyncClient, engine: ScriptedEngine, ada: User, answer: Message
) -> None:
    await async_client.aforce_login(ada)
    url = reverse("message_version_stream", args=[answer.pk, answer.adapter_id])
    engine.cut_after = 2
    body = await events(async_client, url)
    assert "Hello," in body
    assert "stopped in the middle" in body
    assert [row.outcome async for row in ServedRequest.objects.all()] == ["failed"]


async def test_it_asks_only_versions_that_there_are(async_client: AsyncClient, ada: User, answer: Message) -> None:
    await async_client.aforce_login(ada)
    response = await async_client.post(reverse("message_version_stream", args=[answer.pk, 10**9]))
    assert response.status_code == 404
