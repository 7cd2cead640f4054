"""Planted annotators are found, honest ones left alone."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.annotators import simulate
from labeling import reliability, suspects
from labeling.reliability import Votes
from labeling.suspects import Kind, Suspect

pytestmark = pytest.mark.slow  # many simulations

PLANTED = {0: "random", 1: "always_left", 2: "inverted"}


def find(votes: Votes, is_fast: np.ndarray | None = None) -> list[Suspect]:
    return suspects.find_suspects(votes, reliability.fit(votes), is_fast)


@pytest.mark.parametrize("seed", range(16))
def test_it_finds_a_random_clicker_an_always_left_and_an_inverted_one(seed: int):
    """Twelve people, 600 votes each, three of them planted; nobody else is accused."""
    votes = simulate(np.random.default_rng(seed), 2400, 12, 3, spread=0.25, planted=PLANTED).votes
    found = {suspect.annotator: suspect.kind for suspect in find(votes)}
    assert found == {0: Kind.RANDOM, 1: Kind.ONE_SIDE, 2: Kind.INVERTED}


@pytest.mark.parametrize("seed", range(6))
def test_it_calls_many_random_clicks_random_however_they_fall(seed: int):
    """With 1,500 votes an interval is so narrow that it may well miss 0 on either side."""
    votes = simulate(np.random.default_rng(seed), 6000, 12, 3, spread=0.25, planted={0: "random"}).votes
    assert [(suspect.annotator, suspect.kind) for suspect in find(votes)] == [(0, Kind.RANDOM)]


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_them_by_gold_where_nobody_shares_a_pair(seed: int):
    votes = simulate(np.random.default_rng(seed), 4800, 8, 1, spread=0.2, gold_share=0.6, planted=PLANTED).votes
    found = {suspect.annotator: suspect.kind for suspect in find(votes)}
    assert found == {0: Kind.RANDOM, 1: Kind.ONE_SIDE, 2: Kind.INVERTED}


def test_it_hardly_ever_accuses_the_honest():
    """Small and large campaigns, 540 honest people of whom some are weak: at most 1 % are accused."""
    sizes = [(30, 5, 2), (100, 10, 3), (600, 10, 3), (400, 20, 3)]
    accused = n_people = 0
    for seed in range(12):
        for n_items, n_people_here, overlap in sizes:
            votes = simulate(np.random.default_rng(seed), n_items, n_people_here, overlap).votes
            accused += len(find(votes))
            n_people += n_people_here
    assert n_people == 540
    assert accused <= 5


def test_it_says_why_in_words():
    votes = simulate(np.random.default_rng(1), 1500, 10, 3, planted=PLANTED).votes
    by_kind = {suspect.kind: suspect for suspect in find(votes)}
    assert "Chose the left response in 100% of " in by_kind[Kind.ONE_SIDE].evidence
    assert "opposite" in by_kind[Kind.INVERTED].evidence
    assert "clicking at random" in by_kind[Kind.RANDOM].evidence
    for suspect in by_kind.values():
        assert suspect.low <= suspect.value <= suspect.high
        assert suspect.n_votes > suspects.MIN_VOTES


def test_it_finds_always_right_always_tie_and_too_fast():
    votes = simulate(np.random.default_rng(2), 600, 8, 3).votes
    value = np.where(votes.annotator == 3, -votes.side, votes.value)
    value = np.where(votes.annotator == 4, 0, value)
    found = {
        (suspect.annotator, suspect.kind): suspect
        for suspect in find(replace(votes, value=value.astype(float)), votes.annotator == 5)
    }
    assert found.keys() == {(3, Kind.ONE_SIDE), (4, Kind.ALWAYS_TIE), (5, Kind.TOO_FAST)}
    assert "the right response in 100%" in found[3, Kind.ONE_SIDE].evidence
    assert "a tie" in found[4, Kind.ALWAYS_TIE].evidence
    assert "600 words a minute" in found[5, Kind.TOO_FAST].evidence


def test_it_does_not_call_ties_strange_where_everybody_calls_them():
    votes = simulate(np.random.default_rng(3), 300, 5, 3).votes
    assert find(replace(votes, value=votes.value * 0)) == []


def test_it_accuses_nobody_of_a_few_votes():
    votes = simulate(np.random.default_rng(4), 5, 3, 3, planted={0: "always_left", 1: "inverted", 2: "random"}).votes
    assert find(votes, np.ones(len(votes.item), dtype=bool)) == []


def test_it_takes_no_votes_at_all():
    empty = np.array([], dtype=int)
    assert find(Votes(empty, empty, empty.astype(float), empty, np.array([]), 0)) == []
