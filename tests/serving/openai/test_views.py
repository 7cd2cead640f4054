"""What programs see, through OpenAI's own clients."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from django.contrib.auth.models import User
from pytest_django import Settings

from serving import adapters, database, limits
from serving.models import Adapter, ApiKey, ServedRequest
from serving.openai import views
from tests.alignapp.test_headers import HEADERS
from tests.serving.openai.asking import MESSAGES, ask, logged, posted, raw
from tests.serving.scripted import ScriptedEngine

pytestmark = pytest.mark.django_db(transaction=True)
Maker = Callable[[int], Adapter]


# --- answers ----------------------------------------------------------------------------------------------------------
def test_it_answers(engine: ScriptedEngine, client: openai.OpenAI, key: ApiKey, ada: User) -> None:
    answer = ask(client, max_tokens=5, temperature=0.5)
    assert answer.choices[0].message.content == "Hello, world!"
    assert (answer.model, answer.system_fingerprint) == ("current", adapters.current().name)
    assert answer.usage.total_tokens == 7
    [row] = logged()
    assert (row.endpoint, row.alias, row.adapter, row.engine) == (
        "chat.completions", "current", adapters.current(), engine.url,
    )  # fmt: skip
    assert (row.person_id, row.key_id, row.outcome, row.status) == (ada.pk, key.pk, "done", 200)
    assert (row.prompt_tokens, row.completion_tokens, row.is_canary) == (3, 4, False)
    assert row.seconds_to_first_token is None  # of a whole answer nobody knows it


def test_it_tells_the_engine_for_whom_it_asks(engine: ScriptedEngine, client: openai.OpenAI, ada: User) -> None:
    """However many keys they have."""
    ask(client)
    list(ask(client, stream=True))
    assert engine.callers == [f"person-{ada.pk}"] * 2


def test_it_streams(engine: ScriptedEngine, client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, world!"
    assert {(chunk.model, chunk.system_fingerprint) for chunk in chunks} == {("current", adapters.current().name)}
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)
    [row] = logged()
    assert (row.outcome, row.prompt_tokens, row.completion_tokens) == ("done", 3, 4)
    assert row.seconds_to_first_token is not None


def test_it_ends_a_stream_with_its_usage_for_those_who_ask(engine: ScriptedEngine, client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [7]
    assert chunks[-1].choices == []


@pytest.mark.parametrize("is_stream", [False, True])
def test_it_completes_texts(engine: ScriptedEngine, client: openai.OpenAI, is_stream: bool) -> None:
    found: Any = client.completions.create(model="base", prompt="Once upon", stream=is_stream, max_tokens=9)
    chunks = list(found) if is_stream else [found]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello, world!"
    assert {chunk.model for chunk in chunks} == {"base"}
    assert logged()[0].endpoint == "completions"


async def test_it_answers_the_asynchronous_client(
    engine: ScriptedEngine, async_client: openai.AsyncOpenAI, closed_connections: None
) -> None:
    whole = await async_client.chat.completions.create(model="current", messages=MESSAGES)
    stream = await async_client.chat.completions.create(model="current", messages=MESSAGES, stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert whole.choices[0].message.content == "".join(pieces) == "Hello, world!"
    await database.run(logged, 2)


def test_it_changes_nothing_in_what_the_engine_says_but_the_names(
    engine: ScriptedEngine, address: str, shown_key: str
) -> None:
    said = b'{"id":"x", "model":"base","odd" : [1.50,"\\u00e9 \\"model\\": \\"base\\""],"choices":[{"delta":{"content":"a"}}]}'
    engine.raw_stream = b"data: " + said + b"\n\ndata: [DONE]\n\n"
    got = posted(address, shown_key, {"model": "current", "messages": MESSAGES, "stream": True})
    names = f'"model":"current","system_fingerprint":"{adapters.base().name}"'.encode()
    assert got.content == b"data: " + said.replace(b'"model":"base"', names, 1) + b"\n\ndata: [DONE]\n\n"


# --- names ------------------------------------------------------------------------------------------------------------
def test_it_knows_models_by_alias_number_and_name(
    engine: ScriptedEngine, client: openai.OpenAI, good_adapter: Maker
) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    adapters.publish(row, alias="staging")
    engine.scripts = {"base": ["base"], row.name: ["tuned"]}
    for name in ("current", "staging", row.name, f"adapter-{row.pk}"):
        answer = ask(client, name)
        assert (answer.choices[0].message.content, answer.model, answer.system_fingerprint) == ("tuned", name, row.name)
    for name in ("base", adapters.base().name):
        assert ask(client, name).choices[0].message.content == "base"
    aliases = {request.alias for request in logged(6)}
    assert aliases == {"current", "staging", ""}


def test_it_sees_at_once_that_an_alias_was_moved(
    engine: ScriptedEngine, client: openai.OpenAI, good_adapter: Maker
) -> None:
    old, new = good_adapter(1), good_adapter(2)
    for row in (old, new, old):
        adapters.publish(row)
        answer = raw(client)
        assert answer.headers["x-alignapp-version"] == answer.parse().system_fingerprint == row.name


def test_it_keeps_a_conversation_on_one_side_of_a_trial(
    engine: ScriptedEngine, client: openai.OpenAI, good_adapter: Maker
) -> None:
    stable, canary = good_adapter(1), good_adapter(2)
    adapters.publish(stable)
    adapters.start_canary(canary, share=0.5, actor=None, reason="a try")

    def sides(**more: Any) -> list[str]:
        messages: Any = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": more.pop("text", "Hi")}]
        longer = [*messages, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "And?"}]
        create = client.chat.completions.create
        return [create(model="current", messages=m, **more).system_fingerprint or "" for m in (messages, longer)]

    first_words = [sides(text=f"Question {i}") for i in range(12)]
    people = [sides(text=f"Something else {i}", user=f"person {i % 12}") for i in range(24)]
    assert all(first == later for first, later in first_words)
    assert people[:12] == people[12:]
    assert {side for pair in first_words for side in pair} == {stable.name, canary.name}
    assert {request.adapter.name for request in logged() if request.is_canary} == {canary.name}


def test_it_lists_the_models(engine: ScriptedEngine, client: openai.OpenAI, good_adapter: Maker) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    found = {model.id: model for model in client.models.list()}
    assert set(found) == {"current", row.name, "base"}
    roots = {name: (model.root, model.parent) for name, model in found.items()}  # type: ignore[attr-defined]
    assert roots == {"current": (row.name, "base"), row.name: (row.name, "base"), "base": ("base", None)}
    for name in (*found, f"adapter-{row.pk}"):
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("adapter-9999/x")


# --- errors -----------------------------------------------------------------------------------------------------------
def test_it_names_what_is_wrong_with_a_request(engine: ScriptedEngine, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, extra_body={"chat_template": "{{ evil }}"})
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", "chat_template")
    with pytest.raises(openai.NotFoundError) as missing:
        ask(client, "gpt-7")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert not engine.requests
    assert not ServedRequest.objects.exists()


def test_it_passes_on_why_the_engine_refused(engine: ScriptedEngine, client: openai.OpenAI) -> None:
    engine.refusal = (400, "max_tokens must be a whole number.")
    for is_stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="max_tokens must be"):
            ask(client, stream=is_stream)
    assert [(row.outcome, row.status) for row in logged(2)] == [("refused", 400)] * 2


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        (500, 502, "engine_error"),
        (401, 502, "engine_error"),
        (503, 503, "engine_unavailable"),
        (429, 503, "engine_unavailable"),
        (507, 503, "no_place"),
    ],
)
def test_it_tells_nobody_what_went_wrong_inside(
    engine: ScriptedEngine, client: openai.OpenAI, status: int, told: int, code: str
) -> None:
    engine.refusal = (status, "secret token of the engine")
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client)
    assert (caught.value.status_code, caught.value.code) == (told, code)
    assert "secret" not in str(caught.value)
    assert ("retry-after" in caught.value.response.headers) == (told == 503)
    assert logged()[0].outcome == "failed"


def test_it_says_when_a_version_has_no_place(
    engine: ScriptedEngine, client: openai.OpenAI, good_adapter: Maker
) -> None:
    """Those that aliases point at keep theirs."""
    adapters.publish(named := good_adapter(1))
    for seed in (2, 3):
        adapters.publish(good_adapter(seed))
    engine.adapters.pop(named.name)
    engine.max_adapters = 2
    with pytest.raises(openai.InternalServerError, match="no place for this version") as caught:
        ask(client, named.name)
    assert (caught.value.status_code, caught.value.code) == (503, "no_place")
    assert caught.value.response.headers["retry-after"] == "15"
    [row] = logged()
    assert (row.adapter, row.outcome, row.status) == (named, "failed", 503)


def test_it_says_when_no_engine_answers(engine: ScriptedEngine, client: openai.OpenAI, settings: Settings) -> None:
    settings.ENGINE_URLS = ["http://127.0.0.1:9"]
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, stream=True)
    assert (caught.value.status_code, caught.value.response.headers["retry-after"]) == (503, "2")


def test_it_tells_of_a_failure_in_the_middle_of_a_stream(engine: ScriptedEngine, client: openai.OpenAI) -> None:
    engine.cut_after = 2
    stream = iter(ask(client, stream=True))
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["Hello", ", "]
    with pytest.raises(openai.APIError, match="starting or has too much"):
        next(stream)
    [row] = logged()
    assert (row.outcome, row.status, row.completion_tokens) == ("failed", 503, 2)
    assert len(engine.paths("/v1/chat/completions")) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1", 404), ("GET", "/v1/", 404), ("POST", "/v1/embeddings", 404), ("GET", "/v1/models/", 404),
        ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405), ("OPTIONS", "/v1/completions", 405),
        ("POST", "/v1/chat/completions/", 404), ("GET", "/v1/models/x?%ff=%fe", 404),
        ("GET", "/v1/%0A", 404), ("GET", "/v1/models/a%0Ab", 404),
    ],
)  # fmt: skip
def test_it_answers_in_one_format_below_v1(address: str, shown_key: str, method: str, path: str, status: int) -> None:
    url = httpx.URL(address, raw_path=path.encode())
    got = httpx.request(method, url, headers={"Authorization": f"Bearer {shown_key}"})
    assert (got.status_code, got.headers["content-type"]) == (status, "application/json")
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}
    assert got.headers["x-request-id"]
    assert {name: got.headers.get(name) for name in HEADERS} == HEADERS
    assert got.headers["content-security-policy"].startswith("default-src 'none'; ")


def test_it_leaves_what_only_begins_like_v1_to_the_site(address: str) -> None:
    assert httpx.get(f"{address}/v1x").headers["content-type"].startswith("text/html")


def test_it_takes_no_more_than_a_limit_of_bytes(
    engine: ScriptedEngine, address: str, shown_key: str, settings: Settings
) -> None:
    settings.MAX_PROMPT_BYTES = 1000
    fits = {"model": "current", "messages": [{"role": "user", "content": "x" * 800}]}
    assert posted(address, shown_key, fits).status_code == 200
    got = posted(address, shown_key, {"messages": "x" * 10_000})
    assert (got.status_code, got.json()["error"]["code"]) == (413, "request_too_large")


def test_it_goes_by_the_sites_names_only(address: str, shown_key: str) -> None:
    got = posted(address, shown_key, {}, Host="evil.example")
    assert (got.status_code, got.headers["content-type"]) == (400, "application/json")


# --- headers and limits -----------------------------------------------------------------------------------------------
def test_it_answers_with_the_senders_request_id(engine: ScriptedEngine, client: openai.OpenAI) -> None:
    assert raw(client, extra_headers={"X-Request-Id": "job-7:3"}).headers["x-request-id"] == "job-7:3"
    assert logged()[0].request_id == "job-7:3"
    other = raw(client, extra_headers={"X-Request-Id": "no good" * 30}).headers
    assert other["x-request-id"].startswith("req_")
    assert int(other["openai-processing-ms"]) >= 0


# --- silence, and readers who leave -----------------------------------------------------------------------------------
def test_it_keeps_a_silent_stream_alive(
    engine: ScriptedEngine, address: str, shown_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PING_SECONDS", 0.05)
    engine.silence.clear()
    headers = {"Authorization": f"Bearer {shown_key}"}
    body = {"model": "current", "messages": MESSAGES, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, headers=headers, timeout=30) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")
        lines = response.iter_lines()
        assert [next(lines) for _ in range(4)] == [": ping", "", ": ping", ""]
        engine.silence.set()
        rest = "".join(lines)
    assert rest.endswith("data: [DONE]")
    assert "Hello" in rest


def test_it_still_tells_of_an_error_after_a_comment(
    engine: ScriptedEngine, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "PING_SECONDS", 0.05)
    engine.silence.clear()
    engine.cut_after = 0
    stream = ask(client, stream=True)
    engine.silence.set()
    with pytest.raises(openai.APIError):
        list(stream)
    assert logged()[0].outcome == "failed"


@pytest.mark.parametrize("silent", ["silence", "hold"])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_it_ends_the_request_in_the_engine_when_the_reader_leaves(
    engine: ScriptedEngine,
    async_client: openai.AsyncOpenAI,
    key: ApiKey,
    closed_connections: None,
    silent: str,
    is_stream: bool,
) -> None:
    """Before the first token, and after it."""
    engine.silence.clear()
    if silent == "hold":
        engine.hold.clear()
        if is_stream:
            engine.silence.set()

    async def ask() -> None:
        answer: Any = await async_client.chat.completions.create(model="current", messages=MESSAGES, stream=is_stream)
        async for _chunk in answer:
            is_begun.set()

    is_begun = asyncio.Event()
    reader = asyncio.create_task(ask())
    assert await asyncio.to_thread(engine.asked.wait, 10)
    if is_stream and silent == "hold":
        await asyncio.wait_for(is_begun.wait(), 10)
    assert limits.n_running(key) == 1
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert await asyncio.to_thread(engine.left.wait, 10)
    [row] = await database.run(logged)
    assert (row.outcome, row.status) == ("cancelled", 499)
    # Who leaves has used the prompt, and what came of the answer.
    assert row.prompt_tokens > 10
    assert row.completion_tokens == (1 if is_stream and silent == "hold" else 0)
    assert limits.n_running(key) == 0
