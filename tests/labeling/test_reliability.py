"""Dawid–Skene against crowd-kit, and the annotator-aware model against simulated annotators whose truth is known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene
from scipy.optimize import approx_fprime

from benchmarks.annotators import simulate
from labeling import reliability
from labeling.reliability import Votes

pytestmark = pytest.mark.slow  # many simulations

SEEDS = range(12)


def some_votes(rows: list[tuple[int, int, float, int]], known: dict[int, float] | None = None) -> Votes:
    """Rows of item, annotator, value, side."""
    columns = np.array(rows, dtype=float).reshape(-1, 4)
    item, annotator = columns[:, 0].astype(int), columns[:, 1].astype(int)
    answers = np.full(int(item.max(initial=-1)) + 1, np.nan)
    for index, answer in (known or {}).items():
        answers[index] = answer
    return Votes(item, annotator, columns[:, 2], columns[:, 3].astype(int), answers, int(annotator.max(initial=-1)) + 1)


def log_loss(probability: np.ndarray, truth: np.ndarray) -> float:
    p = np.clip(probability, 1e-3, 1 - 1e-3)
    return float(-np.mean(np.where(truth, np.log(p), np.log(1 - p))))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("with_gold", [False, True], ids=["no gold", "gold"])
def test_it_computes_crowd_kits_dawid_skene(seed: int, with_gold: bool):
    rng = np.random.default_rng(seed)
    votes = simulate(rng, 80, 8, 4).votes
    value = votes.value.astype(int) + 1
    gold = np.where(rng.random(80) < 0.2, rng.integers(0, 3, 80), -1) if with_gold else np.full(80, -1)
    ours = reliability.dawid_skene(votes.item, votes.annotator, value, 3, gold, n_iterations=30, tolerance=0)
    frame = pd.DataFrame({"task": votes.item, "worker": votes.annotator, "label": value})
    theirs = DawidSkene(n_iter=30, tol=-np.inf)
    theirs.fit(frame, true_labels=pd.Series(gold[gold >= 0], index=np.flatnonzero(gold >= 0)) if with_gold else None)
    assert theirs.probas_ is not None
    assert ours.posterior == pytest.approx(theirs.probas_.sort_index().sort_index(axis=1).to_numpy(), abs=1e-6)
    assert theirs.errors_ is not None
    errors = theirs.errors_.sort_index(axis=1)
    for (worker, said), row in errors.iterrows():
        assert ours.confusion[worker, :, said] == pytest.approx(row.to_numpy(), abs=1e-6)


def test_it_keeps_what_is_known_and_smooths():
    known = np.array([2, -1])
    found = reliability.dawid_skene([0, 0, 1], [0, 1, 0], [0, 1, 0], 3, known, smoothing=1)
    assert found.posterior[0].tolist() == [0, 0, 1]
    assert found.posterior.sum(axis=1) == pytest.approx(1)
    assert found.confusion.sum(axis=2) == pytest.approx(1)
    assert found.confusion.min() > 0.1  # a count of one in each of three cells


def test_it_leaves_items_without_votes_at_the_prior():
    found = reliability.dawid_skene([0, 0], [0, 1], [1, 1], 2, np.array([-1, -1]))
    assert found.posterior[1] == pytest.approx(found.prior, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_it_computes_the_gradient_of_its_loss(seed: int):
    rng = np.random.default_rng(seed)
    votes = simulate(rng, 40, 5, 3, gold_share=0.3).votes
    votes.known[0] = 0
    votes.side[:10] = 0
    posterior = reliability._Posterior(votes)
    parameters = rng.normal(0, 0.5, 3 + 3 * 5)
    numeric = approx_fprime(parameters, lambda p: posterior.loss(p)[0], 1e-6)
    assert posterior.loss(parameters)[1] == pytest.approx(numeric, abs=1e-3)


def test_it_finds_the_reliabilities_and_biases_that_made_the_votes():
    planted = {0: "random", 1: "inverted"}
    made = simulate(np.random.default_rng(0), 8000, 16, 4, spread=0.4, planted=planted)
    found = reliability.fit(made.votes)
    assert found.is_learned
    unit = np.median(
        found.reliability[2:] / made.reliability[2:]
    )  # of the typical annotator, which nothing fixes exactly
    assert 0.8 < unit < 1.25
    assert np.corrcoef(found.reliability, made.reliability)[0, 1] > 0.96
    assert np.abs(found.reliability - unit * made.reliability).max() < 0.35
    assert np.abs(found.side_bias - made.bias).max() < 0.2


@pytest.mark.parametrize("seed", range(4))
def test_it_covers_reliabilities_with_its_errors(seed: int):
    made = simulate(np.random.default_rng(seed), 6000, 24, 3, spread=0.3)
    found = reliability.fit(made.votes)
    unit = np.median(found.reliability / made.reliability)
    z = (found.reliability - unit * made.reliability) / found.reliability_error
    assert np.mean(np.abs(z) < 1.96) >= 0.75  # shrinking the best and the worst costs some of the 95 %
    assert np.abs(z).max() < 4
    assert np.std(z) > 0.5  # and they are not wide for nothing


@pytest.mark.parametrize("seed", SEEDS)
def test_it_beats_majority_and_dawid_skene(seed: int):
    """On which response is truly better: more often right, and a smaller log loss."""
    planted = {0: "random", 1: "always_left", 2: "inverted"}
    made = simulate(np.random.default_rng(seed), 1200, 10, 3, planted=planted)
    truth, votes = made.difference > 0, made.votes
    soft = reliability.fit(votes)
    share = reliability.share_votes(votes).label
    skene = reliability.dawid_skene(votes.item, votes.annotator, votes.value.astype(int) + 1, 3).posterior
    skene_better = skene[:, 2] + skene[:, 1] / 2
    by_majority = np.where(share == 0.5, 0.5, (share > 0.5) == truth)  # a draw is right half of the time
    assert np.mean((soft.label > 0.5) == truth) > by_majority.mean()
    assert log_loss(soft.label, truth) < min(log_loss(share, truth), log_loss(skene_better, truth))


@pytest.mark.parametrize("seed", SEEDS)
def test_it_predicts_what_a_typical_annotator_would_choose(seed: int):
    """Against the probabilities behind the votes: closer than vote shares (Brier), and calibrated in the large."""
    made = simulate(np.random.default_rng(seed), 1500, 12, 3)
    target = 1 / (1 + np.exp(-made.difference))
    soft, share = reliability.fit(made.votes), reliability.share_votes(made.votes)
    assert np.mean((soft.preference - target) ** 2) < 0.75 * np.mean((share.label - target) ** 2)
    upper = soft.preference > 0.6
    assert soft.preference[upper].mean() == pytest.approx(target[upper].mean(), abs=0.05)


def test_it_weighs_by_the_number_of_votes_among_equals():
    rng = np.random.default_rng(3)
    made = simulate(rng, 3000, 8, 4, spread=0.0)
    keep = rng.random(len(made.votes.item)) < 0.6
    columns = {name: getattr(made.votes, name)[keep] for name in ("item", "annotator", "value", "side")}
    found = reliability.fit(replace(made.votes, **columns))
    n = np.bincount(columns["item"], minlength=3000)
    assert np.corrcoef(found.weight, n)[0, 1] > 0.97
    assert found.weight.mean() == pytest.approx(n.mean(), rel=0.1)
    assert found.weight[n == 0] == pytest.approx(0)
    assert found.label[n == 0] == pytest.approx(0.5)


def test_it_gives_random_clicks_no_weight():
    made = simulate(np.random.default_rng(4), 2500, 10, 4, planted={0: "random"})
    found = reliability.fit(made.votes)
    alone = np.append(made.votes.known, np.nan)  # one more pair, seen by the random clicker only
    votes = replace(
        made.votes,
        item=np.append(made.votes.item, len(alone) - 1),
        annotator=np.append(made.votes.annotator, 0),
        value=np.append(made.votes.value, 1.0),
        side=np.append(made.votes.side, 1),
        known=alone,
    )
    after = reliability.fit(votes)
    assert after.weight[-1] < 0.1
    assert after.label[-1] == pytest.approx(0.5, abs=0.08)
    assert found.weight.mean() == pytest.approx(after.weight.mean(), rel=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_it_mirrors_its_answer_when_the_responses_are_swapped(seed: int):
    votes = simulate(np.random.default_rng(seed), 300, 6, 3, gold_share=0.1).votes
    mirrored = replace(votes, value=-votes.value, side=-votes.side, known=-votes.known)
    one, other = reliability.fit(votes), reliability.fit(mirrored)
    assert one.label == pytest.approx(1 - other.label, abs=1e-3)
    assert one.weight == pytest.approx(other.weight, rel=1e-2)
    assert one.side_bias == pytest.approx(other.side_bias, abs=1e-2)


@pytest.mark.parametrize("seed", range(4))
def test_it_does_not_care_who_is_called_what(seed: int):
    rng = np.random.default_rng(seed)
    votes = simulate(rng, 300, 6, 3).votes
    names, rows = rng.permutation(6), rng.permutation(len(votes.item))
    renamed = replace(
        votes,
        item=votes.item[rows],
        annotator=names[votes.annotator[rows]],
        value=votes.value[rows],
        side=votes.side[rows],
    )
    one, other = reliability.fit(votes), reliability.fit(renamed)
    assert one.label == pytest.approx(other.label, abs=1e-3)
    assert one.reliability == pytest.approx(other.reliability[names], abs=1e-2)


def test_it_uses_the_sign_of_a_grade_only():
    votes = simulate(np.random.default_rng(6), 200, 5, 3).votes
    stronger = replace(votes, value=votes.value * 3)
    assert reliability.fit(votes).label.tolist() == reliability.fit(stronger).label.tolist()


def test_it_falls_back_to_vote_shares_when_nothing_tells_annotators_apart():
    votes = some_votes([(0, 0, 1, 1), (1, 0, -2, 1), (2, 1, 0, -1), (3, 1, 3, 0)])
    found = reliability.fit(votes)
    assert not found.is_learned
    assert found.label.tolist() == [1, 0, 0.5, 1]
    assert found.weight.tolist() == [1, 1, 1, 1]
    assert found.reliability.tolist() == [1, 1]
    assert np.isnan(found.reliability_error).all()


def test_it_does_not_learn_from_a_person_who_agrees_with_themselves():
    twice = [(item, 0, 1.0, side) for item in range(100) for side in (1, -1)]
    assert not reliability.fit(some_votes(twice)).is_learned


@pytest.mark.parametrize(("n_shared", "is_learned"), [(29, False), (30, True)])
@pytest.mark.parametrize("by_gold", [False, True], ids=["shared pairs", "gold"])
def test_it_learns_once_enough_pairs_tell_annotators_apart(n_shared: int, is_learned: bool, by_gold: bool):
    rows = [(item, 0, 1.0, 1) for item in range(100)]
    known = dict.fromkeys(range(n_shared), 1.0) if by_gold else {}
    rows += [] if by_gold else [(item, 1, 1.0, -1) for item in range(n_shared)]
    found = reliability.fit(some_votes(rows, known))
    assert found.is_learned == is_learned
    assert (found.label > 0.5).all()


@pytest.mark.parametrize("rows", [[], [(0, 0, 1, 1)]], ids=["no votes", "one vote"])
def test_it_takes_next_to_nothing(rows: list[tuple[int, int, float, int]]):
    found = reliability.fit(some_votes(rows))
    assert found.label.tolist() == [1] * len(rows)


def test_it_learns_from_gold_alone():
    """One vote per pair; the known answers tell who can be believed on the others."""
    made = simulate(np.random.default_rng(7), 3000, 4, 1, gold_share=0.5, planted={0: "random", 1: "inverted"})
    found = reliability.fit(made.votes)
    assert found.is_learned
    assert found.reliability[1] < -0.5
    assert abs(found.reliability[0]) < 0.35
    assert min(found.reliability[2:]) > 0.6


def test_it_believes_a_known_answer_over_a_vote():
    others = simulate(np.random.default_rng(8), 500, 6, 3).votes
    found = reliability.fit(
        replace(
            others,
            item=np.append(others.item, [500, 501]),
            annotator=np.append(others.annotator, [0, 0]),
            value=np.append(others.value, [-1.0, 1.0]),
            side=np.append(others.side, [1, 1]),
            known=np.append(others.known, [1.0, 0.0]),
        )
    )
    assert found.label[500] > 0.9
    assert found.label[501] == pytest.approx(0.5, abs=0.1)
