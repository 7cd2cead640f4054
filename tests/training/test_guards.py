import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.training.rows import POLICY
from training import guards
from training.guards import BrokenEvaluation, Guard
from training.heldout import Score, compare, only_claimed
from training.rules import Rules

FAIR = compare(np.full(40, 0.3), np.zeros(40), [str(i) for i in range(40)])


def changed(**changes: Any) -> dict[str, Any]:
    """The evidence of an ordinary adapter, with other figures: `length__new=9` is ["length"]["new"]."""
    policy = copy.deepcopy(POLICY)
    for path, value in changes.items():
        *outer, last = path.split("__")
        part: Any = policy
        for name in outer:
            part = part[name]
        part[last] = value
    return policy


def check(policy: dict[str, Any], score: Score = FAIR, asked: Rules | None = None) -> dict[str, Guard]:
    return {guard.name: guard for guard in guards.check(guards.read(policy), score, asked or Rules())}


def refused(found: dict[str, Guard]) -> dict[str, str]:
    return {name: guard.refusal for name, guard in found.items() if not guard.passed}


def test_it_lets_an_ordinary_adapter_pass() -> None:
    found = check(POLICY)
    assert refused(found) == {}
    assert set(found) == {
        "brier", "excess", "kl", "chosen", "longer", "shorter", "unfinished", "repetition", "refusals", "perplexity",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"repetition__new": 0.31}, "repetition", "answers repeat themselves (31 % of 4-grams, limit 10 %)"),
        ({"kl": 0.9}, "kl", "it has moved far from the base (0.90 nats per token, limit 0.50)"),
        (
            {"kl_chosen": -1.25},
            "chosen",
            "what people chose has become less likely (by 1.25 nats per token, limit 0.50)",
        ),
        ({"length__new": 90.0, "unfinished__new": 0.5}, "longer", "answers have become longer (3.5 times, limit 2.2)"),
        ({"length__new": 10.0}, "shorter", "answers have become shorter (0.27 times, at least 0.40 wanted)"),
        (
            {"unfinished__new": 0.6, "length__new": 40.0},
            "unfinished",
            "answers do not end (60 % of them, 20 % before)",
        ),
        ({"refusal_rate__new": 0.25}, "refusals", "it declines harmless prompts (25 % of them, 0.0 % before)"),
        (
            {"perplexity__new": 21.0},
            "perplexity",
            "it reads neutral texts worse (perplexity 5.0 % above the base's, limit 2.0 %)",
        ),
    ],
)
def test_it_refuses_in_words(changes: dict[str, Any], name: str, words: str) -> None:
    assert refused(check(changed(**changes))) == {name: words}


def test_it_compares_with_the_incumbent_where_there_is_one_and_reads_neutral_texts_against_the_base() -> None:
    policy = changed(length__incumbent=80.0, unfinished__incumbent=0.9, refusal_rate__incumbent=0.3)
    policy = changed(
        **{f"{name}__incumbent": policy[name]["incumbent"] for name in ("length", "unfinished", "refusal_rate")}
    )
    policy["perplexity"]["incumbent"] = 30.0
    found = check(policy)
    assert found["longer"].value == pytest.approx((44 / (20 * 0.75 + 1)) / (80 / (20 * 0.1 + 1)))
    assert found["unfinished"].value == pytest.approx(-0.65)
    assert found["perplexity"].value == pytest.approx(0.005)


def test_it_sees_longer_answers_though_they_are_cut_at_the_limit() -> None:
    """The mean grows by a third only, for nothing can be longer than 96 tokens."""
    policy = changed(length={"new": 93.0, "base": 70.0}, unfinished={"new": 0.8, "base": 0.5})
    assert check(policy)["longer"].value == pytest.approx((93 / 5) / (70 / 11))


