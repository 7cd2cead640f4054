"""The menu itself: bounds, measured values, presets."""

from dataclasses import fields
from typing import Any

import pytest

from training import catalog
from training.catalog import AUTO, ParameterError, Reward


def test_it_refuses_what_is_between_measured_and_given() -> None:
    with pytest.raises(ParameterError, match=r"flip_rate must be between 0 and 0\.4, or -1, not -0\.5"):
        catalog.parse("cdpo", {"flip_rate": -0.5})
    with pytest.raises(ParameterError, match=r"between -1\.0 and 0\.4"):
        catalog.parse("cdpo", {"flip_rate": 0.5})
    assert catalog.parse("cdpo", {"flip_rate": AUTO}) == catalog.FlippedDPO(flip_rate=-1.0)


@pytest.mark.parametrize(("known", "found"), [(0.12, 0.12), (0, 0.0), (0.7, 0.4)])
def test_it_takes_a_flip_rate_from_the_card(known: float, found: float) -> None:
    params = catalog.parse("robust", {"flip_rate": AUTO, "beta": 0.3})
    assert catalog.measure(params, {"flip_rate": known}) == catalog.parse("robust", {"flip_rate": found, "beta": 0.3})


@pytest.mark.parametrize("card", [{}, {"flip_rate": None}, {"flip_rate": float("nan")}, {"flip_rate": "0.1"}])
def test_it_does_not_guess_a_flip_rate(card: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=r"flip_rate cannot be measured yet.*Give it a number"):
        catalog.measure(catalog.parse("cdpo", {"flip_rate": AUTO}), card)


@pytest.mark.parametrize("method", catalog.METHODS)
def test_it_leaves_what_is_given_alone(method: str) -> None:
    params = catalog.parse(method, {})
    assert catalog.measure(params, {}) == params
    assert catalog.parse(method, catalog.to_dict(params)) == params


@pytest.mark.parametrize("method", catalog.METHODS)
@pytest.mark.parametrize("preset", catalog.PRESETS)
def test_it_offers_presets_that_every_method_takes(preset: str, method: str) -> None:
    assert catalog.parse(method, catalog.PRESETS[preset].params)


def test_it_knows_the_defaults_as_a_preset() -> None:
    assert catalog.PRESETS["balanced"].params == {}
    assert all(catalog.PRESETS[name].params for name in catalog.PRESETS if name != "balanced")


@pytest.mark.parametrize(
    ("method", "params", "reward"),
    [
        ("dpo", {"beta": 0.3}, Reward(0.3)),
        ("kto", {}, Reward(0.1)),
        ("dpo_norm", {}, Reward(5.0, per_token=True)),
        ("simpo", {}, Reward(2.0, per_token=True)),
        ("ipo", {}, Reward(0.1)),
        ("ipo", {"per_token": True}, Reward(0.1, per_token=True)),
        ("orpo", {}, Reward(per_token=True, is_probability=False)),
        ("sft", {}, Reward(per_token=True, is_probability=False)),
        ("reward_model", {}, Reward()),
    ],
)
def test_it_says_what_a_methods_reward_is(method: str, params: dict[str, Any], reward: Reward) -> None:
    assert catalog.parse(method, params).reward == reward
    assert reward.of(-6.0, 3) == (-2.0 if reward.per_token else -6.0) * reward.beta


@pytest.mark.parametrize("method", catalog.METHODS)
def test_it_describes_and_bounds_every_parameter(method: str) -> None:
    for parameter in fields(catalog.get(method).params):
        meta = parameter.metadata
        assert meta["help"]
        assert not meta["help"].endswith(".")
        assert meta["choices"] or isinstance(parameter.default, bool) or meta["low"] < meta["high"]


def test_it_names_every_source_and_output() -> None:
    for method in catalog.METHODS.values():
        assert method.source in catalog.SOURCES
        assert method.output in ("adapter", "reward_model")
        assert method.use.endswith(".")
