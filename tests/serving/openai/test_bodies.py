import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.openai import bodies
from serving.openai.bodies import CHAT, TEXT, Asked
from serving.openai.problems import Problem
from serving.openai.unserved import UNSERVED

GOOD: dict[str, Any] = {"model": "current", "messages": [{"role": "user", "content": "Hi"}]}
NAMES = sorted(CHAT.parameters | TEXT.parameters | set(UNSERVED))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def parsed(kind: bodies.Kind = CHAT, **more: Any) -> Asked:
    return bodies.parse(json.dumps({**GOOD, **more}).encode(), kind)


def refused(raw: bytes, kind: bodies.Kind = CHAT) -> Problem:
    with pytest.raises(Problem) as caught:
        bodies.parse(raw, kind)
    assert caught.value.status == 400
    return caught.value


@settings(max_examples=500)
@given(st.sampled_from([CHAT, TEXT]), st.dictionaries(st.sampled_from(NAMES), JSON), st.booleans())
def test_it_parses_or_refuses_whatever_comes(kind: bodies.Kind, more: dict[str, Any], is_whole: bool) -> None:
    found = outcome(json.dumps({**GOOD, **more} if is_whole else more).encode(), kind)
    if isinstance(found, Problem):
        assert found.status == 400
        assert json.loads(found.body())["error"]["message"]
        return
    assert set(found.parameters) <= kind.parameters - bodies.KEPT_HERE
    assert found.n_tokens > 0
    assert found.sticky.isalnum()


def outcome(raw: bytes, kind: bodies.Kind) -> Asked | Problem:
    try:
        return bodies.parse(raw, kind)
    except Problem as problem:
        return problem


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_it_refuses_bytes_that_are_no_request(raw: bytes) -> None:
    refused(raw)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{", b'{"a": NaN}', b'{"model": "a", "messages": [], "temperature": -1e999}', b"1" * 5000, b"\xff", b"[" * 100_000, b'{"a":' * 990 + b"1" + b"}" * 990,
     json.dumps({**GOOD, "messages": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}).encode()],
    ids=range(10),
)  # fmt: skip
def test_it_refuses_what_is_no_json_or_too_deep(raw: bytes) -> None:
    refused(raw)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"priority": 5}, "priority"), ({"chat_template": "{{ x }}"}, "chat_template"), ({"tools": [{}]}, "tools"),
        ({"model": 5}, "model"), ({"model": None}, "model"), ({"messages": None}, "messages"), ({"stream": "yes"}, "stream"),
        ({"n": 0}, "n"), ({"n": True}, "n"), ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"), ({"user": 7}, "user"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options"), ({"best_of": 2}, "best_of"),
        ({"best_of": True}, "best_of"), ({"modalities": ["text", "audio"]}, "modalities"),
        ({"stream": True, "stream_options": {"include_obfuscation": 1}}, "include_obfuscation"), ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{}], "tool_choice": "auto"}, "tools"), ({"tools": "all", "tool_choice": "none"}, "tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"), ({"priority": False}, "priority"),
        ({"echo": True}, "echo"), ({"n": 2, "best_of": 3}, "best_of"),
    ],
)  # fmt: skip
def test_it_names_the_parameter_at_fault(more: dict[str, Any], param: str) -> None:
    assert refused(json.dumps({**GOOD, **more}).encode()).param == param


def test_it_sends_on_what_the_engine_is_to_check_and_nothing_else() -> None:
    asked = parsed(temperature="hot", user="ada", metadata={"a": "b"}, seed=None)
    assert asked.parameters == {"messages": GOOD["messages"], "temperature": "hot"}


def test_it_reads_a_parameter_that_comes_twice_as_it_sends_it_on() -> None:
    asked = bodies.parse(b'{"model": "a", "model": "b", "messages": [], "n": 9, "n": 1, "max_tokens": 4}', CHAT)
    assert (asked.model, asked.parameters) == ("b", {"messages": [], "n": 1, "max_tokens": 4})


def test_it_estimates_tokens_by_what_may_be_used() -> None:
    short, long = parsed(max_tokens=100), parsed(max_tokens=100, n=3)
    assert long.n_tokens - short.n_tokens == pytest.approx(200, abs=5)
    assert parsed().n_tokens == pytest.approx(bodies.USUAL_ANSWER, abs=40)
    assert parsed(max_tokens=100, max_completion_tokens=10).n_tokens < short.n_tokens


@pytest.mark.parametrize(
    ("prompt", "n"), [("Hi", 1), ([], 1), ([5, 6, 7], 1), (["Hi"], 1), (["Hi", "Ho"], 2), ([[5, 6], [7], [8]], 3)]
)
def test_it_estimates_an_answer_for_each_prompt(prompt: object, n: int) -> None:
    raw = json.dumps({"model": "current", "prompt": prompt, "max_tokens": 1000, "n": 2}).encode()
    assert bodies.parse(raw, TEXT).n_tokens == pytest.approx(2 * n * 1000, abs=40)


def test_it_takes_prompts_that_are_to_be_scored_only() -> None:
    """As evaluation harnesses send them."""
    scored = {"model": "current", "prompt": ["Hi there", "Ho there"], "max_tokens": 0, "echo": True, "logprobs": 1}
    asked = bodies.parse(json.dumps(scored).encode(), TEXT)
    assert asked.parameters == {name: value for name, value in scored.items() if name != "model"}
    assert asked.n_tokens == asked.n_prompt_tokens > 0
    without_echo = {name: value for name, value in scored.items() if name != "echo"}
    assert refused(json.dumps(without_echo).encode(), TEXT).param == "max_tokens"


def test_it_tells_conversations_apart_by_how_they_begin() -> None:
    def talk(*contents: str) -> str:
        system = {"role": "system", "content": "Be kind."}
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
        return parsed(messages=[system, *turns]).sticky

    assert talk("Hi") == talk("Hi", "Hello", "And?") != talk("Hello")
    assert parsed(user="a").sticky == parsed(user="a", messages=[]).sticky != parsed(user="b").sticky
    assert parsed(user="a", prompt_cache_key="x").sticky == parsed(user="b", prompt_cache_key="x").sticky
