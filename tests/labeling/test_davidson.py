"""The regression against scikit-learn without ties, its own gradient with them, and its intervals against the truth."""

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from labeling import davidson

pytestmark = pytest.mark.slow  # many simulations


def draw(rng: np.random.Generator, design: np.ndarray, beta: np.ndarray, tie: float = -0.3) -> np.ndarray:
    eta = design @ beta
    logits = np.stack([-eta / 2, np.full_like(eta, tie), eta / 2])
    return np.argmax(logits + rng.gumbel(size=logits.shape), axis=0) - 1


@pytest.mark.parametrize("seed", range(8))
def test_it_is_logistic_regression_without_ties(seed: int):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(300, 4))
    value = draw(rng, design, rng.normal(size=4), tie=-np.inf)
    ours = davidson.fit(design, value * 2, np.full(4, 0.5))
    theirs = LogisticRegression(C=2.0, fit_intercept=False, tol=1e-10, max_iter=1000).fit(design, value > 0)
    assert ours.coefficients == pytest.approx(theirs.coef_[0], abs=1e-4)
    assert ours.tie == -np.inf


@pytest.mark.parametrize("seed", range(8))
def test_it_finds_the_maximum_with_ties(seed: int):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(200, 3))
    value = draw(rng, design, rng.normal(size=3))

    def loss(parameters: np.ndarray) -> float:
        eta, tau = design @ parameters[:3], parameters[3]
        total = np.log(np.exp(eta / 2) + np.exp(-eta / 2) + np.exp(tau))
        return float((total - value * eta / 2 - (value == 0) * tau).sum() + 0.1 * (parameters[:3] ** 2).sum() / 2)

    ours = davidson.fit(design, value, np.full(3, 0.1))
    theirs = minimize(loss, np.zeros(4), tol=1e-12)
    assert [*ours.coefficients, ours.tie] == pytest.approx(theirs.x.tolist(), abs=1e-4)


@pytest.mark.parametrize("clustered", [False, True], ids=["hessian", "sandwich"])
def test_it_covers_the_truth(clustered: bool):
    beta, covered = np.array([0.8, -0.4]), []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        design = rng.normal(size=(250, 2))
        cluster = np.arange(250) if clustered else None
        found = davidson.fit(design, draw(rng, design, beta), np.zeros(2), cluster)
        for k, contrast in enumerate(np.eye(2)):
            value, error = found.contrast(contrast)
            covered.append(abs(value - beta[k]) < 1.96 * error)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_it_widens_the_sandwich_where_rows_repeat_each_other():
    rng = np.random.default_rng(0)
    design = rng.normal(size=(200, 2))
    value = draw(rng, design, np.array([0.5, 0.5]))
    many, rows = np.repeat(design, 9, axis=0), np.repeat(np.arange(200), 9)
    once = davidson.fit(design, value, np.zeros(2), np.arange(200))
    repeated = davidson.fit(many, value[rows], np.zeros(2), rows)
    assert repeated.coefficients == pytest.approx(once.coefficients, abs=1e-5)
    assert np.diag(repeated.covariance) == pytest.approx(np.diag(once.covariance), rel=1e-3)
    assert np.diag(davidson.fit(many, value[rows], np.zeros(2)).covariance)[0] < np.diag(once.covariance)[0] / 5


def test_it_mirrors_when_the_sides_are_swapped():
    rng = np.random.default_rng(1)
    design = rng.normal(size=(100, 3))
    value = draw(rng, design, np.array([1.0, 0.0, -1.0]))
    one, other = davidson.fit(design, value, np.ones(3)), davidson.fit(-design, -value, np.ones(3))
    assert one.coefficients == pytest.approx(other.coefficients)
    assert one.tie == pytest.approx(other.tie)


def test_it_stays_finite_where_one_side_always_wins():
    found = davidson.fit(np.ones((20, 1)), np.ones(20), [0.1])
    assert 1 < found.coefficients[0] < 10


def test_it_refuses_coefficients_that_nothing_determines():
    with pytest.raises(ValueError, match="precision"):
        davidson.fit(np.zeros((5, 1)), [1, 0, -1, 1, 0], [0.0])
