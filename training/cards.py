"""A snapshot's card: what is in it, what was left out and why, who made it; for programs (`card.json`) and for people
(`README.md`). No names of annotators.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from django.db.models import Count, F, Q

from labeling import votes
from labeling.models import Campaign, Judgment, Purpose
from training import split
from training.lines import TIE, Line, Lines, Row, is_usable

FORMAT = 2
MIN_MEASURED = 20  # answers, before a flip rate is told
MAX_FLIP_RATE = 0.4  # methods divide by 1 − 2 · rate
Verdict = Judgment.Verdict


@dataclass(frozen=True)
class Measured:
    """How often people said otherwise than what is known (gold), and than they had said before (repeats), ties left out."""

    n_gold: int
    n_wrong: int
    n_repeats: int
    n_changed: int


def measure(campaign: Campaign, collected: votes.Collected) -> Measured:
    """From the votes on gold pairs, and from swapped repeats. Two queries."""
    said = collected.votes
    is_known = collected.is_gold[said.item] & (said.value != 0)
    wrong = np.sign(said.value[is_known]) != said.known[said.item[is_known]]
    repeats = votes.repeats(campaign)
    decided = (repeats.first != 0) & (repeats.again != 0)
    changed = np.sign(repeats.first[decided]) != np.sign(repeats.again[decided])
    return Measured(len(wrong), int(wrong.sum()), len(changed), int(changed.sum()))


def flip_rate(measured: Measured) -> float | None:
    """The share of judgments that say the opposite of what the person would mostly say; None when too little is known.

    A wrong gold answer is a flip. Of two answers that flip independently with probability e, one is changed with
    probability 2e(1 − e), so e = (1 − √(1 − 2 · share changed)) / 2. Both are averaged by how many answers there are.
    """
    n = measured.n_gold + measured.n_repeats
    if n < MIN_MEASURED:
        return None
    share = measured.n_changed / measured.n_repeats if measured.n_repeats else 0.0
    of_repeats = (1 - math.sqrt(max(0.0, 1 - 2 * share))) / 2
    return round(min(MAX_FLIP_RATE, (measured.n_wrong + measured.n_repeats * of_repeats) / n), 3)


def count(rows: Collection[Row], lines: Lines, leaving: Collection[str] = ()) -> dict[str, Any]:
    """The figures of the judgments that could be learned from. `used` plus all of `left_out` is `judgments`: each is
    accounted for exactly once.
    """
    used = lines.used
    left_out = Counter(_why_not(row, leaving) for row in rows if row.pk not in used)
    pairs = lines.pairs
    heldout = _n_heldout(pairs)
    return {
        "judgments": len(rows),
        "used": len(used),
        "left_out": dict(sorted(left_out.items())),
        "pairs": len(pairs),
        "train": len(pairs) - heldout,
        "heldout": heldout,
        "ties": sum(line["label"] == TIE for line in pairs),
        "new": sum(line["is_new"] for line in pairs),
        "unpaired": len(lines.unpaired),
        "desirable": sum(line["desirable"] for line in lines.unpaired),
        "edits": len(lines.edits),
        "decided": sum(row.purpose == Purpose.ADJUDICATION for row in rows),
        "prompts": len({line["prompt_sha256"] for kind in (pairs, lines.unpaired, lines.edits) for line in kind}),
        "annotators": len({row.annotator_id for row in rows if row.pk in used}),
    }


def _why_not(row: Row, leaving: Collection[str]) -> str:
    if row.verdict == Verdict.SKIP:
        return "skip"
    if row.prompt_sha256 in leaving:
        return "near_duplicate"
    if row.verdict in (Verdict.PREFERENCE, Verdict.TIE) and not is_usable(row):
        return "no_pair"
    return "overruled_or_balanced"


def _n_heldout(lines: Iterable[Line]) -> int:
    return sum(split.is_heldout(line["prompt_sha256"]) for line in lines)


def count_not_learned(campaign: Campaign, until: int) -> dict[str, int]:
    """Judgments of the campaign up to this number that no model may learn from, and why. One query."""
    in_force = Q(superseded_by=None) & ~Q(verdict=Verdict.RETRACTED)
    measures = Q(comparison__gold_ranks__isnull=False) | Q(purpose__in=(Purpose.GOLD, Purpose.REPEAT, Purpose.PRACTICE))
    taken_back = Q(superseded_by__verdict=Verdict.RETRACTED)
    return Judgment.objects.filter(comparison__campaign=campaign, pk__lte=until).aggregate(
        undone=Count("pk", filter=taken_back & Q(superseded_by__retraction=None)),
        retracted=Count("pk", filter=taken_back & Q(superseded_by__retraction__isnull=False)),
        revised=Count("pk", filter=Q(superseded_by__isnull=False) & ~taken_back),
        measures_people=Count("pk", filter=in_force & measures),
        too_late=Count("pk", filter=in_force & ~measures & Q(is_surplus=True)),
    )


def describe(
    campaign: Campaign, rows: Collection[Row], lines: Lines, counts: Mapping[str, Any], measured: Measured
) -> dict[str, Any]:
    """All of card.json but the files and their hash. Two queries."""
    until = max((row.pk for row in rows), default=0)
    chat = sum(row.purpose == Purpose.CHAT for row in rows)
    return {
        "format": FORMAT,
        "campaign": campaign.slug,
        "counts": counts,
        "filter": {
            "in_force": True,
            "purposes": ["label", "import", "chat", "adjudication"],
            "gold": False,
            "too_late": False,
            "until_judgment": until,
        },
        "not_learned": count_not_learned(campaign, until),
        "guidelines": _tally(row.guidelines_version or 0 for row in rows),
        "made": {"from": _moment(rows, min), "to": _moment(rows, max)},
        "prompts_from": _tally(_sources(campaign, lines)),
        "responses_by": _tally(_versions(lines)),
        "split": split.describe(),
        "measured": asdict(measured),
        "flip_rate": flip_rate(measured),
        "consent": {"chat_judgments": chat, "rule": "stored only while its author agreed that it is learned from"},
        "licence": "of the prompts and responses: that of the sources named here; Alignapp does not know it",
    }


def _tally(values: Iterable[Any]) -> dict[str, int]:
    return {str(value): n for value, n in sorted(Counter(values).items(), key=lambda item: str(item[0]))}


def _moment(rows: Collection[Row], pick: Any) -> str | None:
    return pick(row.created_at for row in rows).isoformat() if rows else None


def _sources(campaign: Campaign, lines: Lines) -> Iterable[str]:
    """Where each prompt with a line comes from."""
    known = dict(campaign.prompts.values_list("sha256", F("source")))
    asked = {line["prompt_sha256"] for kind in (lines.pairs, lines.unpaired, lines.edits) for line in kind}
    return [known.get(sha256) or "unknown" for sha256 in asked]


def _versions(lines: Lines) -> Iterable[str]:
    """Who wrote each response of a line."""
    written = {line[f"{side}_id"]: line[f"{side}_version"] for line in lines.pairs for side in ("chosen", "rejected")}
    written |= {line["response_id"]: line["response_version"] for line in lines.unpaired}
    return [version or "unknown" for version in written.values()]


# --- for people ------------------------------------------------------------------------------------------------------
WHY_LEFT_OUT = {
    "skip": "skipped: nothing was said",
    "near_duplicate": "the prompt is a near-duplicate of an earlier one on the other side of the split",
    "no_pair": "only one response was ranked",
    "overruled_or_balanced": "a reviewer decided otherwise, or as many called the response good as bad",
    "undone": "undone by their author",
    "retracted": "retracted, with a reason that is recorded",
    "revised": "replaced by a later judgment of the same person",
    "measures_people": "on pairs that measure people: known answers, practice, repeats",
    "too_late": "came after the place had been given to somebody else",
}
README = """# Judgments of the campaign “{campaign}”

