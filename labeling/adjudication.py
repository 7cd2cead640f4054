"""What people disagree on, and what a reviewer makes of it: lists of comparisons, everyone's votes on one, the decision."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User
from django.db.models import Exists, OuterRef, QuerySet
from django.utils.functional import Promise
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling import gold, judgments
from labeling.choices import Choice
from labeling.errors import Invalid
from labeling.models import Campaign, Comparison, Judgment, Lease, Purpose
from serving.rendering import to_html

Verdict = Judgment.Verdict
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STRENGTHS = {
    1: gettext_lazy("Response %(n)s is slightly better"),
    2: gettext_lazy("Response %(n)s is better"),
    3: gettext_lazy("Response %(n)s is much better"),
    None: gettext_lazy("Response %(n)s is better"),
}
FLAGS = {
    "unsafe": gettext_lazy("unsafe"),
    "private_data": gettext_lazy("private data"),
    "broken_prompt": gettext_lazy("broken prompt"),
}
SHOWN = ("disputed", "decided", "all")


def comparisons(campaign: Campaign) -> QuerySet[Comparison]:
    """Those that others than their author may look at: what was compared in a chat is private."""
    return campaign.comparisons.exclude(source=Comparison.Source.CHAT)


def decided() -> QuerySet[Judgment]:
    """Reviewers' decisions in force."""
    return judgments.in_force().filter(purpose=Purpose.ADJUDICATION).exclude(verdict=Verdict.SKIP)


def listed(campaign: Campaign, shown: str) -> QuerySet[Comparison]:
    """Comparisons with their prompts: `disputed` (the longest disputed first), `decided`, or `all` that were judged."""
    rows = comparisons(campaign).select_related("prompt").order_by("pk")
    is_decided = Exists(decided().filter(comparison=OuterRef("pk")))
    if shown == "disputed":
        return rows.filter(is_disputed=True, gold_ranks__isnull=True)
    if shown == "decided":
        return rows.filter(is_decided)
    return rows.filter(n_judgments__gt=0)


def after(campaign: Campaign, comparison: Comparison) -> Comparison | None:
    """The dispute to look at next; None when that was the last one."""
    rest = listed(campaign, "disputed").exclude(pk=comparison.pk)
    return rest.filter(pk__gt=comparison.pk).first() or rest.first()


@dataclass(frozen=True)
class Opinion:
    """What one person said, in terms of the order in which the reader sees the responses."""

    who: str
    is_pseudonym: bool
    said: str
    kind: str
    reason: str
    tags: list[str]
    criteria: list[tuple[str, str]]
    flags: list[str | Promise]
    edit: SafeString | str
    seconds: float | None
    judgment: Judgment


def opinions(comparison: Comparison, order: list[int], *, with_names: bool) -> list[Opinion]:
    """Everybody's judgments on a comparison, one query; the names only when they can no longer sway the decision."""
    said = judgments.in_force().filter(comparison=comparison, is_surplus=False)
    rows = said.exclude(purpose=Purpose.ADJUDICATION).select_related("annotator", "edit").order_by("pk")
    people: dict[int, str] = {}
    for row in rows:
        people.setdefault(row.annotator_id, pseudonym(len(people)))
    return [_opinion(row, comparison, order, people[row.annotator_id], with_names) for row in rows]


def pseudonym(number: int) -> str:
    """A to Z, AA, AB, …"""
    letters = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, len(LETTERS))
        letters = LETTERS[rest] + letters
    return _("Person %(letter)s") % {"letter": letters}


def _opinion(row: Judgment, comparison: Comparison, order: list[int], alias: str, with_names: bool) -> Opinion:
    criteria = {criterion["key"]: criterion["label"] for criterion in comparison.campaign.criteria}
    answers = [
        (criteria.get(key, key), in_words(value, row.order, order))
        for key, value in row.criteria.items()
        if value is not None
    ]
    return Opinion(
        who=row.annotator.get_username() if with_names else alias,
        is_pseudonym=not with_names,
        said=describe(row, order),
        kind=_kind(row),
        reason=row.reason,
        tags=row.tags,
        criteria=answers,
        flags=[FLAGS.get(flag, flag) for flag in row.flags],
        edit=to_html(row.edit.text) if row.edit else "",
        seconds=row.shown_ms / 1000 if row.shown_ms is not None else None,
        judgment=row,
    )


def _kind(row: Judgment) -> str:
    """Why it was asked where it was no ordinary vote; only reviewers are told."""
    kinds = {
        Purpose.REPEAT: _("repeat, sides swapped"),
        Purpose.GOLD: _("as gold"),
        Purpose.PRACTICE: _("in practice"),
        Purpose.IMPORT: _("imported"),
    }
    return kinds.get(Purpose(row.purpose), "")


