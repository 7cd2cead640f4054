"""A campaign's judgments as arrays for the statistics, in few queries whatever their number, and what comes of them.

A judgment of a group implies one vote on every two of its responses. A pair is (first, second), response ids with the smaller
one first, as in training's snapshots; a positive grade says that the first is better. Verdicts that rank nothing (skip, both
bad, thumbs) are no votes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from django.db.models import Q, QuerySet
from numpy.typing import NDArray

from labeling import bias, judgments, reliability
from labeling.models import Campaign, Comparison, Judgment, Purpose, Response
from labeling.ratings import Matches
from labeling.reliability import SoftLabels, Votes

Pair = tuple[int, int]
CHUNK = 5_000


class Row(NamedTuple):
    """The columns of a judgment that votes are made of."""

    pk: int
    comparison: int
    prompt: int
    annotator: int
    purpose: str
    ranks: dict[str, int]
    strength: int | None
    order: list[int]
    shown_ms: int | None


_COLUMNS = ("pk", "comparison", "comparison__prompt", "annotator", "purpose", "ranks", "strength", "order", "shown_ms")


@dataclass(frozen=True)
class Collected:
    """`votes` with what their indices mean: `pairs` by item, `annotators` (user ids) by annotator. Per vote: the ids of its
    `judgment`, `comparison` and `prompt`, whether it `counts` towards k (gold does not), the response ids as `shown` and for
    how long (`shown_ms`, NaN when not known). `is_gold` (n_items,) marks pairs that measure people and are not learned from;
    `votes.known` also holds what reviewers decided.
    """

    votes: Votes
    pairs: list[Pair]
    annotators: list[int]
    judgment: NDArray[np.int64]
    comparison: NDArray[np.int64]
    prompt: NDArray[np.int64]
    counts: NDArray[np.bool_]
    shown: list[list[int]]
    shown_ms: NDArray[np.float64]
    is_gold: NDArray[np.bool_]

    @property
    def countable(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """`item`, `annotator` and `value` of the votes that count: what `labeling.agreement` takes."""
        return self.votes.item[self.counts], self.votes.annotator[self.counts], self.votes.value[self.counts]


class Vote(NamedTuple):
    row: Row
    pair: Pair
    grade: int
    side: int


def collect(campaign: Campaign, until: int | None = None) -> Collected:
    """Every vote that counts or is on gold, and every answer that is known; of judgments up to number `until`. Two queries.

    Somebody who judged the same two responses twice (in a pair and in a group, say) has one vote, the newer. Repeats and
    practice are left out: saying the same thing twice is no second opinion.
    """
    wanted = (*judgments.COUNTED, Purpose.GOLD, Purpose.ADJUDICATION)
    newest: dict[tuple[Pair, int], Vote] = {}
    gold = _gold(campaign)
    known = dict(gold)
    said = judgments.in_force().filter(purpose__in=wanted, is_surplus=False)
    for row in _rows(said if until is None else said.filter(pk__lte=until), campaign):
        for vote in _implied(row):
            if row.purpose == Purpose.ADJUDICATION:
                known[vote.pair] = gold.get(vote.pair, int(np.sign(vote.grade)))
            else:
                newest[vote.pair, row.annotator] = vote
    return _arrays(list(newest.values()), known, gold)


def soft_labels(campaign: Campaign, until: int | None = None) -> dict[Pair, tuple[float, float]]:
    """(first id, second id) → (P(first is better), weight as a number of votes), for every pair that a model may learn from,
    by the judgments up to number `until`; see `reliability.SoftLabels`. What a reviewer decided weighs one vote at least. Gold pairs are left out.
    """
    return labels_of(collect(campaign, until))


def labels_of(collected: Collected) -> dict[Pair, tuple[float, float]]:
    """`soft_labels` of votes that were collected."""
    return _labels(collected, reliability.fit(collected.votes))


def _labels(collected: Collected, fitted: SoftLabels) -> dict[Pair, tuple[float, float]]:
    known = collected.votes.known
    is_decided = ~np.isnan(known)
    n_votes = np.bincount(collected.votes.item[collected.counts], minlength=len(known))
    label = fitted.label if fitted.is_learned else np.where(is_decided, (known + 1) / 2, fitted.label)
    weight = np.where(is_decided, np.maximum(fitted.weight, 1.0), fitted.weight)
    usable = np.flatnonzero(~collected.is_gold & (is_decided | (n_votes > 0)))
    return {collected.pairs[i]: (float(label[i]), float(weight[i])) for i in usable}


@dataclass(frozen=True)
class Repeats:
    """Votes that somebody gave twice, the second time with the sides swapped: annotator (user id), what was said `first` and
    `again`, in terms of the pair and not of the sides.
    """

    annotator: NDArray[np.int64]
    first: NDArray[np.int64]
    again: NDArray[np.int64]


def repeats(campaign: Campaign) -> Repeats:
    """The swapped repeats in force, for `bias.self_consistency`. Two queries."""
    said = judgments.in_force()
    again = list(_rows(said.filter(purpose=Purpose.REPEAT), campaign))
    repeated = said.filter(purpose=Purpose.REPEAT, comparison__campaign=campaign).values("comparison")
    firsts = {
        (vote.pair, row.annotator): vote.grade
        for row in _rows(said.filter(purpose__in=judgments.COUNTED, comparison__in=repeated), campaign)
        for vote in _implied(row)
    }
    found = [
        (row.annotator, firsts[vote.pair, row.annotator], vote.grade)
        for row in again
        for vote in _implied(row)
        if (vote.pair, row.annotator) in firsts
    ]
    return Repeats(*np.array(found, dtype=np.int64).reshape(-1, 3).T)


def styles(campaign: Campaign) -> dict[int, tuple[int, int, int, int]]:
    """Response id → `bias.count_style` of every response that is compared. One query that reads all texts, as a stream."""
    texts = Response.objects.filter(items__comparison__campaign=campaign).order_by("pk").distinct()
    return {pk: bias.count_style(text) for pk, text in texts.values_list("pk", "text").iterator(CHUNK)}


def too_fast(collected: Collected, counted: Mapping[int, tuple[int, int, int, int]]) -> NDArray[np.bool_]:
    """(n,) `bias.is_too_fast` of each vote, from `styles`; the prompt is not counted, for it may have been read before."""
    n_words = [sum(counted[response][0] for response in shown if response in counted) for shown in collected.shown]
    return bias.is_too_fast(np.array(n_words, dtype=float), collected.shown_ms)


def style_differences(collected: Collected, counted: Mapping[int, tuple[int, int, int, int]]) -> NDArray[np.float64]:
    """(n, len(bias.STYLE)) features of each vote's pair, from `styles`."""
    nothing = (0,) * len(bias.STYLE)
    counts = [[counted.get(response, nothing) for response in pair] for pair in collected.pairs]
    sides = np.array(counts, dtype=float).reshape(-1, 2, len(bias.STYLE))[collected.votes.item]
    return bias.style_features(sides[:, 0], sides[:, 1])


