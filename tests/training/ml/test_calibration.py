"""Against figures worked out by hand, and against the truth that made the data."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from training.ml import calibration


def drawn(n: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """n margins, and labels that are right with probability σ(margin), the margins then made too large or small."""
    margins = np.random.default_rng(n).normal(0, 1.5, n)
    labels = (np.random.default_rng(n + 1).random(n) < 1 / (1 + np.exp(-margins))).astype(float)
    return margins * sharpness, labels, np.ones(n)


def test_it_gives_the_figures_worked_out_by_hand() -> None:
    margins = np.array([math.log(3), -math.log(4), 0.0])  # p = 0.75, 0.2, 0.5
    labels, weights = np.array([1.0, 0.75, 1.0]), np.array([1.0, 2.0, 1.0])
    found = calibration.figures(margins, labels, weights)
    assert found["n"] == 3
    assert found["accuracy"] == pytest.approx((1 + 2 * 0.25 + 0.5) / 4)
    assert found["brier"] == pytest.approx((0.25**2 + 2 * 0.55**2 + 0.5**2) / 4)
    nll = -math.log(0.75) - 2 * (0.75 * math.log(0.2) + 0.25 * math.log(0.8)) - math.log(0.5)
    assert found["nll"] == pytest.approx(nll / 4)
    # Sure to 0.75 and right; to 0.8 and right in a quarter; to 0.5, which is right in half.
    assert found["ece"] == pytest.approx((1 * 0.25 + 2 * 0.55 + 0) / 4)


@given(st.floats(0.2, 8), st.integers(0, 1000))
def test_it_finds_the_temperature_with_the_least_loss(sharpness: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 1.5, 60) * sharpness
    labels, weights = rng.random(60), rng.random(60) + 0.1
    found = calibration.fit_temperature(margins, labels, weights)
    best = minimize_scalar(
        lambda a: calibration.nll(margins * a, labels, weights) * weights.sum() + calibration.penalty(a),
        bounds=(calibration.MIN_SHARPNESS, calibration.MAX_SHARPNESS),
        method="bounded",
        options={"xatol": 1e-12, "maxiter": 2000},
    )
    least = calibration.nll(margins, labels, weights, found) * weights.sum() + calibration.penalty(1 / found)
    assert least <= best.fun + 1e-10


@pytest.mark.parametrize("sharpness", [0.25, 1.0, 5.0])
def test_it_recovers_the_temperature_that_was_put_in(sharpness: float) -> None:
    assert calibration.fit_temperature(*drawn(40_000, sharpness)) == pytest.approx(sharpness, rel=0.05)


def test_it_bounds_what_the_pairs_leave_open() -> None:
    many = np.ones(10_000)
    assert calibration.fit_temperature(many / 100, many, many) == 1 / calibration.MAX_SHARPNESS  # never wrong
    assert calibration.fit_temperature(-many, many, many) == 1 / calibration.MIN_SHARPNESS  # always wrong
    assert calibration.fit_temperature(0 * many, many, many) == pytest.approx(1)


def test_it_concludes_little_from_few_pairs() -> None:
    five, one = np.ones(5), np.ones(1)
    assert 0.4 < calibration.fit_temperature(five, five, five) < 1  # all right
    assert 1 < calibration.fit_temperature(-one, one, one) < 2  # the only one wrong
    assert calibration.fit_temperature(one, one, 0 * one) == pytest.approx(1)


def test_it_leaves_out_pairs_that_count_for_nothing() -> None:
    margins, labels, weights = drawn(50)
    prompts, lengths = [str(i) for i in range(50)], np.full(50, 10, dtype=np.int64)
    report = calibration.report(margins, labels, weights, prompts, lengths)
    # A bin, a length and folds of their own, in which nothing has a weight.
    more = (np.append(margins, [9.0, -9.0]), np.append(labels, [1.0, 1.0]), np.append(weights, [0.0, 0.0]))
    assert report == calibration.report(*more, [*prompts, "x", "y"], np.append(lengths, [5000, 5000]))
    nothing = calibration.report(margins, labels, 0 * weights, prompts, lengths)
    assert (nothing["temperature"], nothing["before"]) == (1.0, {"n": 0})


def test_it_calibrates_what_was_too_sure() -> None:
    margins, labels, weights = drawn(4000, 5.0)
    report = calibration.report(
        margins, labels, weights, [str(i) for i in range(4000)], np.arange(4000, dtype=np.int64)
    )
    assert report["before"]["ece"] > 0.15
    assert report["after"]["ece"] < 0.04
    assert report["after"]["nll"] < report["before"]["nll"]
    assert report["after"]["accuracy"] == report["before"]["accuracy"]
    assert sum(one["n"] for one in report["bins"]) == sum(one["n"] for one in report["by_length"]) == 4000
    assert [one["n"] for one in report["by_length"]] == [200, 300, 500, 3000]


def test_it_judges_no_pair_by_a_temperature_fitted_to_its_prompt() -> None:
    margins, labels, weights = drawn(50, 3.0)
    prompts = [str(i // 2) for i in range(50)]
    before = calibration.cross_fitted(margins, labels, weights, prompts)
    changed = labels.copy()
    changed[:2] = 1 - changed[:2]  # both pairs of one prompt
    after = calibration.cross_fitted(margins, changed, weights, prompts)
    assert after[:2].tolist() == before[:2].tolist()
    assert (after != before).sum() > 30  # the others' temperature has heard of it


@given(st.floats(-20, 20), st.floats(1.01, 50))
def test_it_has_rao_and_kuppers_ties(margin: float, theta: float) -> None:
    a, b = math.exp(margin / 2), math.exp(-margin / 2)
    expected = a * b * (theta**2 - 1) / ((a + theta * b) * (theta * a + b))
    found = calibration.tie_probabilities(np.array([margin]), theta)[0]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_it_reports_nothing_of_nothing() -> None:
    none = np.array([])
    report = calibration.report(none, none, none, [], none.astype(np.int64))
    assert (report["temperature"], report["before"], report["after"]) == (1.0, {"n": 0}, {"n": 0})
