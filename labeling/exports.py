"""What goes out: judgments as training data and as evidence, batch by batch, whatever the campaign's size.

A batch is a page of rows by key (not by offset) and takes a fixed number of queries, so memory and time per row stay the
same to the last one. Only judgments in force that one may learn from become training data; a reviewer's decision
replaces the votes that it decides on. Ties are left out of preference data, or stand there with a label of one half;
"both bad" prefers neither, and both responses become negatives of unpaired data.

Formats of training data: huggingface.co/docs/trl/dataset_formats (conversational).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pyarrow as pa
from django.db.models import QuerySet
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from labeling import judgments
from labeling.models import Campaign, Comparison, ComparisonItem, Judgment, Prompt, Purpose, Response
from labeling.provenance import JUDGED, RATIONALE, SOFT, TURNS, Options, rationales, raw_judgments

PAGE = 2000  # comparisons read at a time
Verdict = Judgment.Verdict
Row = dict[str, Any]


@dataclass
class Judged:
    """One comparison with what was said of it: votes as (verdict, ranks, strength, edit id)."""

    prompt_id: int
    texts: dict[int, str] = field(default_factory=dict)
    votes: list[tuple[str, dict[str, int], int | None, int | None]] = field(default_factory=list)


@dataclass
class Page:
    """A page of comparisons, the prompts they ask, and the edits that people made."""

    judged: dict[int, Judged]
    prompts: dict[int, tuple[list[dict[str, str]], str, str]]
    edits: dict[int, str]

    def base(self, item: Judged) -> Row:
        messages, sha256, domain = self.prompts[item.prompt_id]
        return {"prompt": messages, "prompt_sha256": sha256, "domain": domain}


def pages(campaign: Campaign, options: Options) -> Iterator[Page]:
    """All judged comparisons of a campaign, PAGE at a time, in four queries each."""
    rows = campaign.comparisons.filter(n_judgments__gt=0, gold_ranks__isnull=True).order_by("pk")
    if options.without_warned:
        rows = rows.filter(prompt__warnings=[]).exclude(pk__in=_warned(campaign))
    last = 0
    while found := list(rows.filter(pk__gt=last).values_list("pk", "prompt_id")[:PAGE]):
        yield _page(found)
        last = found[-1][0]


def _warned(campaign: Campaign) -> QuerySet[Any, Any]:
    """Comparisons with a response that screening warned of."""
    warned = Response.objects.filter(prompt__campaign=campaign).exclude(warnings=[])
    return Comparison.objects.filter(campaign=campaign, items__response__in=warned).values("pk")


def _page(found: list[tuple[int, int]]) -> Page:
    first, last = found[0][0], found[-1][0]
    judged = {pk: Judged(prompt_id) for pk, prompt_id in found}
    for pk, votes in _votes(first, last):
        if pk in judged:
            judged[pk].votes = votes
    items = ComparisonItem.objects.filter(comparison__gte=first, comparison__lte=last)
    for pk, response, text in items.values_list("comparison_id", "response_id", "response__text"):
        if pk in judged:
            judged[pk].texts[response] = text
    edits = {vote[3] for item in judged.values() for vote in item.votes if vote[3]}
    asked = Prompt.objects.filter(pk__in={prompt_id for _pk, prompt_id in found})
    return Page(
        judged,
        {
            pk: (messages, sha, domain)
            for pk, messages, sha, domain in asked.values_list("pk", "messages", "sha256", "domain")
        },
        dict(Response.objects.filter(pk__in=edits).values_list("pk", "text")) if edits else {},
    )


def _votes(first: int, last: int) -> Iterator[tuple[int, list[Any]]]:
    """What was said of each comparison from number `first` to `last`: the votes, or a reviewer's decision on them."""
    said = judgments.learnable().filter(comparison__gte=first, comparison__lte=last).exclude(verdict=Verdict.SKIP)
    votes: dict[int, list[Any]] = defaultdict(list)
    decided: dict[int, list[Any]] = {}
    columns = ("comparison_id", "purpose", "verdict", "ranks", "strength", "edit_id")
    for pk, purpose, *vote in said.order_by("pk").values_list(*columns):
        if purpose == Purpose.ADJUDICATION:
            decided[pk] = [tuple(vote)]  # the newest one
        else:
            votes[pk].append(tuple(vote))
    yield from (votes | decided).items()


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


