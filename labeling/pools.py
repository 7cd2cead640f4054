"""A campaign's rows as arrays, for plans and their report: what is open, and what was judged, with the texts' features."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
from django.db.models import Exists, OuterRef, QuerySet
from numpy.typing import NDArray

from labeling import features, judgments, leases
from labeling.models import Campaign, Comparison, ComparisonItem, Judgment, Prompt, Purpose, Response

Floats = NDArray[np.float64]
CHUNK = 500  # rows named in one query


@dataclass(frozen=True)
class Answer:
    """A response as far as it matters here."""

    id: int
    prompt: int
    text: str
    reward: float | None
    rewarded_by: int | str | None  # a version, or a reward model by its hash
    is_doubtful: bool  # screening warned, or it was cut off


@dataclass(frozen=True)
class Item:
    """An open comparison: responses by id, in their order."""

    pk: int
    prompt: int
    content_key: str
    sort_key: int
    responses: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """One response preferred to another by one judgment."""

    chosen: int
    rejected: int
    prompt: int
    arm: str
    propensity: float | None


class Material:
    """The answers of some comparisons and judgments, and their features, computed when they are asked for."""

    def __init__(self, response_ids: Iterable[int]) -> None:
        self.answers = {answer.id: answer for answer in read_answers(sorted(set(response_ids)))}
        self._rows = {id: row for row, id in enumerate(self.answers)}

    @cached_property
    def prompts(self) -> dict[int, str]:
        """What was asked, by prompt."""
        return read_prompts(sorted({answer.prompt for answer in self.answers.values()}))

    @cached_property
    def features(self) -> Floats:
        """(n answers, d) as `features.describe` has it."""
        answers = list(self.answers.values())
        return features.describe([a.text for a in answers], [self.prompts[a.prompt] for a in answers])

    def rows(self, response_ids: Sequence[int]) -> Floats:
        """(len(response_ids), d) features."""
        return self.features[[self._rows[id] for id in response_ids]]

    def deltas(self, choices: Sequence[Choice]) -> Floats:
        """(len(choices), d) φ(chosen) − φ(rejected)."""
        return self.rows([one.chosen for one in choices]) - self.rows([one.rejected for one in choices])


def untouched(campaign: Campaign, now: datetime) -> QuerySet[Comparison]:
    """Open comparisons that nobody holds or has judged: only these may be given another place."""
    held = leases.live(now).filter(comparison=OuterRef("pk"))
    judged = Judgment.objects.filter(comparison=OuterRef("pk"), superseded_by=None)
    said = judged.exclude(verdict=Judgment.Verdict.RETRACTED)
    return Comparison.objects.filter(campaign=campaign, is_open=True).filter(~Exists(held), ~Exists(said))


def read_open(campaign: Campaign, now: datetime, n: int) -> list[Item]:
    """The first `n` untouched comparisons in the order in which they would be given out."""
    columns = ("pk", "prompt_id", "content_key", "sort_key")
    rows = list(untouched(campaign, now).order_by("sort_key", "id").values_list(*columns)[:n])
    members: dict[int, list[int]] = {row[0]: [] for row in rows}
    for chunk in _chunks(list(members)):
        items = ComparisonItem.objects.filter(comparison__in=chunk).order_by("comparison", "index")
        for comparison, response in items.values_list("comparison_id", "response_id"):
            members[comparison].append(response)
    return [Item(pk, prompt, key, sort_key, tuple(members[pk])) for pk, prompt, key, sort_key in rows]


def read_choices(campaign: Campaign, n: int, *, only_given_out: bool = False) -> list[Choice]:
    """Preferences of the newest `n` judgments that a model may learn from, oldest first; ties teach no order and are left
    out, a ranking counts as its pairs. `only_given_out` leaves out what no arm chose: imported ones, those of chats,
    and reviewers' decisions.
    """
    rows = judgments.learnable().filter(comparison__campaign=campaign, verdict=Judgment.Verdict.PREFERENCE)
    if only_given_out:
        rows = rows.filter(purpose=Purpose.LABEL)
    columns = ("ranks", "comparison__prompt_id", "comparison__arm", "comparison__propensity")
    found = []
    for ranks, prompt, arm, propensity in reversed(rows.order_by("-id").values_list(*columns)[:n]):
        for a, b in itertools.combinations(sorted(ranks, key=int), 2):
            if ranks[a] != ranks[b]:
                chosen, rejected = (a, b) if ranks[a] < ranks[b] else (b, a)
                found.append(Choice(int(chosen), int(rejected), prompt, arm, propensity))
    return found


def read_answers(response_ids: Sequence[int]) -> Iterator[Answer]:
    columns = ("pk", "prompt_id", "text", "reward", "rewarded_by_id", "reward_model", "warnings", "finish_reason")
    for chunk in _chunks(response_ids):
        for pk, prompt, text, reward, by, model, warnings, end in Response.objects.filter(pk__in=chunk).values_list(
            *columns
        ):
            is_doubtful = bool(warnings) or end == "length"
            yield Answer(pk, prompt, text[: features.MAX_CHARS], reward, model or by, is_doubtful)


def read_prompts(prompt_ids: Sequence[int]) -> dict[int, str]:
    """All turns of each prompt as one text, the last one first: it is what is answered."""
    rows = (
        row
        for chunk in _chunks(prompt_ids)
        for row in Prompt.objects.filter(pk__in=chunk).values_list("pk", "messages")
    )
    return {
        pk: "\n".join(turn["content"] for turn in reversed(messages))[: features.MAX_CHARS] for pk, messages in rows
    }


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))
