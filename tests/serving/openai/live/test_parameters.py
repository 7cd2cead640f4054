"""What docs/api.md says of parameters and answers, with an engine that does it, through OpenAI's own client."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from serving import adapters
from serving.models import Adapter
from tests.serving.openai.asking import logged
from tests.serving.real import RealEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ml,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("site"),
]
MODELS = (
    (Path(__file__).resolve().parents[4] / "docs" / "api.md").read_text().split("\n## Models, as OpenAI has them\n")[1]
)
SECTION = MODELS.split("\n## ")[0]
TALK: Any = [{"role": "user", "content": "Why is the sky blue?"}]
PROMPT = "Once upon a time there was"
N_TOKENS = 12
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": N_TOKENS, "extra_body": {"ignore_eos": True}}
SAMPLED: dict[str, Any] = {**GREEDY, "temperature": 1, "seed": 7}


def chat(client: openai.OpenAI, model: str = "current", messages: Any = TALK, **how: Any) -> Any:
    return client.chat.completions.create(model=model, messages=messages, **{**GREEDY, **how})


def text(client: openai.OpenAI, model: str = "current", prompt: str = PROMPT, **how: Any) -> Any:
    return client.completions.create(model=model, prompt=prompt, **{**GREEDY, **how})


def said(answer: Any) -> list[str]:
    """By choice."""
    return [choice.text if answer.object == "text_completion" else choice.message.content for choice in answer.choices]


def read(stream: Any) -> tuple[dict[int, str], dict[int, str], Any]:
    """Of a stream: texts and reasons to end by choice, and the usage."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    usage = None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            piece = choice.text if chunk.object == "text_completion" else choice.delta.content
            texts[choice.index] = texts.get(choice.index, "") + (piece or "")
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    return texts, reasons, usage


# --- log-probabilities ------------------------------------------------------------------------------------------------
def test_it_tells_how_likely_each_token_of_a_chat_was(client: openai.OpenAI) -> None:
    answer = chat(client, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens == N_TOKENS
    for token in tokens:
        likely = [other.logprob for other in token.top_logprobs]
        assert (len(likely), likely) == (3, sorted(likely, reverse=True))
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, likely[0])  # as it is greedy
        assert bytes(token.bytes).decode() == token.token
        assert sum(map(math.exp, likely)) <= 1 + 1e-4
    streamed = [chunk.choices[0].logprobs for chunk in chat(client, logprobs=True, top_logprobs=3, stream=True)]
    assert [token for logprobs in streamed if logprobs for token in logprobs.content] == tokens
    assert chat(client).choices[0].logprobs is None


def test_it_tells_how_likely_each_token_of_a_text_was(client: openai.OpenAI) -> None:
    found = text(client, logprobs=2).choices[0].logprobs
    assert {len(values) for values in (found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset)} == {
        12
    }
    assert found.token_logprobs == [max(top.values()) for top in found.top_logprobs]
    assert found.text_offset == [len("".join(found.tokens[:i])) for i in range(N_TOKENS)]


def test_it_scores_a_prompt_that_it_repeats(client: openai.OpenAI) -> None:
    plain, echoed = text(client, logprobs=1), text(client, logprobs=1, echo=True)
    assert said(echoed) == [PROMPT + said(plain)[0]]
    found, n_prompt = echoed.choices[0].logprobs, echoed.usage.prompt_tokens
    assert "".join(found.tokens[:n_prompt]) == PROMPT
    assert found.token_logprobs[0] is None
    assert all(logprob < 0 for logprob in found.token_logprobs[1:n_prompt])
    assert found.tokens[n_prompt:] == plain.choices[0].logprobs.tokens
    assert found.token_logprobs[n_prompt:] == pytest.approx(plain.choices[0].logprobs.token_logprobs, abs=1e-4)


def test_it_scores_a_prompt_alone(client: openai.OpenAI) -> None:
    """As evaluation harnesses do it, that send what asks for nothing as well."""
    echoed = text(client, logprobs=1, echo=True)
    scored = text(client, logprobs=1, echo=True, max_tokens=0, best_of=1, extra_body={"use_beam_search": False})
    assert said(scored) == [PROMPT]
    of_prompt = echoed.choices[0].logprobs.token_logprobs[: scored.usage.prompt_tokens]
    assert scored.choices[0].logprobs.token_logprobs == pytest.approx(of_prompt, abs=1e-4)


