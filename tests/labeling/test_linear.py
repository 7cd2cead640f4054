import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from labeling import linear


def _choices(n, seed=0):
    rng = np.random.default_rng(seed)
    theta = np.array([1.0, -0.5, 0.0, 0.25])
    delta = rng.normal(size=(n, 4)) * np.sqrt(2)
    is_first = rng.random(n) < 1 / (1 + np.exp(-delta @ theta))
    return np.where(is_first[:, None], delta, -delta), theta


def test_it_agrees_with_scikit_learn():
    delta, _ = _choices(200)
    weight = np.random.default_rng(1).integers(1, 4, 200).astype(float)
    both, label = np.vstack([delta, -delta]), np.repeat([1, 0], 200)  # it wants two classes
    model = LogisticRegression(C=1 / (2 * linear.ridge(4)), fit_intercept=False, tol=1e-10)
    model.fit(both, label, sample_weight=np.tile(weight, 2))
    assert linear.fit(delta, weight) == pytest.approx(model.coef_[0], abs=1e-5)


def test_it_finds_the_truth_with_many_choices():
    delta, theta = _choices(50_000)
    assert linear.fit(delta) == pytest.approx(theta, abs=0.05)


def test_it_counts_a_weight_as_so_many_rows():
    delta, _ = _choices(50)
    assert linear.fit(np.repeat(delta, 3, axis=0)) == pytest.approx(linear.fit(delta, np.full(50, 3.0)), abs=1e-6)


def test_it_ends_at_the_same_place_wherever_it_starts():
    delta, _ = _choices(100)
    assert linear.fit(delta, start=np.full(4, 50.0)) == pytest.approx(linear.fit(delta), abs=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e6])
def test_it_stays_finite_on_extreme_features(scale):
    delta, _ = _choices(30)
    assert np.isfinite(linear.fit(delta * scale)).all()


def test_it_knows_nothing_before_it_was_told_anything():
    theta = linear.fit(np.empty((0, 4)))
    assert theta.tolist() == [0, 0, 0, 0]
    assert linear.log_loss(np.ones((2, 4)), theta) == pytest.approx(np.log(2))