{pairs} pairs of responses ({train} to train on, {heldout} held out), {unpaired} single responses that were called good or
bad, and {edits} that people improved; from {used} judgments of {annotators} people on {prompts} prompts, made from
{since} to {to}. Frozen by Alignapp; sha256 `{sha256}`. The files never change. What is retracted later stays in them,
and the snapshot's page says how many judgments that is.

## Files

| file | lines | sha256 |
|---|---|---|
{files}

One JSON object a line. `label` is the probability that `chosen` is better and `weight` the number of votes that is worth,
by those who can be believed; `margin` the mean strength (1 slightly, 2 better, 3 much); `tie_share` and `agreement` are
shares of the votes. `judgments` are the ids of the rows, `annotators` the people behind them in the same order, numbered
within the campaign; `…_version` says which model version or outside author wrote a response.

## Left out, and why

Of {judgments} judgments that a model may learn from:

{left_out}

Never learned from:

{not_learned}

## Split

A prompt is held out by its hash alone, so it never changes sides ({share:.0%} are). Where a prompt is nearly the same as one
on the other side that was judged before (Jaccard similarity of {shingle} shingles at least {jaccard}), it is left out.

## People

Guidelines, by version: {guidelines}. Chance that a judgment says the opposite of what is meant: {flip_rate}, by {n_gold}
answers to known pairs and {n_repeats} repeated ones.

## Where the texts come from, consent and licence

Prompts: {prompts_from}. Responses: {responses_by}. {chat} of the judgments were made in chat, each stored only while its
author agreed that it is learned from. The licence of prompts and responses is that of their sources; it is not known to
Alignapp, so check it before you pass this on.
"""


def to_markdown(card: Mapping[str, Any], n_lines: Mapping[str, int]) -> str:
    """README.md, from the finished card and the number of lines per file."""
    near = card["split"]["near_duplicates"]
    files = [f"| `{name}` | {n_lines[name]:,} | `{sha256}` |" for name, sha256 in card["files"].items()]
    rate = card["flip_rate"]
    return README.format(
        **card["counts"]
        | {
            "campaign": card["campaign"],
            "sha256": card["sha256"],
            "since": card["made"]["from"],
            "to": card["made"]["to"],
            "files": "\n".join(files),
            "left_out": _listed(card["counts"]["left_out"]),
            "not_learned": _listed(card["not_learned"]),
            "share": card["split"]["heldout_share"],
            "shingle": near["shingle"],
            "jaccard": near["jaccard"],
            "guidelines": _in_words(card["guidelines"]),
            "flip_rate": "not known yet" if rate is None else f"{rate:.1%}",
            "n_gold": card["measured"]["n_gold"],
            "n_repeats": card["measured"]["n_repeats"],
            "prompts_from": _in_words(card["prompts_from"]),
            "responses_by": _in_words(card["responses_by"]),
            "chat": card["consent"]["chat_judgments"],
        }
    )


def _listed(counts: Mapping[str, int]) -> str:
    return "\n".join(f"- {n:,}: {WHY_LEFT_OUT[why]}" for why, n in counts.items() if n) or "- none"


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({n:,})" for name, n in counts.items()) or "none"
