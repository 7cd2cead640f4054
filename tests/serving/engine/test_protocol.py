"""Request bodies: what is right is understood, whatever else comes gets a 400 that names the parameter."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine import protocol
from serving.engine.fields import BadRequest
from serving.engine.protocol import Text

N = 1000
CHAT: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": "base", "prompt": "Hi"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "prompt_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "ignore_eos",
    "stop_token_ids",
    "add_generation_prompt",
    "continue_final_message",
    "response_format",
    "user",
    "echo",
]


def test_it_understands_a_whole_chat_request() -> None:
    found = protocol.parse_chat(
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            ],
            "max_tokens": 5,
            "max_completion_tokens": 7,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": -1,
            "min_p": 0.1,
            "n": 2,
            "seed": -3,
            "stop": "x",
            "stop_token_ids": [4],
            "logprobs": True,
            "top_logprobs": 3,
            "logit_bias": {"5": -100, "6": 1.5},
            "stream": True,
            "stream_options": {"include_usage": True},
            "presence_penalty": None,
            "user": "somebody",
        },
        N,
    )
    params = found.sampling.params(10, 100)
    assert found.conversation.messages[1] == {"role": "user", "content": "a\nb"}
    assert (found.model, found.n, found.is_stream, found.has_usage) == ("m", 2, True, True)
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k, params.min_p) == (7, 0, 0.5, 0, 0.1)
    assert (params.seed, params.stop, params.stop_token_ids, params.logprobs) == (-3, ("x",), {4}, 3)
    assert params.logit_bias == {5: -100, 6: 1.5}


def test_it_takes_prompts_in_every_form() -> None:
    for prompt, expected in (
        ("a", [Text("a", True)]),
        ([1, 2], [[1, 2]]),
        (["a", "b"], [Text("a", True), Text("b", True)]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ):
        assert protocol.parse_completion({**TEXT, "prompt": prompt}, N).prompts == expected


def test_it_bounds_an_answer_whose_limit_is_not_said() -> None:
    sampling = protocol.parse_chat(CHAT, N).sampling
    assert sampling.params(30, 100).max_tokens == 70
    assert sampling.params(99, 100).max_tokens == 1
    assert sampling.params(30, 100_000).max_tokens == 1024
    least = protocol.parse_chat({**CHAT, "min_tokens": 2000}, N).sampling
    assert least.params(30, 100_000).max_tokens == 2000
    for n_prompt in (100, 101):
        with pytest.raises(BadRequest) as caught:
            sampling.params(n_prompt, 100)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(BadRequest, match="100 tokens"):
        protocol.parse_chat({**CHAT, "max_tokens": 71}, N).sampling.params(30, 100)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("model", [None, "", 3, []]),
        ("messages", [None, [], {}, [{}], [{"role": "user"}], [{"role": "robot", "content": "x"}], "hi"]),
        ("messages", [[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]]),
        ("messages", [[{"role": "user", "content": "x", "tool_calls": [{}]}], [{"role": "user", "content": []}]]),
        ("max_tokens", [0, -1, 1.5, "5", True, 2**40]),
        ("temperature", [-0.1, 2.1, "1", True, 10**400, [1]]),
        ("top_p", [0, 1.01, -1]),
        ("top_k", [-2, 0.5]),
        ("n", [0, 17, "2"]),
        ("seed", [0.5, 2**63]),
        ("stop", [0, 3, [3], [""], "", ["x"] * 17, "x" * 257]),
        ("stop_token_ids", [[1] * 129, 0, [N], [-1], [1.0], 1]),
        ("stream", ["yes", 1]),
        ("stream_options", [{"x": 1}, {"include_usage": 1}, 3]),
        ("logprobs", [1, "true"]),
        ("top_logprobs", [21, 1]),
        ("logit_bias", [[], {"a": 1}, {"1": 101}, {"1": "1"}, {str(N): 0}, {"²": 0}, {"1": True}]),
        ("response_format", [{"type": "json_object"}]),
        ("tools", [[{"type": "function"}], {}, "none"]),
        ("tool_choice", ["required", {"type": "function"}]),
        ("bad_words", [["x"]]),
        ("best_of", [2]),
        ("min_tokens", [-1, 1.5]),
        ("timeout_seconds", [0, -1, "5"]),
        ("modalities", [["text", "audio"], "text"]),
        ("temprature", [1]),
        ("continue_final_message", [True]),
    ],
)
def test_it_refuses_and_says_which_parameter(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(BadRequest) as caught:
            protocol.parse_chat({**CHAT, field: value}, N)
        error = caught.value.to_dict()["error"]
        assert error["type"] == "invalid_request_error"
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert error["param"]


@pytest.mark.parametrize("prompt", [None, "", [], [[]], ["a", 1], [1, "a"], [N], [-1], [1.5], [True], {}, ["a"] * 17])
def test_it_refuses_prompts(prompt: Any) -> None:
    with pytest.raises(BadRequest, match="prompt"):
        protocol.parse_completion({**TEXT, "prompt": prompt}, N)


def test_it_refuses_to_stream_prompt_logprobs() -> None:
    with pytest.raises(BadRequest, match="streamed"):
        protocol.parse_completion({**TEXT, "prompt_logprobs": 1, "stream": True}, N)


@given(body=JSON | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
@settings(max_examples=400, deadline=None)
def test_it_answers_any_body_with_a_request_or_a_400(body: Any) -> None:
    for parse, good in ((protocol.parse_chat, CHAT), (protocol.parse_completion, TEXT)):
        for candidate in (body, {**good, **body} if isinstance(body, dict) else body):
            with contextlib.suppress(BadRequest):
                assert parse(candidate, N).sampling.params(5, 100).max_tokens >= 1