# --- preference ------------------------------------------------------------------------------------------------------
def preference(campaign: Campaign, options: Options) -> Iterator[list[Row]]:
    """A line per pair of responses. `label` is the share of votes for `chosen` (a tie counts half for each), `weight` the
    number of votes, `margin` the mean strength towards `chosen`, 0 to 3 (Llama 2's margin). Where somebody improved
    the chosen response, edited > chosen and edited > rejected are pairs of source "edit".
    """
    for page in pages(campaign, options):
        yield [row for item in page.judged.values() for row in _pairs(page, item, options)]


def implicit(campaign: Campaign, options: Options) -> Iterator[list[Row]]:
    """The same with the prompt inside chosen and rejected."""
    for batch in preference(campaign, options):
        yield [_with_prompt_inside(row) for row in batch]


def _with_prompt_inside(row: Row) -> Row:
    whole = {name: row["prompt"] + row[name] for name in ("chosen", "rejected")}
    return whole | {name: value for name, value in row.items() if name not in ("prompt", *whole)}


def _pairs(page: Page, item: Judged, options: Options) -> Iterator[Row]:
    ranked = [(ranks, strength) for _verdict, ranks, strength, _edit in item.votes if ranks]
    for first, second in combinations(sorted(item.texts), 2):
        signed = _signs(ranked, str(first), str(second))
        if not signed:
            continue
        balance = sum(sign for sign, _strength in signed)
        if balance == 0 and options.ties != SOFT:
            continue
        chosen, rejected = (first, second) if balance >= 0 else (second, first)
        strength = sum(sign * (strength or 0) for sign, strength in signed) / len(signed)
        yield {
            **page.base(item),
            "chosen": _assistant(item.texts[chosen]),
            "rejected": _assistant(item.texts[rejected]),
            "label": 0.5 + abs(balance) / (2 * len(signed)),
            "weight": float(len(signed)),
            "margin": max(0.0, strength if balance >= 0 else -strength) if balance else 0.0,
            "source": "votes",
            "chosen_id": chosen,
            "rejected_id": rejected,
        }
    yield from _edited_pairs(page, item)


def _signs(ranked: list[tuple[dict[str, int], int | None]], first: str, second: str) -> list[tuple[int, int | None]]:
    """Of each vote on both: 1 where the first is better, −1 where the second is, 0 for a tie."""
    return [
        ((ranks[first] < ranks[second]) - (ranks[first] > ranks[second]), strength)
        for ranks, strength in ranked
        if first in ranks and second in ranks
    ]


def _edited_pairs(page: Page, item: Judged) -> Iterator[Row]:
    improved = Counter(
        (edit, worse, 0 if is_own else strength or 0)
        for edit, worse, is_own, strength in _improvements(item)
        if edit in page.edits and page.edits[edit] != item.texts[worse]
    )
    for (edit, worse, strength), n in improved.items():
        yield {
            **page.base(item),
            "chosen": _assistant(page.edits[edit]),
            "rejected": _assistant(item.texts[worse]),
            "label": 1.0,
            "weight": float(n),
            "margin": float(strength),
            "source": "edit",
            "chosen_id": edit,
            "rejected_id": worse,
        }


def _improvements(item: Judged) -> Iterator[tuple[int, int, bool, int | None]]:
    """(edit, what it is better than, whether that is what was edited, strength of the preference)."""
    for _verdict, ranks, strength, edit in item.votes:
        if edit and ranks:
            best = min(ranks.values())
            for response, rank in sorted(
                ranks.items(), key=lambda item: (item[1], int(item[0]))
            ):  # jsonb has its own order
                yield edit, int(response), rank == best, strength


# --- edits -----------------------------------------------------------------------------------------------------------
def edits(campaign: Campaign, options: Options) -> Iterator[list[Row]]:
    """Triples edited > chosen > rejected, one per judgment that holds an edit."""
    for page in pages(campaign, options):
        yield [row for item in page.judged.values() for row in _triples(page, item)]


