import numpy as np
import pytest
from scipy.optimize import minimize

from training.ml import win_rate


def test_it_finds_equals_equal() -> None:
    found = win_rate.measure(np.zeros(20), np.full(20, 30.0), np.full(20, 30.0))
    assert found["win_rate"] == found["length_controlled"] == 0.5
    assert found["interval"] == [0.5, 0.5]


def test_it_is_the_mean_probability_of_being_preferred() -> None:
    margins = np.array([2.0, -1.0, 0.5])
    found = win_rate.measure(margins, np.array([3.0, 4.0, 5.0]), np.array([5.0, 4.0, 3.0]))
    assert found["win_rate"] == pytest.approx(np.mean(1 / (1 + np.exp(-margins))))
    low, high = found["interval"]
    assert low < found["win_rate"] < high


def test_it_takes_away_what_is_won_by_length_alone() -> None:
    """The reward is nothing but length: the version wins because it writes more, and would not at the same length."""
    rng = np.random.default_rng(1)
    differences = rng.normal(30, 30, 400)
    x = np.tanh(differences / np.sqrt(np.mean(differences**2)))
    found = win_rate.measure(2 * x, 60 + differences, np.full(400, 60.0))
    assert found["win_rate"] > 0.65
    assert found["length_controlled"] == pytest.approx(0.5, abs=0.01)


def test_it_leaves_what_is_won_by_more_than_length() -> None:
    rng = np.random.default_rng(2)
    differences = rng.normal(0, 30, 400)
    x = np.tanh(differences / np.sqrt(np.mean(differences**2)))
    found = win_rate.measure(1.0 + 2 * x, 60 + differences, np.full(400, 60.0))
    assert found["length_controlled"] == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.01)


def test_it_is_the_least_of_the_penalised_cross_entropy() -> None:
    rng = np.random.default_rng(3)
    preferences, differences = rng.uniform(0.05, 0.95, 30), rng.normal(10, 20, 30)
    x = np.tanh(differences / np.sqrt(np.mean(differences**2)))

    def loss(w: np.ndarray) -> float:
        z = w[0] + w[1] * x
        nll = np.logaddexp(0, -z) * preferences + np.logaddexp(0, z) * (1 - preferences)
        return float(nll.sum() + 0.5 * (1e-6 * w[0] ** 2 + win_rate.RIDGE * w[1] ** 2))

    best = minimize(loss, np.zeros(2), tol=1e-12).x
    assert win_rate.length_controlled(preferences, differences) == pytest.approx(1 / (1 + np.exp(-best[0])), abs=1e-5)


@pytest.mark.parametrize("margin", [40.0, -40.0])
def test_it_stays_finite_when_one_side_always_wins(margin: float) -> None:
    found = win_rate.measure(np.full(10, margin), np.arange(10.0), np.zeros(10))
    assert 0 <= found["length_controlled"] <= 1
    assert found["length_controlled"] == pytest.approx(float(margin > 0), abs=0.02)
