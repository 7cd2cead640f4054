import numpy as np
import pytest

from labeling import forecast


def _finish(per_day, remaining):
    return forecast.finish(per_day, remaining, np.random.default_rng(0))


def test_it_knows_the_day_when_every_day_is_the_same():
    assert _finish([10] * 7, 95) == forecast.Forecast(10, 10, 10, 7)


def test_it_is_done_when_nothing_remains():
    assert _finish([], 0) == forecast.Forecast(0, 0, 0, 0)


@pytest.mark.parametrize("per_day", [[], [5, 5], [0, 0, 0, 0]])
def test_it_says_nothing_without_days_to_go_by(per_day):
    assert _finish(per_day, 10) is None


def test_it_has_a_wider_range_where_days_differ_more():
    steady, uneven = _finish([9, 11, 10, 9, 11] * 3, 300), _finish([0, 50, 0, 0, 0] * 3, 300)
    assert steady.middle == pytest.approx(30, abs=1)
    assert uneven.low < uneven.middle < uneven.high
    assert uneven.high - uneven.low > 4 * (steady.high - steady.low)


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    n_inside = 0
    for _ in range(200):
        past, future = rng.poisson(20, 14) * rng.integers(0, 2, 14), rng.poisson(20, 400) * rng.integers(0, 2, 400)
        truth = int(np.argmax(np.cumsum(future) >= 200)) + 1
        found = forecast.finish(list(past), 200, rng)
        assert found is not None
        n_inside += (found.low or np.inf) <= truth <= (found.high or np.inf)
    assert 0.82 <= n_inside / 200 <= 0.99


def test_it_does_not_look_ahead_for_ever():
    found = _finish([1, 0, 0, 0], 100_000)
    assert (found.low, found.high) == (None, None)


def test_it_looks_at_the_last_days_only():
    assert _finish([1000] * 50 + [10] * forecast.HISTORY, 100).middle == 10
