import json
from typing import Any

import pytest

from serving.engine.fields import IGNORED
from serving.openai import bodies
from serving.openai.bodies import CHAT, TEXT
from serving.openai.problems import Problem
from serving.openai.unserved import UNSERVED

GOOD: dict[str, Any] = {"model": "current", "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"type": "function", "function": {"name": "look_up"}}


def sent_on(**more: Any) -> dict[str, Any]:
    """What of a chat request reaches an engine, but for its messages."""
    parameters = bodies.parse(json.dumps({**GOOD, **more}).encode(), CHAT).parameters
    return {name: value for name, value in parameters.items() if name != "messages"}


def refused(**more: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        sent_on(**more)
    return caught.value


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_it_drops_what_the_engine_ignores(name: str) -> None:
    """Clients that always send these reach the engine by this door only."""
    assert sent_on(**{name: "high"}) == {}
    text = json.dumps({"model": "current", "prompt": "Hi", name: "high"}).encode()
    assert bodies.parse(text, TEXT).parameters == {"prompt": "Hi"}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in UNSERVED for value in UNSERVED[name][0]])
def test_it_takes_a_value_that_asks_for_nothing_for_absent(name: str, value: Any) -> None:
    assert sent_on(**{name: value}) == sent_on(**{name: None}) == {}


def test_it_takes_what_clients_send_that_asks_for_nothing() -> None:
    options = {"include_usage": None, "include_obfuscation": False}
    found = sent_on(tools=[], parallel_tool_calls=True, chat_template=None, stream=True, stream_options=options)
    assert found == {"stream": True, "stream_options": {"include_usage": True}}


def test_it_takes_tools_that_are_not_to_be_called() -> None:
    assert sent_on(tools=[TOOL], tool_choice="none") == {}
    for choice in ("auto", None):
        problem = refused(tools=[TOOL], tool_choice=choice)
        assert (problem.param, problem.code) == ("tools", "unsupported_parameter")
        assert problem.message.startswith("tools: the models here call no tools")
    assert refused(tools=[TOOL], tool_choice="required").param == "tool_choice"


def test_it_takes_best_of_where_it_is_n() -> None:
    assert sent_on(n=3, best_of=3) == {"n": 3}
    assert refused(n=3, best_of=4).param == "best_of"


@pytest.mark.parametrize("name", sorted(UNSERVED))
def test_it_says_why_it_refuses_what_asks_for_something(name: str) -> None:
    problem = refused(**{name: {"some": "thing"}})
    assert (problem.status, problem.param, problem.code) == (400, name, "unsupported_parameter")
    assert problem.message == f"{name}: {UNSERVED[name][1]}"


@pytest.mark.parametrize(("name", "value"), [("length_penalty", 1.0), ("priority", 0.0)], ids=lambda value: repr(value))
def test_it_knows_a_number_however_it_is_written(name: str, value: float) -> None:
    assert sent_on(**{name: value}) == {}


@pytest.mark.parametrize(("name", "value"), [("best_of", True), ("priority", False), ("use_beam_search", 0)])
def test_it_takes_no_truth_for_a_number(name: str, value: Any) -> None:
    assert refused(**{name: value}).param == name