Version = tuple[int | None, str]


def matches(
    campaign: Campaign, collected: Collected, features: NDArray[np.float64] | None = None
) -> tuple[Matches, list[Version]]:
    """The votes that count, between versions, and who the versions are: (adapter id, outside author's name). One query.

    What a person edited or nobody is known to have written has no version; votes on it are left out.
    """
    written = Response.objects.filter(items__comparison__campaign=campaign, edited_from=None).distinct()
    named = written.exclude(Q(adapter=None) & Q(generator="")).values_list("pk", "adapter", "generator")
    author: dict[int, Version] = {pk: (adapter, "" if adapter else name) for pk, adapter, name in named.iterator(CHUNK)}
    versions = sorted(set(author.values()), key=lambda version: (version[0] is None, version))
    number = {version: index for index, version in enumerate(versions)}
    players = np.array(
        [[number.get(author.get(r, (None, "")), -1) for r in pair] for pair in collected.pairs], dtype=int
    )
    votes = collected.votes
    first, second = players.reshape(-1, 2)[votes.item].T
    keep = collected.counts & (first >= 0) & (second >= 0)
    played = Matches(
        first[keep],
        second[keep],
        votes.value[keep],
        votes.side[keep],
        collected.prompt[keep],
        None if features is None else features[keep],
    )
    return played, versions


def _rows(said: QuerySet[Judgment], campaign: Campaign) -> Iterator[Row]:
    rows = said.filter(comparison__campaign=campaign).exclude(ranks={}).order_by("pk")
    return (Row(*columns) for columns in rows.values_list(*_COLUMNS).iterator(CHUNK))


def _implied(row: Row) -> Iterator[Vote]:
    """The votes of one judgment. Grades are of two responses' strength; groups have none, so theirs are ±1. The order of
    responses in an imported file (chosen first, often) says nothing of the sides on which somebody saw them.
    """
    shown = [] if row.purpose == Purpose.IMPORT else row.order
    place = {response: index for index, response in enumerate(shown)}
    for first, second in _pairs(row.ranks):
        sign = _sign(row.ranks, (first, second))
        side = int(np.sign(place[second] - place[first])) if first in place and second in place else 0
        yield Vote(row, (first, second), sign * (row.strength or 1), side)


def _gold(campaign: Campaign) -> dict[Pair, int]:
    rows = Comparison.objects.filter(campaign=campaign, gold_ranks__isnull=False)
    answers = rows.values_list("gold_ranks", flat=True).iterator(CHUNK)
    return {pair: _sign(ranks, pair) for ranks in answers if ranks for pair in _pairs(ranks)}


def _pairs(ranks: Mapping[str, int]) -> Iterator[Pair]:
    return combinations(sorted(int(response) for response in ranks), 2)


def _sign(ranks: Mapping[str, int], pair: Pair) -> int:
    first, second = ranks[str(pair[0])], ranks[str(pair[1])]
    return (first < second) - (first > second)


def _arrays(votes: list[Vote], known: Mapping[Pair, int], gold: Mapping[Pair, int]) -> Collected:
    pairs = sorted({vote.pair for vote in votes} | known.keys())
    annotators = sorted({vote.row.annotator for vote in votes})
    item, person = ({value: index for index, value in enumerate(values)} for values in (pairs, annotators))

    def column(values: Iterator[Any], kind: type = np.int64) -> NDArray:
        return np.fromiter(values, kind, len(votes))

    return Collected(
        votes=Votes(
            item=column(item[vote.pair] for vote in votes),
            annotator=column(person[vote.row.annotator] for vote in votes),
            value=column((vote.grade for vote in votes), np.float64),
            side=column(vote.side for vote in votes),
            known=np.array([known.get(pair, np.nan) for pair in pairs], dtype=np.float64),
            n_annotators=len(annotators),
        ),
        pairs=pairs,
        annotators=annotators,
        judgment=column(vote.row.pk for vote in votes),
        comparison=column(vote.row.comparison for vote in votes),
        prompt=column(vote.row.prompt for vote in votes),
        counts=column((vote.row.purpose != Purpose.GOLD and vote.pair not in gold for vote in votes), np.bool_),
        shown=[vote.row.order for vote in votes],
        shown_ms=column((np.nan if vote.row.shown_ms is None else vote.row.shown_ms for vote in votes), np.float64),
        is_gold=np.array([pair in gold for pair in pairs], dtype=bool),
    )