def _triples(page: Page, item: Judged) -> Iterator[Row]:
    for _verdict, ranks, strength, edit in item.votes:
        if edit not in page.edits or len(set(ranks.values())) < 2:
            continue
        best, worst = min(ranks, key=ranks.__getitem__), max(ranks, key=ranks.__getitem__)
        texts = (page.edits[edit], item.texts[int(best)], item.texts[int(worst)])
        names = ("edited", "chosen", "rejected")
        answers = {name: _assistant(text) for name, text in zip(names, texts, strict=True)}
        yield {**page.base(item), **answers, "strength": strength}


# --- unpaired --------------------------------------------------------------------------------------------------------
def unpaired(campaign: Campaign, options: Options) -> Iterator[list[Row]]:
    """A line per response: `label` says whether more votes were for it than against it, `weight` by how many. The best
    of a preference is good and the worst bad, all are bad where both are, and thumbs say it themselves; balanced ones
    are left out.
    """
    for page in pages(campaign, options):
        yield [row for item in page.judged.values() for row in _thumbs(page, item)]


def _thumbs(page: Page, item: Judged) -> Iterator[Row]:
    score: Counter[int] = Counter()
    for verdict, ranks, _strength, edit in item.votes:
        score.update(_signed(verdict, ranks, list(item.texts)))
        if edit in page.edits:
            score[edit] += 1
    texts = page.edits | item.texts
    for response, balance in score.items():
        if balance:
            answer = {"completion": _assistant(texts[response]), "label": balance > 0, "weight": float(abs(balance))}
            yield {**page.base(item), **answer, "response_id": response}


def _signed(verdict: str, ranks: dict[str, int], responses: list[int]) -> dict[int, int]:
    if verdict in (Verdict.GOOD, Verdict.BAD, Verdict.BOTH_BAD):
        return dict.fromkeys(responses, 1 if verdict == Verdict.GOOD else -1)
    best, worst = min(ranks.values(), default=0), max(ranks.values(), default=0)
    signs = {int(response): (rank == best) - (rank == worst) for response, rank in ranks.items()}
    return {response: sign for response, sign in signs.items() if sign}


# --- the list --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Kind:
    """What can be exported. `rows` reads batches; `schema` are the columns in every format."""

    label: str | Promise
    about: str | Promise
    rows: Callable[[Campaign, Options], Iterator[list[Row]]]
    schema: pa.Schema


_ASKED = [("prompt", TURNS), ("prompt_sha256", pa.string()), ("domain", pa.string())]
_PAIR = [("chosen", TURNS), ("rejected", TURNS), ("label", pa.float64()), ("weight", pa.float64())]
_PAIR += [("margin", pa.float64()), ("source", pa.string()), ("chosen_id", pa.int64()), ("rejected_id", pa.int64())]
_TRIPLE = [("edited", TURNS), ("chosen", TURNS), ("rejected", TURNS), ("strength", pa.int64())]
_THUMB = [("completion", TURNS), ("label", pa.bool_()), ("weight", pa.float64()), ("response_id", pa.int64())]

KINDS: dict[str, Kind] = {
    "preference": Kind(
        _("Preference pairs"),
        _("prompt, chosen, rejected, with soft label, weight and margin. For DPO and reward models."),
        preference,
        pa.schema(_ASKED + _PAIR),
    ),
    "implicit": Kind(
        _("Preference pairs, prompt inside"),
        _("chosen and rejected as whole conversations."),
        implicit,
        pa.schema(_PAIR[:2] + _ASKED[1:] + _PAIR[2:]),
    ),
    "unpaired": Kind(
        _("Unpaired preference"),
        _("prompt, completion, and label true or false. For KTO; “both bad” becomes two negatives."),
        unpaired,
        pa.schema(_ASKED + _THUMB),
    ),
    "edits": Kind(
        _("Edited triples"),
        _("edited > chosen > rejected, where somebody improved a response."),
        edits,
        pa.schema(_ASKED + _TRIPLE),
    ),
    "rationales": Kind(
        _("Rationales"),
        _("Judgments with their reasons, tags and criteria."),
        rationales,
        pa.schema(RATIONALE),
    ),
    "judgments": Kind(
        _("All judgments, with provenance"),
        _("Every row as it was recorded: who, when, in which order, under which guidelines; undone ones, too."),
        raw_judgments,
        pa.schema(JUDGED),
    ),
}