def test_it_lets_an_adapter_of_a_base_that_repeats_itself_do_so_too() -> None:
    assert check(changed(repetition={"new": 0.14, "base": 0.1}))["repetition"].passed
    assert check(changed(repetition={"new": 0.16, "base": 0.1}))["repetition"].limit == pytest.approx(0.15)
    assert not check(changed(repetition={"new": 0.16, "base": 0.1}))["repetition"].passed


def test_it_refuses_a_brier_score_only_beyond_doubt() -> None:
    wrong = compare(np.full(40, -3.0), np.zeros(40), [str(i) for i in range(40)])
    assert set(refused(check(POLICY, wrong))) == {"brier", "excess"}
    doubtful = replace(wrong, brier_low=0.04, excess_low=0.2)
    assert refused(check(POLICY, doubtful)) == {}


def test_it_asks_for_no_probabilities_that_nobody_claimed() -> None:
    wrong = compare(np.full(40, -3.0), np.zeros(40), [str(i) for i in range(40)])
    silent = {"new": False, "incumbent": True}
    found = check(changed(claims_probabilities=silent), only_claimed(wrong, **silent))
    assert refused(found) == {}
    assert {"brier", "excess"}.isdisjoint(found)
    assert "claims no probabilities" in found["probabilities"].words
    silent_before = {"new": True, "incumbent": False}
    found = check(changed(claims_probabilities=silent_before), only_claimed(wrong, **silent_before))
    assert set(refused(found)) == {"excess"}  # there is nothing that the Brier score could be compared with
    assert "brier" not in found
    assert only_claimed(wrong, new=True, incumbent=True) == wrong
    assert only_claimed(wrong, new=False, incumbent=True).accuracy == wrong.accuracy


def test_it_asks_the_reward_model_where_there_is_one() -> None:
    def won(rate: float, high: float) -> dict[str, Any]:
        return changed(win_rate={"length_controlled": rate, "length_controlled_interval": [0.1, high]})

    assert check(won(0.45, 0.55))["win_rate"].passed
    assert refused(check(won(0.3, 0.41))) == {
        "win_rate": "the reward model prefers the current version (30 % of wins, 95 % at most 41 %)"
    }


def test_it_does_not_ask_for_what_cannot_be_measured_without_pairs() -> None:
    found = check(changed(kl_chosen=None), compare(np.array([]), np.array([]), []))
    assert {"brier", "excess", "chosen", "win_rate"}.isdisjoint(found)


def test_it_follows_the_rules_of_the_campaign() -> None:
    assert check(changed(repetition__new=0.31), asked=Rules(max_repetition=0.4))["repetition"].passed
    assert not check(POLICY, asked=Rules(max_kl=0.01))["kl"].passed


@pytest.mark.parametrize(
    "changes",
    [
        {"kl": None},
        {"kl": float("nan")},
        {"kl": True},
        {"kl": "0.1"},
        {"kl_chosen": "0"},
        {"claims_probabilities": None},
        {"claims_probabilities": {"new": False}},
        {"claims_probabilities": {"new": False, "incumbent": 0}},
        {"length": 3},
        {"samples": []},
        {"samples": None},
        {"unfinished__new": 1.5},
        {"unfinished__base": -0.5},
        {"length__base": 0.0},
        {"length__new": None},
        {"perplexity__base": 0.0},
        {"perplexity__new": float("inf")},
        {"repetition": None},
        {"win_rate": {"length_controlled": 0.5}},
        {"win_rate": {"length_controlled": 0.5, "length_controlled_interval": [0.4]}},
        {"win_rate": []},
    ],
)
def test_it_takes_no_missing_figure_for_a_good_one(changes: dict[str, Any]) -> None:
    with pytest.raises(BrokenEvaluation):
        guards.read(changed(**changes))


@pytest.mark.parametrize("policy", [None, [], "good", {}])
def test_it_refuses_evidence_that_is_none(policy: Any) -> None:
    with pytest.raises(BrokenEvaluation):
        guards.read(policy)
