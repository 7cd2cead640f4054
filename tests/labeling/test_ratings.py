"""The leaderboard on simulated versions, where it must not be sure, and the power statement against simulation."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from labeling import bias, ratings
from labeling.ratings import Matches


def play(rng: np.random.Generator, strengths: list[float], n: int, tie: float = -0.5, side: float = 0.0) -> Matches:
    first = rng.integers(0, len(strengths), n)
    second = (first + rng.integers(1, len(strengths), n)) % len(strengths)
    sides = rng.choice([-1, 1], n)
    eta = np.array(strengths)[first] - np.array(strengths)[second] + side * sides
    return Matches(first, second, outcome(rng, eta, tie), sides, np.arange(n))


def outcome(rng: np.random.Generator, eta: np.ndarray, tie: float) -> np.ndarray:
    logits = np.stack([-eta / 2, np.full_like(eta, tie), eta / 2])
    return (np.argmax(logits + rng.gumbel(size=logits.shape), axis=0) - 1).astype(float)


def matches(rows: list[tuple[int, int, float]]) -> Matches:
    first, second, value = (np.array(column) for column in zip(*rows, strict=True))
    return Matches(first, second, value.astype(float), np.zeros(len(rows), dtype=int), np.arange(len(rows)))


@pytest.mark.parametrize("seed", range(6))
def test_it_agrees_with_scikit_learn_without_ties(seed: int):
    played = play(np.random.default_rng(seed), [0.0, 0.5, 1.0, -0.5], 600, tie=-np.inf)
    found = {s.version: s.rating for s in ratings.leaderboard(played, 4, baseline=0)}
    design = np.eye(4)[played.first] - np.eye(4)[played.second]
    design = np.column_stack([design, played.side * np.sqrt(ratings.PRECISION / ratings.WEAK_PRECISION)])
    theirs = LogisticRegression(C=1 / ratings.PRECISION, fit_intercept=False, tol=1e-10, max_iter=1000)
    strengths = theirs.fit(design, played.value > 0).coef_[0][:4]
    expected = 1000 + ratings.ELO * (strengths - strengths.mean())
    assert [found[v] for v in range(4)] == pytest.approx(expected.tolist(), abs=0.1)


def test_it_covers_true_win_rates_and_ranks():
    """Of 100 campaigns: win rates against the baseline lie in 92 to 98 % of their intervals, and true ranks in nearly all
    of theirs, for a rank's interval holds whenever none of the pairwise differences errs to one side.
    """
    strengths = [0.0, 0.3, 0.9, 1.0]
    rate, rank = [], []
    for seed in range(100):
        played = play(np.random.default_rng(seed), strengths, 500, side=0.4)
        for standing in ratings.leaderboard(played, 4, baseline=0):
            if standing.version:
                true = 1 / (1 + np.exp(-strengths[standing.version]))
                assert standing.win_rate_low is not None
                assert standing.win_rate_high is not None
                rate.append(standing.win_rate_low <= true <= standing.win_rate_high)
            rank.append(standing.best_rank <= 4 - standing.version <= standing.worst_rank)
    assert 0.92 <= np.mean(rate) <= 0.98
    assert np.mean(rank) > 0.94


def test_it_is_not_fooled_by_sides():
    """Version 1 always stands on the left, which people like: with sides known it is no better than version 0."""
    rng = np.random.default_rng(1)
    n = 3000
    first, second = np.full(n, 1), np.full(n, 0)
    on_left = np.where(rng.random(n) < 0.9, 1, -1)
    value = outcome(rng, 1.0 * on_left, -1.0)
    known = ratings.leaderboard(Matches(first, second, value, on_left, np.arange(n)), 2, 0)
    unknown = ratings.leaderboard(Matches(first, second, value, on_left * 0, np.arange(n)), 2, 0)
    rates = {s.version: s for s in known}
    assert (rates[1].best_rank, rates[1].worst_rank) == (1, 2)
    assert {s.version: s.rank for s in unknown}[1] == 1
    assert {s.version: s.best_rank for s in unknown}[0] == 2


def test_it_controls_for_length():
    """Version 1 wins by writing more; at equal length version 0 is better."""
    rng = np.random.default_rng(2)
    n = 4000
    first, second = np.full(n, 1), np.full(n, 0)
    words = np.column_stack([rng.lognormal(5.3, 0.5, n), rng.lognormal(5.0, 0.5, n)])
    features = bias.style_features(words[:, :1], words[:, 1:])
    value = outcome(rng, -0.4 + 1.5 * features[:, 0], -1.0)
    played = Matches(first, second, value, rng.choice([-1, 1], n), np.arange(n))
    plain = {s.version: s.win_rate for s in ratings.leaderboard(played, 2, 0)}
    controlled = {s.version: s.win_rate for s in ratings.leaderboard(replace(played, features=features), 2, 0)}
    assert plain[1] is not None
    assert plain[1] > 0.5
    assert controlled[1] == pytest.approx(1 / (1 + np.exp(0.4)), abs=0.03)


def test_it_says_which_versions_cannot_be_compared():
    rows = [(0, 1, 1.0), (1, 0, 1.0), (1, 2, 0.0), (3, 4, 1.0), (4, 3, 1.0)] * 5
    found = ratings.leaderboard(matches(rows), 7, baseline=1)
    assert [(s.version, s.component) for s in found][3:] == [(3, 1), (4, 1)]
    assert {s.version for s in found} == {0, 1, 2, 3, 4}  # 5 and 6 were never judged
    rates = {s.version: s.win_rate for s in found}
    assert rates[0] == pytest.approx(0.5)
    assert rates[1] == pytest.approx(0.5)
    assert rates[3] is rates[4] is None
    for standing in found:
        assert standing.worst_rank <= (3 if standing.component == 0 else 2)


@pytest.mark.parametrize(("n", "is_sure"), [(2, False), (200, True)])
def test_it_stays_finite_and_modest_where_a_version_won_everything(n: int, is_sure: bool):
    found = ratings.leaderboard(matches([(0, 1, 1.0)] * n), 2, baseline=1)
    best = found[0]
    assert best.version == 0
    assert best.high - best.low > 100
    assert best.win_rate is not None
    assert best.win_rate < 1
    assert (best.worst_rank == 1) == is_sure


def test_it_is_the_same_whoever_is_called_first():
    played = play(np.random.default_rng(3), [0.0, 0.6, 0.2], 300, side=0.3)
    turned = Matches(played.second, played.first, -played.value, -played.side, played.cluster)
    for one, other in zip(ratings.leaderboard(played, 3, 0), ratings.leaderboard(turned, 3, 0), strict=True):
        assert (one.version, one.rank, one.n_won, one.n_tied) == (other.version, other.rank, other.n_won, other.n_tied)
        assert one.rating == pytest.approx(other.rating)


def test_it_counts_wins_losses_and_ties():
    found = {
        s.version: s for s in ratings.leaderboard(matches([(0, 1, 2.0), (1, 0, 3.0), (0, 1, 0.0), (0, 0, 1.0)]), 2, 0)
    }
    assert (found[0].n_won, found[0].n_lost, found[0].n_tied) == (1, 1, 1)
    assert found[0].rating == pytest.approx(1000)


def test_it_has_no_standings_without_votes():
    nobody = np.array([], dtype=int)
    assert ratings.leaderboard(Matches(nobody, nobody, nobody.astype(float), nobody, nobody), 3, 0) == []


@pytest.mark.parametrize(("rate", "n"), [(0.6, 194), (0.55, 783), (0.52, 4904), (0.4, 194)])
def test_it_knows_how_many_judgments_a_difference_takes(rate: float, n: int):
    assert ratings.judgments_needed(rate) == n


@pytest.mark.parametrize("rate", [0.55, 0.6, 0.7])
def test_it_has_the_power_that_a_simulation_finds(rate: float):
    rng, n = np.random.default_rng(4), ratings.judgments_needed(rate)
    wins = rng.binomial(n, rate, 20_000)
    found = np.abs(wins / n - 0.5) / np.sqrt(0.25 / n) > ratings.Z
    assert found.mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("n", [12, 50, 194, 783, 5000])
def test_it_inverts_the_power_statement(n: int):
    smallest = ratings.detectable(n)
    assert smallest is not None
    assert ratings.judgments_needed(smallest) <= n < ratings.judgments_needed(smallest - 1e-3)


def test_it_puts_power_in_a_sentence():
    assert ratings.describe_power(120, 0.52) == "Not enough judgments to tell 52 % from 50 %: 120 of about 4904."
    assert ratings.describe_power(900, 0.55).startswith("Enough judgments to tell 55 % from 50 %")
    assert ratings.describe_power(194) == "194 judgments tell a win rate of 60 % or more from 50 %."
    assert ratings.describe_power(1) == "Not enough judgments to tell any two versions apart: 1."
    assert ratings.describe_power(200, 0.501) == "200 judgments tell a win rate of 60 % or more from 50 %."


def test_it_refuses_to_tell_one_half_from_itself():
    for rate in (0.5, 0.0, 1.0):
        with pytest.raises(ValueError, match="win rate"):
            ratings.judgments_needed(rate)
