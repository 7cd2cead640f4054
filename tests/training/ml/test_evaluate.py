import pytest

from tests.training.ml.cases import pair
from training.ml import evaluate
from training.ml.scores import Scores

PAIRS = [pair([1], [2], [3], id="a", n_chars_chosen=20, n_chars_rejected=7), pair([1], [3], [2], id="b", weight=0.5)]
REFERENCE: Scores = {((1,), (2,)): -10.0, ((1,), (3,)): -20.0}
POLICY: Scores = {((1,), (2,)): -8.0, ((1,), (3,)): -25.0}


def test_it_measures_how_much_more_the_policy_prefers_the_chosen_response_than_the_reference_does() -> None:
    assert evaluate.margins(PAIRS, POLICY, REFERENCE, 0.1) == pytest.approx([0.1 * (2 + 5), -0.1 * (2 + 5)])


def test_it_finds_no_margin_where_policy_and_reference_agree() -> None:
    assert evaluate.margins(PAIRS, REFERENCE, REFERENCE, 0.1) == [0.0, 0.0]


def test_it_reports_both_adapters_beside_each_pair() -> None:
    first, second = evaluate.report(PAIRS, [0.7, -0.7], [0.1, 0.2])["heldout"]
    assert (first["pair"], first["margin"], first["incumbent_margin"]) == ("a", 0.7, 0.1)
    assert (first["chars_chosen"], first["chars_rejected"]) == (20, 7)
    assert (second["pair"], second["margin"], second["weight"]) == ("b", -0.7, 0.5)
