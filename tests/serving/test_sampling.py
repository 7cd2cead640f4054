from typing import Any

import pytest

from serving import sampling
from serving.sampling import DEFAULTS, Invalid, Settings


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, Settings()),
        (DEFAULTS | {"seed": None, "system_prompt": ""}, Settings()),
        ({"temperature": 0, "seed": 0}, Settings("", {"temperature": 0.0, "seed": 0})),
        ({"temperature": "0.25", "max_tokens": "64"}, Settings("", {"temperature": 0.25, "max_tokens": 64})),
        ({"system_prompt": "  Be brief.\n"}, Settings("Be brief.", {})),
    ],
)
def test_it_keeps_what_differs_from_the_defaults(given: dict[str, Any], settings: Settings) -> None:
    assert sampling.parse(given) == settings
    assert sampling.parse(sampling.to_dict(settings)) == settings  # what the page shows is what it sends


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 2.1), ("temperature", -1), ("temperature", "warm"), ("temperature", float("nan")),
        ("temperature", True), ("top_p", 0), ("top_p", 1.5), ("max_tokens", 0), ("max_tokens", 10**9),
        ("max_tokens", 1.5), ("max_tokens", [1]), ("seed", -1), ("seed", 2**31), ("system_prompt", "x" * 8_001),
        ("system_prompt", "a\x00b"), ("system_prompt", {"a": 1}), ("stop", "\n"), ("model", "base"),
    ],
)  # fmt: skip
def test_it_says_what_is_wrong_with_which_field(name: str, value: Any) -> None:
    with pytest.raises(Invalid) as caught:
        sampling.parse({"top_p": 0.5, name: value})
    assert list(caught.value.errors) == [name]
    assert caught.value.errors[name] in str(caught.value)


def test_it_draws_with_everything_said_and_a_seed_of_its_own() -> None:
    drawn = sampling.drawn(Settings("", {"temperature": 0.1}))
    assert drawn.keys() == DEFAULTS.keys() | {"seed"}
    assert (drawn["temperature"], drawn["top_p"]) == (0.1, DEFAULTS["top_p"])
    assert len({sampling.drawn(Settings())["seed"] for _ in range(20)}) > 1
    assert {sampling.drawn(Settings("", {"seed": 5}))["seed"] for _ in range(20)} == {5}