# --- sampling ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ask", [chat, text])
def test_it_gives_several_answers(client: openai.OpenAI, ask: Any) -> None:
    answer = ask(client, **SAMPLED, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    first, second = said(answer)
    assert first != second
    assert answer.usage.completion_tokens == 2 * N_TOKENS
    texts, reasons, _usage = read(ask(client, **SAMPLED, n=2, stream=True))
    assert texts == {0: first, 1: second}
    assert reasons == {0: "length", 1: "length"}


@pytest.mark.parametrize("ask", [chat, text])
def test_it_says_the_same_with_the_same_seed(client: openai.OpenAI, ask: Any) -> None:
    found = [said(ask(client, **{**SAMPLED, "seed": seed})) for seed in (7, 7, 8)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("ask", [chat, text])
def test_it_chooses_among_the_most_likely_tokens_only(client: openai.OpenAI, ask: Any) -> None:
    hot = {**SAMPLED, "temperature": 2}
    greedy, free = said(ask(client)), said(ask(client, **hot))
    narrow = said(ask(client, **{**hot, "extra_body": {"ignore_eos": True, "top_k": 1}}))
    assert narrow == greedy != free


@pytest.mark.parametrize("ask", [chat, text])
def test_it_ends_where_it_is_told_to(client: openai.OpenAI, ask: Any) -> None:
    [whole] = said(ask(client))
    stop = whole[len(whole) // 2 :][:3]
    before = whole[: whole.index(stop)]
    assert before
    for stops in (stop, ["never said", stop]):
        answer = ask(client, stop=stops)
        assert (said(answer), answer.choices[0].finish_reason) == ([before], "stop")
        texts, reasons, _usage = read(ask(client, stop=stops, stream=True))
        assert (texts, reasons) == ({0: before}, {0: "stop"})


@pytest.mark.parametrize("ask", [chat, text])
def test_it_counts_the_tokens_of_a_stream_as_those_of_a_whole_answer(client: openai.OpenAI, ask: Any) -> None:
    whole = ask(client)
    texts, _reasons, usage = read(ask(client, stream=True, stream_options={"include_usage": True}))
    assert [texts[0]] == said(whole)
    assert usage.prompt_tokens == whole.usage.prompt_tokens > 0
    assert usage.completion_tokens == whole.usage.completion_tokens == N_TOKENS
    assert usage.total_tokens == usage.prompt_tokens + N_TOKENS
    assert read(ask(client, stream=True))[2] is None


# --- refusals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("is_stream", [False, True])
def test_it_refuses_what_is_longer_than_the_context(client: openai.OpenAI, is_stream: bool) -> None:
    long = "word " * 9000
    for ask in (
        lambda: chat(client, messages=[{"role": "user", "content": long}], stream=is_stream),
        lambda: text(client, prompt=long, stream=is_stream),
        lambda: chat(client, max_tokens=8192, stream=is_stream),
    ):
        with pytest.raises(openai.BadRequestError, match="8192 tokens") as caught:
            ask()
        assert (caught.value.code, caught.value.type) == ("context_length_exceeded", "invalid_request_error")
    assert caught.value.param == "max_tokens"
    assert {(row.outcome, row.status) for row in logged(3)} == {("refused", 400)}


def test_it_knows_no_other_models(client: openai.OpenAI, site: RealEngine, rows: list[Adapter]) -> None:
    """Nor one that was registered and has not passed its self-test."""
    for name in ("gpt-7", "adapter-9999", rows[0].name):
        for ask in (
            lambda name: chat(client, name),
            lambda name: text(client, name),
            lambda name: client.models.retrieve(name),
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                ask(name)
            assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


# --- names ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ask", [chat, text])
def test_it_answers_under_the_name_that_was_asked_for(client: openai.OpenAI, rows: list[Adapter], ask: Any) -> None:
    adapters.publish(rows[0])
    texts = {}
    for name in ("current", rows[0].name, f"adapter-{rows[0].pk}", "base"):
        answer = ask(client, name)
        version = adapters.base().name if name == "base" else rows[0].name
        assert (answer.model, answer.system_fingerprint) == (name, version)
        chunks = list(ask(client, name, stream=True))
        assert {(chunk.model, chunk.system_fingerprint) for chunk in chunks} == {(name, version)}
        [texts[name]] = said(answer)
    assert texts.pop("base") not in texts.values()
    assert len(set(texts.values())) == 1


# --- the documentation's own examples ---------------------------------------------------------------------------------
def run(command: list[str], shown_key: str) -> str:
    environment = {**os.environ, "ALIGNAPP_KEY": shown_key, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_runs_the_documented_program(address: str, shown_key: str) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    program = program.replace("https://align.example.org", address).replace("align_…", shown_key)
    assert run([sys.executable, "-c", program], shown_key).strip()
    [row] = logged()
    assert (row.outcome, row.alias, row.endpoint) == ("done", "current", "chat.completions")


def test_it_runs_the_documented_commands(address: str, shown_key: str, rows: list[Adapter]) -> None:
    adapters.publish(rows[0])
    [block] = re.findall(r"^```console\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)
    block = block.replace("https://align.example.org", address).replace("adapter-42", f"adapter-{rows[0].pk}")
    commands = re.findall(r"^\$ (.*?)\n(?=\$ |\Z)", block, re.MULTILINE | re.DOTALL)
    answer, models = (json.loads(run(["sh", "-c", command], shown_key)) for command in commands)
    assert (answer["model"], answer["system_fingerprint"]) == (f"adapter-{rows[0].pk}", rows[0].name)
    assert answer["choices"][0]["message"]["content"]
    roots = {model["id"]: (model["root"], model["parent"]) for model in models["data"]}
    of_adapter = (rows[0].name, "base")
    assert roots == {"current": of_adapter, rows[0].name: of_adapter, "base": ("base", None)}
