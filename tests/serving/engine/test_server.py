"""The HTTP API as clients see it: the official OpenAI client, plain HTTP, and clients that misbehave."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from serving.engine import server
from serving.engine.admission import Limits
from serving.engine.engine import Engine, Options, build
from tests.serving.engine.conftest import TOKEN, make_adapter

Serve = Callable[[Engine], str]
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello there, how are you?"}]
GREEDY: dict[str, Any] = {"model": "base", "messages": HELLO, "temperature": 0, "max_tokens": 12}


@pytest.fixture
def url(tiny: Engine, serve: Serve) -> str:
    return serve(tiny)


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0)


@pytest.fixture
def http(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)


def wait_until_idle(engine: Engine) -> None:
    for _ in range(2000):
        if engine.scheduler.counts() == (0, 0):
            return
        time.sleep(0.01)
    raise AssertionError("the engine keeps working for nobody")


def test_it_chats_with_the_openai_client(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(**GREEDY)
    choice = found.choices[0]
    assert (found.object, found.model) == ("chat.completion", "base")
    assert choice.message.role == "assistant"
    assert choice.finish_reason in {"length", "stop"}
    assert found.usage
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.usage.completion_tokens <= 12
    again = client.chat.completions.create(**GREEDY)
    assert again.choices[0].message.content == choice.message.content
    assert again.usage
    assert again.usage.prompt_tokens_details
    assert again.usage.prompt_tokens_details.cached_tokens == found.usage.prompt_tokens


def test_it_streams_what_it_answers_at_once(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY)
    chunks = list(client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert not chunks[-1].choices
    assert chunks[-1].usage
    assert whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1
    assert {c.object for c in chunks} == {"chat.completion.chunk"}


def test_it_gives_several_choices_that_a_seed_repeats(client: openai.OpenAI) -> None:
    how: dict[str, Any] = {**GREEDY, "temperature": 1, "seed": 5, "n": 3}
    first, second = (client.chat.completions.create(**how) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in second.choices] == texts
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**how, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_it_reports_logprobs_in_chat(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    logprobs = found.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    assert found.usage
    assert len(logprobs.content) == found.usage.completion_tokens
    for item in logprobs.content:
        assert item.logprob <= 0
        assert item.top_logprobs[0].logprob == pytest.approx(item.logprob)  # greedy
        assert bytes(item.bytes or []).decode() == item.token
    chunks = client.chat.completions.create(**GREEDY, logprobs=True, stream=True)
    streamed = [i for c in chunks if c.choices[0].logprobs for i in c.choices[0].logprobs.content or []]
    assert [item.token for item in streamed] == [item.token for item in logprobs.content]


def test_it_completes_text_and_token_ids(client: openai.OpenAI, http: httpx.Client) -> None:
    ids = http.post("/tokenize", json={"prompt": "Once upon a time"}).json()["tokens"]
    one = client.completions.create(model="base", prompt="Once upon a time", temperature=0, max_tokens=5, logprobs=2)
    two = client.completions.create(model="base", prompt=[ids, [7, 8]], temperature=0, max_tokens=5)
    assert one.choices[0].text == two.choices[0].text
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.usage
    assert two.usage.prompt_tokens == len(ids) + 2
    logprobs = one.choices[0].logprobs
    assert logprobs
    assert logprobs.tokens
    assert "".join(logprobs.tokens) == one.choices[0].text
    assert logprobs.text_offset
    assert logprobs.text_offset[1] == len(logprobs.tokens[0])
    streamed = client.completions.create(model="base", prompt=ids, temperature=0, max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text


def test_it_scores_a_prompt_as_vllm_does(http: httpx.Client) -> None:
    body = {"model": "base", "prompt": [5, 6, 7, 8], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    found = http.post("/v1/completions", json=body).json()["choices"][0]["prompt_logprobs"]
    assert found[0] is None
    assert [str(token) in entry for token, entry in zip([6, 7, 8], found[1:], strict=True)] == [True] * 3
    for entry in found[1:]:
        assert min(item["rank"] for item in entry.values()) == 1
        assert all(set(item) == {"logprob", "rank", "decoded_token"} for item in entry.values())


def test_it_loads_lists_uses_and_unloads_adapters(
    client: openai.OpenAI, http: httpx.Client, tiny_model_dir: Path, adapters_dir: Path
) -> None:
    make_adapter(adapters_dir / "adapter-1-aa", tiny_model_dir)
    load = {"lora_name": "adapter-1-aa", "lora_path": str(adapters_dir / "adapter-1-aa")}
    answer = http.post("/v1/load_lora_adapter", json=load)
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'adapter-1-aa' added successfully.")
    again = http.post("/v1/load_lora_adapter", json=load)
    assert again.status_code == 400
    assert "already been loaded" in again.json()["error"]["message"]
    models = http.get("/v1/models").json()["data"]
    assert [(m["id"], m["parent"]) for m in models] == [("base", None), ("adapter-1-aa", "base")]
    assert [m.id for m in client.models.list()] == ["base", "adapter-1-aa"]
    base, adapted = (client.chat.completions.create(**{**GREEDY, "model": m["id"]}) for m in models)
    assert base.choices[0].message.content != adapted.choices[0].message.content
    assert adapted.system_fingerprint == models[1]["sha256"][:12]
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "adapter-1-aa"}).status_code == 200
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**GREEDY, "model": "adapter-1-aa"})
    assert caught.value.code == "model_not_found"
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "adapter-1-aa"}).status_code == 404


def test_it_refuses_adapters_with_a_sentence(http: httpx.Client, tiny_model_dir: Path, adapters_dir: Path) -> None:
    folder = make_adapter(adapters_dir / "bad", tiny_model_dir)
    (folder / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    for body in (
        {"lora_name": "x", "lora_path": "bad"},
        {"lora_name": "x", "lora_path": "/etc"},
        {"lora_name": "x"},
        {"lora_name": 3, "lora_path": "bad"},
        {"lora_name": "x", "lora_path": "bad", "load_inplace": True},
    ):
        answer = http.post("/v1/load_lora_adapter", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].endswith(".")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/load_lora_adapter", "/tokenize"])
def test_it_lets_nobody_in_without_the_token(url: str, path: str) -> None:
    method = "GET" if path == "/v1/models" else "POST"
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
    ):
        answer = httpx.request(method, url + path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_it_tells_its_health_and_numbers_to_anybody(url: str, client: openai.OpenAI) -> None:
    assert httpx.get(f"{url}/health").status_code == 200
    client.chat.completions.create(**GREEDY)
    text = httpx.get(f"{url}/metrics").text
    labels = 'model_name="base",engine="0"'
    assert f"vllm:num_requests_running{{{labels}}} 0" in text
    assert f'engine:requests_ended_total{{{labels},outcome="done"}} 1' in text
    assert f'vllm:time_to_first_token_seconds_bucket{{{labels},le="+Inf"}} 1' in text


def test_it_answers_everything_wrong_in_openais_format(http: httpx.Client) -> None:
    long = [{"role": "user", "content": "word " * 9000}]
    for method, path, content, status in (
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"[" * 200_000, 400),
        ("POST", "/v1/chat/completions", b'{"a": NaN}', 400),
        ("POST", "/v1/chat/completions", b"\xff", 400),
        ("POST", "/v1/chat/completions", b"9" * 10_000, 400),
        ("POST", "/v1/chat/completions", b" " * (9 << 20), 413),
        ("POST", "/v1/chat/completions", json.dumps({**GREEDY, "model": "no"}).encode(), 404),
        ("POST", "/v1/chat/completions", json.dumps({**GREEDY, "messages": long}).encode(), 400),
        ("POST", "/v1/completions", b'{"model": "base", "prompt": "\\ud800"}', 400),
        ("POST", "/tokenize", b'{"prompt": "a", "messages": []}', 400),
        ("GET", "/v1/chat/completions", b"", 405),
        ("GET", "/nowhere", b"", 404),
    ):
        answer = http.request(method, path, content=content)
        assert (path, answer.status_code) == (path, status)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_it_tokenizes_conversations(http: httpx.Client) -> None:
    found = http.post("/tokenize", json={"model": "base", "messages": HELLO}).json()
    assert found["count"] == len(found["tokens"])
    assert found["max_model_len"] == 8192
    short = http.post("/tokenize", json={"messages": HELLO, "add_generation_prompt": False}).json()
    assert found["tokens"][: short["count"]] == short["tokens"]
    assert found["count"] > short["count"]


def test_it_stops_working_for_a_client_that_has_left(tiny: Engine, url: str) -> None:
    body = {**GREEDY, "max_tokens": 8000, "ignore_eos": True}
    for stream in (True, False):
        data = json.dumps({**body, "stream": stream}).encode()
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            if stream:
                assert connection.recv(100)
            else:
                while tiny.scheduler.counts() == (0, 0):
                    time.sleep(0.005)
        wait_until_idle(tiny)
    assert tiny.metrics.endings["cancelled"] == 2
    assert tiny.versions.base.n_users == 0


def test_it_says_503_when_it_is_full(tiny_model_dir: Path, serve: Serve) -> None:
    engine = build(Options(model=tiny_model_dir, limits=Limits(max_running=1, max_waiting=2)))
    url = serve(engine)
    statuses: list[tuple[int, str | None]] = []

    def ask() -> None:
        body = {**GREEDY, "max_tokens": 400, "ignore_eos": True}
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=120)
        statuses.append((answer.status_code, answer.headers.get("Retry-After")))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in statuses} == {200, 503}
    assert all(retry for status, retry in statuses if status == 503)
    wait_until_idle(engine)
    assert engine.versions.base.n_users == 0


def test_it_ends_open_streams_with_an_error_when_it_stops(tiny: Engine, client: openai.OpenAI) -> None:
    how: dict[str, Any] = {**GREEDY, "max_tokens": 8000, "extra_body": {"ignore_eos": True}}
    stream = client.chat.completions.create(**how, stream=True)
    next(stream)
    tiny.stop()
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(**GREEDY)


def test_it_tells_whoever_waits_that_a_thread_could_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise PermissionError("no core")

    async def run() -> None:
        async with asyncio.timeout(5):
            await server._in_background(lambda: 1)

    monkeypatch.setattr(server, "_use_one_core", refused)
    with pytest.raises(PermissionError):
        asyncio.run(run())
