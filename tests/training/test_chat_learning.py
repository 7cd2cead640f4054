"""From the chat page into the next snapshot: every step through the addresses that the page itself uses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connections
from django.http import StreamingHttpResponse
from django.test import AsyncClient
from django.urls import reverse
from pytest_django import Settings

from labeling.models import Campaign
from serving import adapters
from serving.models import Adapter, Message
from tests.serving import folders
from tests.serving.scripted import TOKEN, ScriptedEngine, running
from training.lines import MIN_LINES
from training.models import Snapshot
from training.snapshots import freeze

pytestmark = pytest.mark.django_db(transaction=True)
N_QUESTIONS = 3 * MIN_LINES  # some are held out


@pytest.fixture
def engine(settings: Settings, tmp_path: Path) -> Iterator[ScriptedEngine]:
    """The base and one version, which answers otherwise."""
    (tmp_path / "alignapp-model.json").write_text(json.dumps({"sha256": folders.BASE_SHA256}))
    settings.MODEL, settings.ENGINE_TOKEN = str(tmp_path), TOKEN
    scripted = ScriptedEngine()
    with running(scripted) as url:
        settings.ENGINE_URLS = [url]
        yield scripted


@pytest.fixture
def version(engine: ScriptedEngine) -> Adapter:
    row = Adapter.objects.create(
        name="adapter-7-abcdef", status="ready", sha256="7" * 64, base_sha256=adapters.base().sha256
    )
    engine.adapters[row.name] = "/resident"
    engine.scripts = {"base": ["The old ", "answer."], row.name: ["The new ", "answer."]}
    return row


async def post(client: AsyncClient, name: str, *args: Any, **body: Any) -> Any:
    response = await client.post(reverse(name, args=args), json.dumps(body), content_type="application/json")
    assert response.status_code in (200, 201), response.content
    return response.json()


async def read(client: AsyncClient, answer: Message) -> None:
    response = await client.get(reverse("message_stream", args=[answer.pk]))
    assert isinstance(response, StreamingHttpResponse)
    assert b"event: end" in b"".join([chunk async for chunk in response.streaming_content])


async def compare(client: AsyncClient, text: str, version: Adapter) -> None:
    """Asks, has the answer compared with one of `version`, and chooses that one."""
    started = await post(client, "chat_start", content=text)
    old = await Message.objects.aget(conversation=started["id"], role="assistant")
    await read(client, old)
    await post(client, "message_challenge", old.pk, version=version.name)
    new = await Message.objects.aget(conversation=started["id"], adapter=version)
    await read(client, new)
    question = await Message.objects.aget(conversation=started["id"], role="user")
    sides = [question.comparison["left"], question.comparison["right"]]
    chosen = {"messages": sides, "client_key": question.comparison["client_key"], "choice": str(new.pk)}
    await post(client, "chat_comparison", verdict="preference", **chosen)
    side = ("left", "right")[sides.index(str(new.pk))]
    key = question.comparison["client_key"]
    shown = await post(client, "comparison_choose", question.pk, choice=side, client_key=key, is_stored=True)
    assert "your choice" in shown["html"]


async def test_it_finds_the_choice_between_two_answers_in_the_next_snapshot(
    async_client: AsyncClient, version: Adapter
) -> None:
    ada = await User.objects.acreate_user("ada")
    await async_client.aforce_login(ada)
    consent = json.dumps({"consent": True})
    await async_client.put(reverse("chat_consent"), consent, content_type="application/json")
    questions = [f"What is the number {i} good for, {'really ' * i}?" for i in range(N_QUESTIONS)]
    for text in questions:
        await compare(async_client, text, version)

    def frozen() -> Snapshot:
        return freeze(Campaign.objects.get(slug="chat"))

    snapshot = await sync_to_async(frozen)()
    files = (snapshot.folder / f"{name}.jsonl" for name in ("train", "heldout"))
    lines = [json.loads(line) for file in files for line in file.open()]
    assert snapshot.counts["used"] == len(lines) == N_QUESTIONS
    assert {line["messages"][-1]["content"] for line in lines} == {text.strip() for text in questions}
    assert {(line["chosen"], line["rejected"]) for line in lines} == {("The new answer.", "The old answer.")}
    assert {line["chosen_version"] for line in lines} == {version.name}
    await sync_to_async(connections.close_all)()
