"""Held-out figures against hand-computed ones, and against the reward model's own of the same quantities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.heldout import Score, compare
from training.ml import calibration

PAIRS = st.lists(
    st.tuples(st.floats(-6, 6), st.floats(-6, 6), st.sampled_from([0.6, 0.75, 1.0]), st.integers(0, 9)),
    min_size=1,
    max_size=40,
)


def score(rows: list[tuple[float, float, float, int]]) -> Score:
    new, old, labels = (np.array([row[i] for row in rows]) for i in range(3))
    return compare(new, old, [str(row[3]) for row in rows], labels)


def test_it_is_the_mean_squared_error_of_stated_probabilities() -> None:
    found = score([(np.log(3), 0.0, 1.0, 0), (-np.log(3), 0.0, 1.0, 1)])  # states 3/4 and 1/4
    assert found.brier == pytest.approx((0.25**2 + 0.75**2) / 2)
    assert found.incumbent_brier == pytest.approx(0.25)


def test_it_finds_a_claim_that_holds_calibrated() -> None:
    """Says 3/4 of eight pairs and is right on six."""
    found = score([(np.log(3) * (1 if i < 6 else -1), 0.0, 1.0, i) for i in range(8)])
    assert found.ece == pytest.approx(0)
    overdone = score([(9.0 * (1 if i < 6 else -1), 0.0, 1.0, i) for i in range(8)])
    assert overdone.ece == pytest.approx(1 / (1 + np.exp(-9.0)) - 0.75)


def test_it_tells_boldness_from_caution() -> None:
    bold = score([(4.0 * (1 if i < 5 else -1), 0.0, 1.0, i) for i in range(8)])
    assert bold.excess == pytest.approx(1 / (1 + np.exp(-4.0)) - 5 / 8) == bold.ece
    careful = score([(0.2, 0.0, 1.0, i) for i in range(8)])
    excess = 1 / (1 + np.exp(-0.2)) - 1
    assert careful.excess == pytest.approx(excess)
    assert careful.ece == pytest.approx(-excess)


def test_it_finds_nothing_to_calibrate_in_the_base() -> None:
    assert score([(1.0, 0.0, 1.0, 0), (-2.0, 0.0, 0.75, 1)]).incumbent_ece == 0


@given(PAIRS)
def test_it_agrees_with_the_reward_models_figures(rows: list[tuple[float, float, float, int]]) -> None:
    """`training.ml.calibration` computes them pair by pair, with weights; here all weigh the same."""
    found, ones = score(rows), np.ones(len(rows))
    new, labels = np.array([row[0] for row in rows]), np.array([row[2] for row in rows])
    theirs = calibration.figures(new, labels, ones)
    assert found.brier == pytest.approx(theirs["brier"])
    assert found.ece == pytest.approx(theirs["ece"], abs=1e-12)


@given(PAIRS)
def test_it_puts_intervals_around_what_it_finds(rows: list[tuple[float, float, float, int]]) -> None:
    found = score(rows)
    assert found.brier is not None
    assert found.incumbent_brier is not None
    assert found.brier_low is not None
    assert found.brier_high is not None
    assert found.ece_low is not None
    assert found.ece_high is not None
    assert -1 <= found.brier_low <= found.brier_high <= 1
    assert 0 <= found.ece_low <= found.ece_high <= 1
    if found.n_prompts == 1:
        assert found.brier_low == pytest.approx(found.brier - found.incumbent_brier)
        assert found.ece_low == pytest.approx(found.ece)


def test_it_covers_like_a_normal_interval_of_many_prompts() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(0.3, 1.0, 900)
    found = compare(margins, np.zeros(900), [str(i) for i in range(900)])
    errors = (1 / (1 + np.exp(-margins)) - 1) ** 2 - 0.25
    half = 1.96 * errors.std(ddof=1) / 30
    assert (found.brier_low, found.brier_high) == pytest.approx((errors.mean() - half, errors.mean() + half), abs=0.002)


def test_it_has_no_figures_of_no_pairs() -> None:
    assert score([]).brier is None
