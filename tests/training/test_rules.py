import json
from dataclasses import asdict, fields
from typing import Any

import pytest

from training import rules
from training.rules import RuleError, Rules


def test_it_reads_back_what_it_stores() -> None:
    asked = Rules(max_repetition=0.2, min_heldout_prompts=25)
    stored = json.loads(json.dumps(rules.changed(asked)))
    assert stored == {"max_repetition": 0.2, "min_heldout_prompts": 25}
    assert rules.parse(stored) == asked


def test_it_stores_nothing_of_the_defaults() -> None:
    assert rules.changed(Rules()) == {}
    assert rules.parse({}) == Rules()


def test_it_has_a_sentence_and_a_default_within_bounds_for_every_rule() -> None:
    assert rules.parse(asdict(Rules())) == Rules()
    assert all(rule.metadata["help"] for rule in fields(Rules))


@pytest.mark.parametrize(
    "values",
    [
        {"max_kl": float("nan")},
        {"max_kl": float("inf")},
        {"max_kl": -1},
        {"max_kl": "0.5"},
        {"max_kl": None},
        {"max_kl": True},
        {"min_heldout_prompts": 10.5},
        {"min_heldout_prompts": 1},
        {"max_length_ratio": 0.9},
        {"max_klx": 1},
        [],
        "max_kl",
    ],
)
def test_it_refuses_what_is_no_rule(values: Any) -> None:
    with pytest.raises(RuleError):
        rules.parse(values)


def test_it_judges_by_the_default_where_a_stored_rule_is_none_any_more(caplog: pytest.LogCaptureFixture) -> None:
    stored = {"max_kl": 0.2, "max_length_ratio": 0.5, "a_rule_of_old": 1, "min_win_rate": None}
    assert rules.read(stored) == Rules(max_kl=0.2)
    for name in ("max_length_ratio", "a_rule_of_old", "min_win_rate"):
        assert name in caplog.text
