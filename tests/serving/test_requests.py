from collections.abc import Callable
from datetime import timedelta

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.utils import timezone
from pytest_django import Settings

from serving import adapters, chat, database, requests, tasks, writing
from serving.client import EngineDown, EngineError, EngineSlow, Usage
from serving.models import Adapter, Message, ServedRequest
from serving.requests import Outcome, Served
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("closed_connections")]


@pytest.fixture
def answer(engine: ScriptedEngine, ada: User) -> Message:
    return chat.start(ada, "a secret question").children.get()


async def logged(answer: Message) -> ServedRequest:
    claimed = await database.run(chat.claim, answer.pk)
    assert claimed is not None
    async for _text in writing.write(claimed):
        pass
    return await ServedRequest.objects.select_related("adapter", "person").aget()


async def test_it_logs_an_answer_of_a_page_and_nothing_that_was_said(
    answer: Message, engine: ScriptedEngine, ada: User
) -> None:
    row = await logged(answer)
    assert (row.endpoint, row.alias, row.adapter_id, row.person) == ("page", "current", answer.adapter_id, ada)
    assert (row.outcome, row.status, row.error) == (Outcome.DONE, 200, "")
    assert (row.prompt_tokens, row.completion_tokens, row.engine) == (3, 4, engine.url)
    assert row.seconds_to_first_token is not None
    assert 0 < row.seconds_to_first_token <= row.seconds
    said = " ".join(str(value) for value in vars(row).values())
    assert "secret" not in said
    assert "Hello" not in said


async def test_it_logs_that_the_engine_failed(answer: Message, engine: ScriptedEngine) -> None:
    engine.cut_after = 2
    row = await logged(answer)
    assert (row.outcome, row.status, row.error) == (Outcome.FAILED, 503, "stream cut off")
    assert row.seconds_to_first_token is not None


async def test_it_logs_that_the_request_was_at_fault(answer: Message, engine: ScriptedEngine) -> None:
    engine.refusal = (400, "too long")
    row = await logged(answer)
    assert (row.outcome, row.status, row.seconds_to_first_token) == (Outcome.REFUSED, 400, None)


async def test_it_logs_that_the_reader_left(answer: Message, engine: ScriptedEngine) -> None:
    engine.hold.clear()
    claimed = await database.run(chat.claim, answer.pk)
    assert claimed is not None
    texts = writing.write(claimed)
    await anext(texts)
    await texts.aclose()
    row = await ServedRequest.objects.aget()
    assert (row.outcome, row.status) == (Outcome.CANCELLED, 499)


async def test_it_names_the_canary(answer: Message, adapter: Callable[[int], Adapter]) -> None:
    row = await sync_to_async(adapter)(1)
    served = await sync_to_async(lambda: _of_page_with_canary(answer, row))()
    assert (served.alias, served.is_canary) == ("current", True)


def _of_page_with_canary(answer: Message, row: Adapter) -> Served:
    adapters.Deployment.objects.filter(alias="current").update(canary=row, canary_share=0.5)
    return requests.of_page(answer, row)


@pytest.mark.parametrize(
    ("failure", "outcome", "status"),
    [
        (EngineDown(), Outcome.FAILED, 503),
        (EngineSlow(), Outcome.FAILED, 504),
        (EngineError(404, "no such model"), Outcome.FAILED, 503),
        (EngineError(429, "full"), Outcome.FAILED, 503),
        (EngineError(507, "no place"), Outcome.FAILED, 503),
        (EngineError(401, "wrong token"), Outcome.FAILED, 502),
        (EngineError(400, "bad"), Outcome.REFUSED, 400),
        (EngineError(500, "broken"), Outcome.FAILED, 502),
    ],
)
def test_it_knows_whose_fault_it_was(
    adapter: Callable[[int], Adapter], failure: Exception, outcome: str, status: int
) -> None:
    served = Served("page", adapters.base())
    assert isinstance(failure, EngineDown | EngineError)
    served.note_failure(failure)
    assert (served.outcome, served.status) == (outcome, status)


def test_it_purges_what_is_older_than_the_setting(engine: ScriptedEngine, settings: Settings) -> None:
    settings.REQUEST_LOG_DAYS = 7
    now = timezone.now()
    for days in (1, 6, 8, 400):
        requests.record(Served("page", adapters.base(), at=now - timedelta(days=days), usage=Usage(1, 1)))
    tasks.reconcile()
    assert [(now - row.at).days for row in ServedRequest.objects.all()] == [1, 6]
