"""Sides, length, style, gold, repeats and speed."""

import numpy as np
import pytest
from scipy.stats import binomtest

from labeling import bias


@pytest.mark.parametrize(("k", "n"), [(0, 5), (5, 5), (3, 10), (52, 100), (1, 1)])
def test_it_computes_wilsons_interval(k: int, n: int):
    expected = binomtest(k, n).proportion_ci(method="wilson")
    found = bias.share(k, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.value == k / n


def test_it_says_nothing_of_no_votes():
    assert bias.share(0, 0) == bias.Share(0, 0, None, None, None)
    assert bias.gold_accuracy([1, -1], [np.nan, np.nan]).value is None


def test_it_counts_choices_of_the_left_without_ties_and_unknown_sides():
    value, side = [3, -1, -2, 0, 1], [1, -1, 1, 1, 0]
    found = bias.left_share(value, side)
    assert (found.k, found.n) == (2, 3)
    swapped = bias.left_share(np.negative(value), np.negative(side))  # the responses change names, not places
    assert swapped == found
    mirrored = bias.left_share(value, np.negative(side))  # they change places
    assert mirrored.k == found.n - found.k


def test_it_tells_annotators_apart():
    found = bias.left_shares([7, 7, 9], [1, -1, 1], [1, -1, -1])
    assert {person: (share.k, share.n) for person, share in found.items()} == {7: (2, 2), 9: (0, 1)}


def test_it_marks_gold_by_sign():
    found = bias.gold_accuracy([3, -1, 0, 0, 2], [1, 1, 0, 1, np.nan])
    assert (found.k, found.n) == (2, 4)


def test_it_calls_always_left_inconsistent():
    """Seen from the responses, left and then left with the sides swapped are opposite answers."""
    assert bias.self_consistency([1, 1, -1], [-1, -1, 1]).value == 0
    assert bias.self_consistency([1, 0, -3, 2], [2, 0, -1, -1]).k == 3


def test_it_flags_what_was_not_even_skimmed():
    assert bias.is_too_fast([600, 600, 100, 100], [59_000, 61_000, np.nan, 1]).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", (0, 0, 0, 0)),
        ("Two words.", (2, 0, 0, 0)),
        ("# Title\n\n- one\n- two\n3. three\n\nand **bold** and __strong__", (9, 1, 3, 2)),
        ("#no header, 1.5 is no list, 2 * 3 ** 4", (10, 0, 0, 0)),
        ("猫は動物です cat", (7, 0, 0, 0)),
        ("مرحبا بالعالم", (2, 0, 0, 0)),
    ],
)
def test_it_counts_style(text: str, counts: tuple[int, int, int, int]):
    assert bias.count_style(text) == counts


@pytest.mark.parametrize("text", ["*" * 50_000, "#" * 50_000, "- " * 30_000, "**a" * 20_000, "_" * 50_000 + "a"])
def test_it_counts_hostile_texts_in_linear_time(text: str):
    """Quadratic matching of these takes minutes: the suite's timeout would end it."""
    assert bias.count_style(text * 2)[0] >= 0


def test_it_changes_the_sign_of_features_with_the_responses():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 50, (40, 4)), rng.integers(0, 50, (40, 4))
    features = bias.style_features(first, second)
    assert features == pytest.approx(-bias.style_features(second, first))
    assert (features**2).mean(axis=0) == pytest.approx(1)
    assert not bias.style_features(first, first).any()
    assert not bias.style_features(np.zeros((3, 4)), np.zeros((3, 4))).any()


def test_it_finds_the_length_and_side_bias_that_made_the_choices():
    """In 95 of 100 intervals, of 60 campaigns with five coefficients each."""
    truth = {"side": 0.3, "length": 0.5, "headers": 0.0, "lists": 0.0, "bold": 0.2}
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        features = bias.style_features(rng.integers(1, 300, (1500, 4)), rng.integers(1, 300, (1500, 4)))
        side = rng.choice([-1, 1], 1500)
        eta = 0.3 * side + features @ np.array([0.5, 0.0, 0.0, 0.2])
        logits = np.stack([-eta / 2, np.full(1500, -0.5), eta / 2])
        value = np.argmax(logits + rng.gumbel(size=logits.shape), axis=0) - 1
        found = bias.coefficients(value, side, features, np.arange(1500))
        assert found is not None
        assert [coefficient.name for coefficient in found] == list(truth)
        assert all(coefficient.high - coefficient.low < 0.4 for coefficient in found)
        assert all(coefficient.odds == pytest.approx(np.exp(coefficient.value)) for coefficient in found)
        covered += [coefficient.low < truth[coefficient.name] < coefficient.high for coefficient in found]
    assert 0.92 <= np.mean(covered) <= 0.98


def test_it_leaves_out_features_that_never_differ():
    rng = np.random.default_rng(2)
    features = np.column_stack([rng.normal(size=100), np.zeros((100, 3))])
    found = bias.coefficients(rng.choice([-1, 1], 100), rng.choice([-1, 1], 100), features, np.arange(100))
    assert found is not None
    assert [coefficient.name for coefficient in found] == ["side", "length"]


def test_it_has_no_coefficients_for_a_handful_of_votes():
    features = np.random.default_rng(3).normal(size=(40, 4))
    assert bias.coefficients(np.ones(40), np.ones(40), features, np.arange(40)) is None
    assert bias.coefficients(np.zeros(400), np.ones(400), np.ones((400, 4)), np.arange(400)) is None
