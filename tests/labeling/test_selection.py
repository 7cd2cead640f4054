import itertools

import numpy as np
import pytest

from labeling import selection


def _taken(choices, n):
    """What a strategy takes when it always gets its best."""
    found = [next(choices)]
    while len(found) < n:
        found.append(choices.send(found[-1]))
    return found


def _rng(seed=0):
    return np.random.default_rng(seed)


def _log_det(delta, difference, rows):
    some = delta[list(rows)]
    return np.linalg.slogdet(np.eye(delta.shape[1]) + selection.fisher(some, difference[list(rows)]))[1]


def _strategies(n, rng):
    a, b, difference = rng.normal(size=(n, 4)), rng.normal(size=(n, 4)), rng.normal(size=n)
    return {
        "in_order": lambda last: selection.in_order(difference, last),
        "k_centre": lambda last: selection.k_centre(a, b[:3], last),
        "most_different": lambda last: selection.most_different(a, b, np.zeros(n), 0.0, last),
        "most_uncertain": lambda last: selection.most_uncertain(difference, last),
        "d_optimal": lambda last: selection.d_optimal(a - b, difference, np.zeros((4, 4)), last),
    }


NAMES = sorted(_strategies(4, _rng()))


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_everything_once_and_what_is_last_at_the_end(name):
    is_last = np.arange(40) % 4 == 1
    order = _taken(_strategies(40, _rng())[name](is_last), 40)
    assert sorted(order) == list(range(40))
    assert set(order[30:]) == set(np.flatnonzero(is_last))


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_from_what_was_really_taken(name):
    choices = _strategies(40, _rng())[name](None)
    best = next(choices)
    others = [i for i in range(40) if i != best][:20]
    for other in others:
        suggested = choices.send(other)
    assert suggested not in others


@pytest.mark.parametrize("name", NAMES)
def test_it_repeats_itself(name):
    first, second = (_taken(_strategies(60, _rng(3))[name](None), 30) for _ in range(2))
    assert first == second


def test_it_covers_the_points_within_twice_the_best_radius():
    points = _rng(1).normal(size=(14, 2))

    def radius(centres):
        return max(min(np.linalg.norm(p - points[c]) for c in centres) for p in points)

    greedy = radius(_taken(selection.k_centre(points), 4))
    best = min(radius(centres) for centres in itertools.combinations(range(14), 4))
    assert greedy <= 2 * best + 1e-9


def test_it_takes_one_of_every_cluster_before_a_second_of_any():
    centres = 10 * np.eye(6)
    points = np.repeat(centres, 5, axis=0) + 0.01 * _rng(2).normal(size=(30, 6))
    order = _taken(selection.k_centre(points), 12)
    assert {i // 5 for i in order[:6]} == set(range(6))
    judged = _taken(selection.k_centre(points, covered=centres[:2]), 4)
    assert {i // 5 for i in judged} == {2, 3, 4, 5}


def test_it_prefers_different_answers_only_where_both_are_good():
    first = np.array([[1.0, 0], [1, 0], [1, 0], [1, 0]])
    second = np.array([[1.0, 0.1], [-1, 0], [0, 1], [1, 1]])
    quality = np.array([1.0, -5.0, 1.0, 1.0])
    assert _taken(selection.most_different(first, second, quality, floor=0.0), 4) == [2, 3, 0, 1]


def test_it_is_least_certain_where_rewards_are_equal_and_never_overflows():
    difference = np.array([4.0, -0.1, 1e6, -1e6, 0.5])
    assert _taken(selection.most_uncertain(difference), 3) == [1, 4, 0]
    assert selection.variance(difference)[[2, 3]].tolist() == [0.0, 0.0]
    assert selection.variance(np.zeros(1))[0] == 0.25


def test_it_adds_the_pair_with_the_largest_gain_in_log_det_every_time():
    """The fast updates against the definition, computed anew for every candidate at every step."""
    rng = _rng(4)
    delta, difference = rng.normal(size=(60, 5)), rng.normal(size=60)
    order = _taken(selection.d_optimal(delta, difference, np.zeros((5, 5))), 25)
    for step in range(25):
        gains = {i: _log_det(delta, difference, [*order[:step], i]) for i in range(60) if i not in order[:step]}
        assert gains[order[step]] == pytest.approx(max(gains.values()), abs=1e-9)


def test_it_is_much_more_informative_than_chance():
    rng = _rng(5)
    delta, difference = rng.normal(size=(500, 8)) * np.geomspace(0.1, 3, 8), rng.normal(size=500)
    best = _log_det(delta, difference, _taken(selection.d_optimal(delta, difference, np.zeros((8, 8))), 30))
    by_chance = [_log_det(delta, difference, rng.choice(500, 30, replace=False)) for _ in range(50)]
    assert best > max(by_chance)


def test_it_counts_what_was_judged_already():
    delta = np.array([[3.0, 0], [0, 1]])
    assert next(selection.d_optimal(delta, np.zeros(2), np.zeros((2, 2)))) == 0
    known = selection.fisher(np.repeat(delta[:1], 40, axis=0), np.zeros(40))
    assert next(selection.d_optimal(delta, np.zeros(2), known)) == 1


@pytest.mark.parametrize("random_share", [0.2, 0.5, 1.0])
def test_it_gives_chance_its_share_and_says_the_probability(random_share):
    n = 4000
    score = _rng(6).normal(size=n)
    draws = selection.draw(selection.in_order(score), n, n - 1, random_share, _rng(7))
    assert len(set(draws.index.tolist())) == n - 1
    assert draws.is_random.mean() == pytest.approx(random_share, abs=4 * np.sqrt(0.25 / n))
    left = set(range(n))
    ranked = iter(np.argsort(-score))
    best = next(ranked)
    for place, taken in enumerate(draws.index[:200].tolist()):
        while best not in left:
            best = next(ranked)
        expected = random_share / len(left) + (1 - random_share) * (taken == best)
        assert draws.propensity[place] == pytest.approx(expected)
        assert draws.is_random[place] or taken == best
        left.remove(taken)


def test_it_draws_each_item_as_often_as_its_propensity_says():
    """Over many draws of one place: frequencies against the probabilities that were stored."""
    n, times = 5, 20_000
    rng = _rng(8)
    counts, stated = np.zeros(n), np.zeros(n)
    for _ in range(times):
        draws = selection.draw(selection.in_order(np.arange(n, dtype=float)), n, 1, 0.4, rng)
        counts[draws.index[0]] += 1
        stated[draws.index[0]] = draws.propensity[0]
    assert stated.sum() == pytest.approx(1)
    assert np.abs(counts / times - stated).max() < 4 * np.sqrt(0.25 / times)


def test_it_draws_uniformly_from_what_the_active_arm_leaves():
    """Ten items, all placed: in the random places every item but the favourites comes equally often."""
    rng = _rng(9)
    seconds = np.zeros(10)
    for _ in range(6000):
        draws = selection.draw(selection.in_order(-np.arange(10.0)), 10, 2, 1.0, rng)
        seconds[draws.index[1]] += 1
    assert np.abs(seconds / 6000 - 0.1).max() < 4 * np.sqrt(0.09 / 6000)


def test_it_fills_no_more_places_than_there_are():
    assert len(selection.draw(selection.in_order(np.zeros(3)), 3, 10, 0.2, _rng()).index) == 3
    assert len(selection.draw(selection.in_order(np.zeros(0)), 0, 10, 0.2, _rng()).index) == 0