def describe(row: Judgment, order: list[int]) -> str:
    """A verdict in words, with the responses numbered from 1 in `order`."""
    if row.verdict == Verdict.PREFERENCE:
        return _ranking(row, order)
    words = {
        Verdict.TIE: _("Equally good"),
        Verdict.BOTH_BAD: _("All bad"),
        Verdict.SKIP: _("Skipped"),
        Verdict.GOOD: _("Good"),
        Verdict.BAD: _("Bad"),
        Verdict.RETRACTED: _("Taken back"),
    }
    return words[Verdict(row.verdict)]


def _ranking(row: Judgment, order: list[int]) -> str:
    places = {response: number for number, response in enumerate(order, 1)}
    by_rank: dict[int, list[int]] = {}
    for response, rank in row.ranks.items():
        by_rank.setdefault(rank, []).append(places.get(int(response), 0))
    groups = [sorted(by_rank[rank]) for rank in sorted(by_rank)]
    if len(row.ranks) == 2 and len(groups) == 2:
        return STRENGTHS[row.strength] % {"n": groups[0][0]}
    return " > ".join(" = ".join(map(str, group)) for group in groups)


def in_words(value: Any, given: list[int], order: list[int]) -> str:
    """A criterion's answer: a grade, positive when the first of `given` is better, or a rating per response id."""
    places = {str(response): number for number, response in enumerate(order, 1)}
    if isinstance(value, Mapping):
        rated = sorted((places.get(response, 0), rating) for response, rating in value.items())
        return ", ".join(_("response %(n)s: %(rating)s of 5") % {"n": n, "rating": rating} for n, rating in rated)
    if not value:
        return _("equal")
    better = given[0] if value > 0 else given[1]
    return STRENGTHS[abs(value)] % {"n": places.get(str(better), 0)}


def read_choice(lease: Lease, posted: Mapping[str, str]) -> Choice:
    """The decision that the form sends: `choice` is a verdict, or preference:<side>:<strength>; of groups, `rank-<id>` is
    each response's place. Raises Invalid for anything else; whether the campaign offers it is asked by judgments.record.
    """
    verdict, *rest = posted.get("choice", "").split(":")
    reason = posted.get("reason", "")[:5000] if lease.comparison.campaign.rationale != Campaign.Rationale.OFF else ""
    try:
        if verdict == Verdict.PREFERENCE and rest:
            chosen = lease.order[int(rest[0])]
            strength = int(rest[1]) if len(rest) > 1 and rest[1] else None
            return Choice(verdict, lease.order, chosen=chosen, strength=strength, reason=reason)
        if verdict == Verdict.PREFERENCE:
            ranks = {response: int(posted[f"rank-{response}"]) for response in lease.order}
            if len(set(ranks.values())) == 1:
                return Choice(Verdict.TIE, lease.order, reason=reason)
            return Choice(verdict, lease.order, ranks=ranks, reason=reason)
    except (ValueError, IndexError, KeyError) as error:
        raise Invalid(_("Choose one of the buttons, or give every response a place.")) from error
    return Choice(verdict, lease.order, reason=reason)


@dataclass(frozen=True)
class GoldRow:
    """A pair with a known answer and how people did on it."""

    comparison: Comparison
    n: int
    n_right: int

    @property
    def percent(self) -> int:
        return round(100 * self.n_right / self.n) if self.n else 0


def gold_pairs(campaign: Campaign) -> QuerySet[Comparison]:
    return comparisons(campaign).filter(gold_ranks__isnull=False).select_related("prompt").order_by("-pk")


def with_answers(pairs: Iterable[Comparison]) -> list[GoldRow]:
    """How often each was answered right, asked as gold or in practice, ever. One query."""
    rows = list(pairs)
    asked = judgments.in_force().filter(comparison__in=rows, purpose__in=(Purpose.GOLD, Purpose.PRACTICE))
    answers: dict[int, list[dict[str, int]]] = {}
    for comparison, ranks in asked.exclude(verdict=Verdict.SKIP).values_list("comparison", "ranks"):
        answers.setdefault(comparison, []).append(ranks)
    return [
        GoldRow(row, len(answers.get(row.pk, [])), sum(gold.is_right(row, ranks) for ranks in answers.get(row.pk, [])))
        for row in rows
    ]


def best_of(comparison: Comparison, best: int) -> dict[str, int]:
    """The answer "this one is better than all others" as `gold.set_answer` wants it."""
    ids = [item.response_id for item in comparison.items.all()]
    if best not in ids:
        raise Invalid(_("The right answer must be one of the responses."))
    return {str(response): 1 if response == best else 2 for response in ids}


def notes(comparison: Comparison, reviewer: User) -> list[str]:
    """What a reviewer should know before deciding."""
    own = judgments.counting().filter(comparison=comparison, annotator=reviewer).exists()
    return [_("You are one of the people who judged this pair.")] if own else []
