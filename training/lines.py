"""Judgments → the lines of a snapshot: pairs, single responses that are good or bad, and edits. Nothing here is read or
written; rows and texts come in, dictionaries go out.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import combinations
from typing import Any, NamedTuple

from labeling.models import Judgment, Purpose

TIE = 0.5
LABEL_DIGITS = 6  # what a fit on another machine would agree on
MIN_LINES = 4
Verdict = Judgment.Verdict
Line = dict[str, Any]


class Row(NamedTuple):
    """What is read of a judgment, with its prompt. (Model instances of as many rows take four times as long.)"""

    pk: int
    comparison_id: int
    annotator_id: int
    purpose: str
    verdict: str
    ranks: dict[str, int]
    strength: int | None
    order: list[int]
    edit_id: int | None
    guidelines_version: int | None
    created_at: datetime
    prompt_sha256: str
    messages: list[dict[str, str]]


@dataclass(frozen=True)
class Written:
    """A response: its text, who wrote it (an adapter's name, an outside author's, "edit"; empty where nobody knows), and
    the id of the response that it is an edit of.
    """

    text: str
    version: str = ""
    edited_from: int | None = None


@dataclass(frozen=True)
class Sources:
    """What lines are made of, beside judgments: responses by id, the opaque name of each annotator by user id, the judgments
    that the incumbent has learned from (`old`), and soft labels of pairs by `labeling.votes`.
    """

    responses: Mapping[int, Written]
    annotators: Mapping[int, str] = field(default_factory=dict)
    old: Collection[int] = ()
    soft: Mapping[tuple[int, int], tuple[float, float]] = field(default_factory=dict)


@dataclass
class Said:
    """What was said of something, and by whom: parallel lists."""

    prompt_sha256: str
    messages: list[dict[str, str]]
    judgments: list[int] = field(default_factory=list)
    annotators: list[int] = field(default_factory=list)

    def note(self, row: Row) -> None:
        self.judgments.append(row.pk)
        self.annotators.append(row.annotator_id)

    def provenance(self, sources: Sources) -> Line:
        return {
            "prompt_sha256": self.prompt_sha256,
            "messages": self.messages,
            "judgments": self.judgments,
            "annotators": [sources.annotators.get(pk, "") for pk in self.annotators],
            "is_new": any(pk not in sources.old for pk in self.judgments),
        }


@dataclass
class Pair(Said):
    """Two responses to one prompt and every vote on them, `first` being the one with the smaller id."""

    first: int = 0
    second: int = 0
    votes: list[float] = field(default_factory=list)  # 1 = first is better, 0 = second is better, or TIE
    strengths: list[int] = field(default_factory=list)  # signed: positive where first is better


@dataclass
class Thumbs(Said):
    """One response, and how many more found it good than bad."""

    response: int = 0
    balance: int = 0


@dataclass
class Edit(Said):
    """A response as somebody improved it."""

    response: int = 0


@dataclass(frozen=True)
class Lines:
    """All lines of a snapshot, those left out by the split not among them."""

    pairs: list[Line]
    unpaired: list[Line]
    edits: list[Line]

    @property
    def used(self) -> set[int]:
        return {pk for lines in (self.pairs, self.unpaired, self.edits) for line in lines for pk in line["judgments"]}


def make(rows: Iterable[Row], sources: Sources, leaving: Collection[str] = ()) -> Lines:
    """Every line that the judgments give, but of prompts (sha256) that are `leaving`. The order of rows makes no difference."""
    rows = [row for row in sorted(rows, key=lambda row: row.pk) if row.prompt_sha256 not in leaving]
    return Lines(
        [to_pair_line(pair, sources) for pair in derive_pairs(rows)],
        [to_unpaired_line(one, sources) for one in derive_thumbs(rows) if one.balance],
        [to_edit_line(edit, sources) for edit in derive_edits(rows)],
    )


def count_usable(lines: list[Line], source: str) -> int:
    """How many lines a method that reads `source` (of `training.catalog`) can learn from; `lines` are of all kinds."""
    return sum(USABLE.get(source, _is_decided)(line) for line in lines)


def _is_decided(line: Line) -> bool:
    return "label" in line and line["label"] != TIE


# Source → whether a line is of use to it.
USABLE: dict[str, Callable[[Line], bool]] = {
    "pairs": _is_decided,
    "pairs_with_ties": lambda line: "label" in line,
    "unpaired": lambda line: "desirable" in line or _is_decided(line),
    "edits": lambda line: "original_id" in line,
}


# --- pairs -----------------------------------------------------------------------------------------------------------
def is_usable(row: Row) -> bool:
    """Whether a judgment says anything about a pair."""
    return row.verdict in (Verdict.PREFERENCE, Verdict.TIE) and len(row.ranks) > 1


def derive_pairs(rows: Iterable[Row]) -> list[Pair]:
    """Every pair of ranked responses of every judgment, votes on the same two responses put together."""
    rows = [row for row in rows if is_usable(row)]
    best = _decided(rows)
    pairs: dict[tuple[int, int], Pair] = {}
    for row in rows:
        ranks = _with_edit(row, best.get(row.comparison_id))
        for first, second in combinations(sorted(ranks), 2):
            new = Pair(row.prompt_sha256, row.messages, first=first, second=second)
            _vote(pairs.setdefault((first, second), new), row, ranks)
    return [pairs[key] for key in sorted(pairs)]


def _decided(rows: Iterable[Row]) -> dict[int, set[int]]:
    """Comparison → the responses that a reviewer decided for, where one ranked them."""
    return {row.comparison_id: _best(row) for row in rows if row.purpose == Purpose.ADJUDICATION and row.ranks}


def _best(row: Row) -> set[int]:
    return {int(response) for response, rank in row.ranks.items() if rank == min(row.ranks.values())}


def _is_overruled(row: Row, decided: set[int] | None) -> bool:
    return decided is not None and not _best(row) <= decided


def _with_edit(row: Row, decided: set[int] | None) -> dict[int, int]:
    """Response id → rank; a response improved by hand comes before the one that it was made of: edited > chosen >
    rejected, as in Llama 3 (2407.21783, section 4.2.1). Not where a reviewer decided for another response.
    """
    ranks = {int(response): rank for response, rank in row.ranks.items()}
    return ranks if row.edit_id is None or _is_overruled(row, decided) else {**ranks, row.edit_id: 0}


def _vote(pair: Pair, row: Row, ranks: dict[int, int]) -> None:
    """The strength that was given is of the responses shown, not of an edit."""
    first, second = ranks[pair.first], ranks[pair.second]
    sign = (first < second) - (first > second)
    is_shown = row.edit_id not in (pair.first, pair.second)
    pair.votes.append((sign + 1) / 2)
    pair.strengths.append(sign * (row.strength or 0) if is_shown else 0)
    pair.note(row)


def to_pair_line(pair: Pair, sources: Sources) -> Line:
    """One line of train.jsonl or heldout.jsonl.

    `label` is P(chosen is better) and `weight` how many votes that is worth, by those who can be believed
    (`sources.soft`). Without that, `label` is the share of votes for `chosen` (a tie counts half for each side), `weight`
    their number: a soft label with that weight has the loss of its votes one by one. `margin` is the mean strength
    towards `chosen`, `tie_share` the share of votes that are ties, `agreement` the share that say what the line says.
    What everybody calls a tie is one, whichever side they lean to: the gate must not ask which response is better.
    """
    n = len(pair.votes)
    share, weight = sum(pair.votes) / n, float(n)  # share of first
    if soft := sources.soft.get((pair.first, pair.second)):
        share, weight = (round(value, LABEL_DIGITS) for value in soft)
    if set(pair.votes) == {TIE}:
        share = TIE
    chosen, rejected = (pair.first, pair.second) if share >= TIE else (pair.second, pair.first)
    strength = sum(pair.strengths) / n
    verdict = TIE if share == TIE else float(share > TIE)
    return {
        **pair.provenance(sources),
        "pair": f"{pair.first}-{pair.second}",
        "chosen": sources.responses[chosen].text,
        "rejected": sources.responses[rejected].text,
        "chosen_id": chosen,
        "rejected_id": rejected,
        "chosen_version": sources.responses[chosen].version,
        "rejected_version": sources.responses[rejected].version,
        "label": share if share >= TIE else 1 - share,
        "weight": weight,
        "margin": max(strength if share >= TIE else -strength, 0.0) if share != TIE else 0.0,
        "tie_share": pair.votes.count(TIE) / n,
        "agreement": pair.votes.count(verdict) / n,
    }


# --- single responses ------------------------------------------------------------------------------------------------
SIGNS = {Verdict.GOOD: 1, Verdict.BAD: -1, Verdict.BOTH_BAD: -1}


def derive_thumbs(rows: Iterable[Row]) -> list[Thumbs]:
    """Responses that were called good or bad by themselves: a thumb, or all that were shown where all are bad. Where a
    reviewer decided otherwise, what the others said of that comparison does not count.
    """
    rows = list(rows)
    decided = _decided(rows)
    found: dict[int, Thumbs] = {}
    for row in rows:
        if row.verdict not in SIGNS or row.comparison_id in decided:
            continue
        for response in row.order:
            one = found.setdefault(response, Thumbs(row.prompt_sha256, row.messages, response=response))
            one.balance += SIGNS[Verdict(row.verdict)]
            one.note(row)
    return [found[key] for key in sorted(found)]


def to_unpaired_line(one: Thumbs, sources: Sources) -> Line:
    """One line of unpaired.jsonl: whether more found the response good than bad, and by how many (`weight`)."""
    return {
        **one.provenance(sources),
        "response": sources.responses[one.response].text,
        "response_id": one.response,
        "response_version": sources.responses[one.response].version,
        "desirable": one.balance > 0,
        "weight": float(abs(one.balance)),
    }


# --- edits -----------------------------------------------------------------------------------------------------------
def derive_edits(rows: Iterable[Row]) -> list[Edit]:
    """Responses that people improved, but where a reviewer decided for another one."""
    rows = list(rows)
    decided = _decided(rows)
    found: dict[int, Edit] = {}
    for row in rows:
        if row.edit_id is not None and not _is_overruled(row, decided.get(row.comparison_id)):
            found.setdefault(row.edit_id, Edit(row.prompt_sha256, row.messages, response=row.edit_id)).note(row)
    return [found[key] for key in sorted(found)]


def to_edit_line(edit: Edit, sources: Sources) -> Line:
    """One line of edits.jsonl; `original_id` is the response that was improved."""
    written = sources.responses[edit.response]
    return {
        **edit.provenance(sources),
        "response": written.text,
        "response_id": edit.response,
        "original_id": written.edited_from,
    }
