"""Judgments one by one, as they were recorded: who said what, when, of which versions, in which order, and what became
of it. People stand there under a pseudonym, unless a manager asks for names.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from django.db.models import Q, QuerySet
from django.utils.crypto import salted_hmac

from labeling.models import Campaign, Judgment, Response

PAGE = 2000
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TEXTS, _INTEGERS = pa.list_(pa.string()), pa.list_(pa.int64())
_TIME = pa.timestamp("us", tz="UTC")
_SAID = [
    ("judgment", pa.int64()), ("annotator", pa.string()), ("at", _TIME), ("prompt", TURNS), ("prompt_sha256", pa.string()),
    ("domain", pa.string()), ("responses", _TEXTS), ("response_ids", _INTEGERS), ("ranks", _INTEGERS),
    ("verdict", pa.string()), ("strength", pa.int64()), ("rationale", pa.string()), ("tags", _TEXTS),
    ("criteria", pa.string()),
]  # fmt: skip
RATIONALE = _SAID
JUDGED = [
    *_SAID,
    ("versions", _TEXTS), ("comparison", pa.int64()), ("source", pa.string()), ("arm", pa.string()),
    ("propensity", pa.float64()), ("purpose", pa.string()), ("repeat", pa.int64()), ("is_in_force", pa.bool_()),
    ("is_surplus", pa.bool_()), ("supersedes", pa.int64()), ("edit", pa.string()), ("flags", _TEXTS),
    ("skip_reason", pa.string()), ("guidelines_version", pa.int64()), ("shown_ms", pa.int64()), ("attention", pa.string()),
    ("frozen_at", _TIME),
]  # fmt: skip
COLUMNS = (
    "pk", "annotator_id", "annotator__username", "created_at", "comparison__prompt__messages", "comparison__prompt__sha256",
    "comparison__prompt__domain", "order", "ranks", "verdict", "strength", "reason", "tags", "criteria", "comparison_id",
    "comparison__source", "comparison__arm", "comparison__propensity", "purpose", "repeat", "superseded_by", "is_surplus",
    "supersedes_id", "edit__text", "flags", "skip_reason", "guidelines_version", "shown_ms", "attention", "frozen_at",
)  # fmt: skip
Row = dict[str, Any]
LEAVE_OUT, SOFT = "leave_out", "soft"  # what becomes of ties


@dataclass(frozen=True)
class Options:
    """`ties`: LEAVE_OUT or SOFT. `with_names`: user names instead of pseudonyms. `without_warned`: no prompt or
    response that screening warned of.
    """

    ties: str = LEAVE_OUT
    with_names: bool = False
    without_warned: bool = False


def raw_judgments(campaign: Campaign, options: Options) -> Iterator[list[Row]]:
    """Every judgment of a campaign, retractions and what they took back among them, by its number."""
    return _batches(campaign, Judgment.objects.all(), options, [name for name, _type in JUDGED])


def rationales(campaign: Campaign, options: Options) -> Iterator[list[Row]]:
    """Judgments in force that come with a reason, tags or criteria."""
    reasoned = ~Q(reason="") | ~Q(tags=[]) | ~Q(criteria={})
    rows = Judgment.objects.filter(reasoned, superseded_by=None).exclude(verdict=Judgment.Verdict.RETRACTED)
    return _batches(campaign, rows, options, [name for name, _type in RATIONALE])


def _batches(campaign: Campaign, rows: QuerySet[Judgment], options: Options, names: list[str]) -> Iterator[list[Row]]:
    rows = rows.filter(comparison__campaign=campaign).order_by("pk")
    if options.without_warned:
        warned = Response.objects.filter(prompt__campaign=campaign).exclude(warnings=[])
        rows = rows.filter(comparison__prompt__warnings=[]).exclude(comparison__items__response__in=warned)
    last = 0
    while found := list(rows.filter(pk__gt=last).values_list(*COLUMNS)[:PAGE]):
        texts, versions = _responses({response for values in found for response in values[COLUMNS.index("order")]})
        made = (_row(campaign, dict(zip(COLUMNS, values, strict=True)), texts, versions, options) for values in found)
        yield [{name: row[name] for name in names} for row in made]
        last = found[-1][0]


def _responses(ids: set[int]) -> tuple[dict[int, str], dict[int, str]]:
    """Texts, and who wrote them: an adapter's name, or what an import called the author."""
    found = Response.objects.filter(pk__in=ids).values_list("pk", "text", "adapter__name", "generator")
    rows = list(found)
    return {pk: text for pk, text, *_ in rows}, {pk: adapter or generator for pk, _text, adapter, generator in rows}


def _row(campaign: Campaign, row: Row, texts: dict[int, str], versions: dict[int, str], options: Options) -> Row:
    order, ranks = row["order"], row["ranks"]
    name = row["annotator__username"] if options.with_names else pseudonym(campaign, row["annotator_id"])
    return {
        **row,
        "judgment": row["pk"],
        "annotator": name,
        "at": row["created_at"],
        "prompt": row["comparison__prompt__messages"],
        "prompt_sha256": row["comparison__prompt__sha256"],
        "domain": row["comparison__prompt__domain"],
        "responses": [texts.get(pk, "") for pk in order],
        "response_ids": order,
        "versions": [versions.get(pk, "") for pk in order],
        "ranks": [ranks[str(pk)] for pk in order if str(pk) in ranks],
        "rationale": row["reason"],
        # People define criteria: their keys differ by campaign, so they are one text in every format.
        "criteria": json.dumps(row["criteria"], sort_keys=True),
        "attention": json.dumps(row["attention"], sort_keys=True),
        "comparison": row["comparison_id"],
        "source": row["comparison__source"],
        "arm": row["comparison__arm"],
        "propensity": row["comparison__propensity"],
        "is_in_force": row["superseded_by"] is None and row["verdict"] != Judgment.Verdict.RETRACTED,
        "supersedes": row["supersedes_id"],
        "edit": row["edit__text"],
    }


def pseudonym(campaign: Campaign, user_id: int) -> str:
    """The same for one person in one campaign, different in another, and no way back without the site's secret."""
    return salted_hmac("labeling.provenance", f"{campaign.pk}:{user_id}", algorithm="sha256").hexdigest()[:16]
