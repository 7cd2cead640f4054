"""vLLM's and OpenAI's less common fields, as the official client and plain HTTP see them."""

import asyncio
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serving.engine.engine import Engine
from tests.serving.engine.conftest import TOKEN, make_adapter

REPOSITORY = Path(__file__).resolve().parents[3]
MESSAGES = [{"role": "user", "content": "Hello there, how are you?"}]
CHAT: dict[str, Any] = {"model": "base", "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
TEXT: dict[str, Any] = {"model": "base", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 8}


@pytest.fixture
def url(tiny: Engine, serve: Callable[[Engine], str]) -> str:
    return serve(tiny)


@pytest.fixture
def http(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)


def asked(http: httpx.Client, path: str, body: dict[str, Any], **more: Any) -> Any:
    answer = http.post(path, json={**body, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(http: httpx.Client, path: str, body: dict[str, Any], **more: Any) -> list[Any]:
    answer = http.post(path, json={**body, **more, "stream": True})
    *found, last = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert last == "[DONE]"
    return [json.loads(item) for item in found]


def test_it_accepts_what_clients_send_always(http: httpx.Client) -> None:
    harmless: dict[str, Any] = {
        "n": 1, "best_of": 1, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "modalities": ["text"],
        "response_format": {"type": "text"}, "reasoning_effort": "low", "service_tier": "auto", "store": False, "user": "u",
        "metadata": {}, "stop": None, "seed": None, "logit_bias": {}, "skip_special_tokens": True, "length_penalty": 1.0,
        "use_beam_search": False, "stream_options": None, "verbosity": "low", "prompt_cache_key": "k", "priority": 0,
    }  # fmt: skip
    plain = asked(http, "/v1/chat/completions", CHAT)["choices"]
    assert asked(http, "/v1/chat/completions", CHAT, **harmless)["choices"] == plain
    named = [{"type": "function", "function": {"name": "f"}}]
    assert asked(http, "/v1/chat/completions", CHAT, tools=named, tool_choice="none")["choices"] == plain
    returned: dict[str, Any] = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "tool_calls": None,
        "audio": None,
        "annotations": [],
    }
    asked(http, "/v1/chat/completions", CHAT, messages=[*MESSAGES, returned, *MESSAGES])


@pytest.mark.parametrize(
    ("field", "value"),
    [("tools", [{}]), ("guided_json", {}), ("suffix", "x"), ("echo", True), ("bad_words", ["x"]), ("cache_salt", "s"),
     ("load_inplace", True)],
)  # fmt: skip
def test_it_refuses_by_name_what_it_does_not_serve(http: httpx.Client, field: str, value: Any) -> None:
    answer = http.post("/v1/chat/completions", json={**CHAT, field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert re.match(r".+\.$", error["message"])


def test_it_answers_at_least_as_many_tokens_as_asked(http: httpx.Client) -> None:
    ending = {"logit_bias": {"2": 100.0}}
    assert asked(http, "/v1/completions", TEXT, **ending)["usage"]["completion_tokens"] == 1
    found = asked(http, "/v1/completions", TEXT, **ending, min_tokens=5)
    assert (found["usage"]["completion_tokens"], found["choices"][0]["finish_reason"]) == (6, "stop")
    assert http.post("/v1/completions", json={**TEXT, "min_tokens": 9}).status_code == 400


def test_it_includes_a_stop_string_if_asked_and_not_before_enough_tokens(http: httpx.Client) -> None:
    whole = asked(http, "/v1/completions", TEXT, return_token_ids=True)["choices"][0]
    stop = whole["text"][3:5]
    cut = asked(http, "/v1/completions", TEXT, stop=[stop])["choices"][0]
    assert (cut["text"], cut["stop_reason"]) == (whole["text"][: whole["text"].index(stop)], stop)
    kept = asked(http, "/v1/completions", TEXT, stop=[stop], include_stop_str_in_output=True)["choices"][0]
    assert kept["text"] == cut["text"] + stop
    late = asked(http, "/v1/completions", TEXT, stop=[stop], min_tokens=8)["choices"][0]
    assert len(late["text"]) > len(kept["text"])


def test_it_streams_stop_strings_as_it_answers_them_at_once(http: httpx.Client) -> None:
    text = asked(http, "/v1/chat/completions", CHAT)["choices"][0]["message"]["content"]
    for start in range(0, len(text) - 3, 4):
        stop = {"stop": [text[start : start + 3]]}
        whole = asked(http, "/v1/chat/completions", CHAT, **stop)["choices"][0]
        chunks = [event["choices"][0] for event in events(http, "/v1/chat/completions", CHAT, **stop)]
        assert "".join(c["delta"].get("content", "") for c in chunks) == whole["message"]["content"]
        assert chunks[-1]["stop_reason"] == whole["stop_reason"] == stop["stop"][0]


def test_it_returns_token_ids(http: httpx.Client) -> None:
    whole = asked(http, "/v1/chat/completions", CHAT, return_token_ids=True)
    asked_ids = asked(http, "/tokenize", {"messages": MESSAGES})["tokens"]
    assert whole["prompt_token_ids"] == asked_ids
    assert len(whole["choices"][0]["token_ids"]) == whole["usage"]["completion_tokens"]
    found = [event["choices"][0] for event in events(http, "/v1/chat/completions", CHAT, return_token_ids=True)]
    assert found[0]["prompt_token_ids"] == asked_ids
    assert [i for choice in found for i in choice.get("token_ids", [])] == whole["choices"][0]["token_ids"]
    for body, prompts in ((TEXT, 1), ({**TEXT, "prompt": ["a b", "c"]}, 2)):
        many = asked(http, "/v1/completions", body, return_token_ids=True, n=2)["choices"]
        assert len({tuple(choice["prompt_token_ids"]) for choice in many}) == prompts


def test_it_tells_the_usage_with_each_chunk_if_asked(http: httpx.Client) -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    found = events(http, "/v1/chat/completions", CHAT, **options)
    counts = [event["usage"]["completion_tokens"] for event in found]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, found[-1]["usage"]["total_tokens"] - found[-1]["usage"]["prompt_tokens"])
    assert all(
        event["usage"] is None
        for event in events(http, "/v1/completions", TEXT, stream_options={"include_usage": True})[:-1]
    )


def test_it_echoes_and_scores_as_evaluation_harnesses_ask(http: httpx.Client) -> None:
    ids = asked(http, "/tokenize", {"prompt": TEXT["prompt"]})["tokens"]
    scored = asked(http, "/v1/completions", TEXT, echo=True, logprobs=1, max_tokens=0)
    choice = scored["choices"][0]
    assert choice["text"] == TEXT["prompt"]
    assert "".join(choice["logprobs"]["tokens"]) == TEXT["prompt"]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert scored["usage"]["completion_tokens"] == 0
    prompt = asked(http, "/v1/completions", TEXT, prompt=ids, prompt_logprobs=1, max_tokens=1)["choices"][0]
    exact = [entry[str(i)]["logprob"] for i, entry in zip(ids[1:], prompt["prompt_logprobs"][1:], strict=True)]
    assert choice["logprobs"]["token_logprobs"][1:] == exact
    plain = asked(http, "/v1/completions", TEXT, logprobs=1)["choices"][0]
    echoed = asked(http, "/v1/completions", TEXT, logprobs=1, echo=True)["choices"][0]
    assert echoed["text"] == TEXT["prompt"] + plain["text"]
    assert echoed["logprobs"]["tokens"][len(ids) :] == plain["logprobs"]["tokens"]
    assert http.post("/v1/completions", json={**TEXT, "max_tokens": 0}).status_code == 400


def test_it_keeps_the_end_of_a_prompt(http: httpx.Client) -> None:
    ids = asked(http, "/tokenize", {"prompt": TEXT["prompt"]})["tokens"]
    short = asked(http, "/v1/completions", TEXT, truncate_prompt_tokens=2)
    assert short["usage"]["prompt_tokens"] == 2
    assert short["choices"] == asked(http, "/v1/completions", TEXT, prompt=ids[-2:])["choices"]


def test_it_turns_tokens_back_into_text(http: httpx.Client) -> None:
    text = "<|im_start|>user\nä 🙂<|im_end|>"
    found = asked(http, "/tokenize", {"prompt": text, "return_token_strs": True})
    assert found["token_strs"][0] == "<|im_start|>"
    assert len(found["token_strs"]) == found["count"]
    assert asked(http, "/detokenize", {"model": "base", "tokens": found["tokens"]}) == {"prompt": text}
    for tokens in ([-1], [10**6], ["a"], "a", None):
        assert http.post("/detokenize", json={"tokens": tokens}).status_code == 400


def test_it_shows_one_model_and_its_version(http: httpx.Client, tiny_model_dir: Path, adapters_dir: Path) -> None:
    make_adapter(adapters_dir / "one", tiny_model_dir)
    load = {"lora_name": "adapter:1.a", "lora_path": "one"}
    in_place = http.post("/v1/load_lora_adapter", json={**load, "load_inplace": True})
    assert in_place.status_code == 400
    assert "never changes" in in_place.json()["error"]["message"]
    assert http.post("/v1/load_lora_adapter", json=load).status_code == 200
    listed = http.get("/v1/models").json()["data"]
    assert [http.get(f"/v1/models/{entry['id']}").json() for entry in listed] == listed
    assert http.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert httpx.get(f"{http.base_url}/version").json() == {"version": version}


def test_it_writes_metrics_as_prometheus_reads_them(http: httpx.Client) -> None:
    asked(http, "/v1/chat/completions", CHAT, n=2)
    kinds: dict[str, str] = {}
    values: dict[str, float] = {}
    for line in http.get("/metrics").text.splitlines():
        if match := re.fullmatch(r"# (HELP|TYPE) ([a-z_:0-9]+) (.+)", line):
            kinds[match[2]] = match[3]  # TYPE comes after HELP
            continue
        sample = re.fullmatch(r'([a-z_:0-9]+)(\{([a-z_]+="[^"]*",?)*\}) ([0-9.e+-]+)', line)
        assert sample, line
        family = sample[1] if sample[1] in kinds else re.sub(r"_(bucket|sum|count)$", "", sample[1])
        assert kinds[family] in ("counter", "gauge", "histogram"), line
        assert sample[1].endswith("_total") == (kinds[family] == "counter"), line
        assert sample[1] + sample[2] not in values
        values[sample[1] + sample[2]] = float(sample[4])
    labels = 'model_name="base",engine="0"'
    assert values[f"vllm:e2e_request_latency_seconds_count{{{labels}}}"] == 2
    assert values[f'vllm:e2e_request_latency_seconds_bucket{{{labels},le="+Inf"}}'] == 2
    assert values[f'vllm:request_success_total{{{labels},finished_reason="length"}}'] == 2
    assert values[f"vllm:kv_cache_usage_perc{{{labels}}}"] == 0
    assert values[f"engine:weights_bytes{{{labels}}}"] > 1e6


def test_it_serves_the_asynchronous_client(url: str) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=TOKEN, max_retries=0) as client:
            how: dict[str, Any] = {**CHAT, "n": 2, "temperature": 1, "seed": 3, "logprobs": True, "top_logprobs": 1}
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**how), client.chat.completions.create(**how, stream=True)
            )
            texts, n_logprobs = ["", ""], [0, 0]
            async for chunk in stream:
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
                    n_logprobs[choice.index] += len(choice.logprobs.content or []) if choice.logprobs else 0
            assert texts == [choice.message.content for choice in whole.choices]
            assert texts[0] != texts[1]
            assert n_logprobs == [len(c.logprobs.content or []) for c in whole.choices if c.logprobs]
            assert (await client.models.retrieve("base")).id == "base"

    asyncio.run(ask())
