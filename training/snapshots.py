"""Freeze judgments into immutable files that are named by their content.

A snapshot is a folder `SNAPSHOTS_DIR/<sha256>` of `train.jsonl`, `heldout.jsonl` and `card.json`; its sha256 is that of
the two files' hexadecimal sha256s in this order. Equal judgments give equal bytes and therefore the same snapshot.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import judgments, votes
from labeling.models import Campaign, Comparison, Judgment, Purpose, Response
from serving.models import Adapter
from training.ml.files import fsync_folder
from training.models import Run, Snapshot

SPLIT_SALT = "alignapp held-out split 1"
HELDOUT_SHARE = 0.2
MIN_TRAIN_PAIRS = 4
CARD_FORMAT = 1
FREEZE_TRIES = 3
TIE = 0.5
LABEL_DIGITS = 6  # what a fit on another machine would agree on


class NothingToTrain(ValueError):
    """Too few usable pairs; the message says how many there are and how many are wanted."""


class _Changed(Exception):
    """A judgment was undone between reading and freezing it."""


@dataclass
class Pair:
    """Two responses to one prompt and every vote on them, `first` being the one with the smaller id."""

    first: int
    second: int
    prompt_sha256: str
    messages: list[dict[str, str]]
    votes: list[float] = field(default_factory=list)  # 1 = first is better, 0 = second is better, or TIE
    strengths: list[int] = field(default_factory=list)  # signed: positive where first is better
    judgments: list[int] = field(default_factory=list)


def freeze(campaign: Campaign, incumbent: Adapter | None = None) -> Snapshot:
    """All judgments in force of one campaign, as a snapshot; an identical one is found instead of made again.

    `incumbent` decides `is_new`: a pair is new when one of its judgments is not in the snapshot that the incumbent was
    trained on; without an incumbent, or with the base, every pair is new. Raises NothingToTrain.
    """
    for _attempt in range(FREEZE_TRIES):
        with suppress(_Changed):
            return _freeze_once(campaign, incumbent)
    with transaction.atomic():  # people undo faster than this reads: now they wait
        _lock(campaign)
        return _freeze_once(campaign, incumbent)


def waiting(campaign: Campaign, *, since: datetime | None = None) -> int:
    """How many judgments in force, skips left out, the newest successful run has not seen; made after `since`."""
    learned = (
        Run.objects.filter(campaign=campaign, status=Run.Status.SUCCEEDED, snapshot__isnull=False)
        .order_by("-id")
        .values_list("snapshot_id", flat=True)
        .first()
    )
    rows = _learnable(campaign).exclude(verdict=Judgment.Verdict.SKIP)
    if since is not None:
        rows = rows.filter(created_at__gt=since)
    return rows.exclude(snapshots=learned).count() if learned else rows.count()


def is_heldout(prompt_sha256: str) -> bool:
    """Whether a prompt's pairs are held out: a fixed function of the prompt, so that no pair ever changes sides."""
    digest = hashlib.sha256(f"{SPLIT_SALT}:{prompt_sha256}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELDOUT_SHARE * 2**64


def derive_pairs(rows: Iterable[Judgment]) -> list[Pair]:
    """Every pair of ranked responses of every judgment, votes on the same two responses put together."""
    rows = list(rows)
    decided = {row.comparison_id: _best(row) for row in rows if row.purpose == Purpose.ADJUDICATION}
    pairs: dict[tuple[int, int], Pair] = {}
    for row in rows:
        prompt = row.comparison.prompt
        ranks = _with_edit(row, decided.get(row.comparison_id))
        for first, second in combinations(sorted(ranks), 2):
            pair = pairs.setdefault((first, second), Pair(first, second, prompt.sha256, prompt.messages))
            _vote(pair, row, ranks)
    return [pairs[key] for key in sorted(pairs)]


def _best(row: Judgment) -> set[int]:
    return {int(response) for response, rank in row.ranks.items() if rank == min(row.ranks.values())}


def _with_edit(row: Judgment, decided: set[int] | None) -> dict[int, int]:
    """Response id → rank; a response improved by hand comes before the one that it was made of: edited > chosen >
    rejected, as in Llama 3 (2407.21783, section 4.2.1). Not where a reviewer decided for another response.
    """
    ranks = {int(response): rank for response, rank in row.ranks.items()}
    is_overruled = decided is not None and not _best(row) <= decided
    return ranks if row.edit_id is None or is_overruled else {**ranks, row.edit_id: 0}


def _vote(pair: Pair, row: Judgment, ranks: dict[int, int]) -> None:
    """The strength that was given is of the responses shown, not of an edit."""
    first, second = ranks[pair.first], ranks[pair.second]
    sign = (first < second) - (first > second)
    is_shown = row.edit_id not in (pair.first, pair.second)
    pair.votes.append((sign + 1) / 2)
    pair.strengths.append(sign * (row.strength or 0) if is_shown else 0)
    pair.judgments.append(row.pk)


def is_usable(row: Judgment) -> bool:
    """Whether a judgment says anything about a pair."""
    return row.verdict in (Judgment.Verdict.PREFERENCE, Judgment.Verdict.TIE) and len(row.ranks) > 1


def to_line(
    pair: Pair, texts: dict[int, str], old: Collection[int], soft: tuple[float, float] | None = None
) -> dict[str, Any]:
    """One line of train.jsonl or heldout.jsonl.

    `soft` is (P(first is better), weight) by those who can be believed, from `labeling.votes.soft_labels`. Without it
    `label` is the share of votes for `chosen` (a tie counts half for each side), `weight` the number of votes: a soft
    label with that weight has the loss of its votes one by one. `margin` is the mean strength towards `chosen`. What
    everybody calls a tie is one, whichever side they lean to: the gate must not ask which response is better.
    """
    share, weight = sum(pair.votes) / len(pair.votes), float(len(pair.votes))  # share of first
    if soft:
        share, weight = (round(value, LABEL_DIGITS) for value in soft)
    if set(pair.votes) == {TIE}:
        share = TIE
    chosen, rejected = (pair.first, pair.second) if share >= 0.5 else (pair.second, pair.first)
    strength = sum(pair.strengths) / len(pair.strengths)
    margin = max(strength if share >= 0.5 else -strength, 0.0) if share != TIE else 0.0
    return {
        "pair": f"{pair.first}-{pair.second}",
        "prompt_sha256": pair.prompt_sha256,
        "messages": pair.messages,
        "chosen": texts[chosen],
        "rejected": texts[rejected],
        "chosen_id": chosen,
        "rejected_id": rejected,
        "label": share if share >= 0.5 else 1 - share,
        "weight": weight,
        "margin": margin,
        "judgments": pair.judgments,
        "is_new": any(pk not in old for pk in pair.judgments),
    }


def count(rows: list[Judgment], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The card's figures. `used` plus all of `left_out` is `judgments`: each is accounted for exactly once."""
    left_out = Counter(
        row.verdict if row.verdict in (Judgment.Verdict.SKIP, Judgment.Verdict.BOTH_BAD) else "no_pair"
        for row in rows
        if not is_usable(row)
    )
    heldout = [line for line in lines if is_heldout(line["prompt_sha256"])]
    return {
        "judgments": len(rows),
        "used": len(rows) - left_out.total(),
        "left_out": dict(sorted(left_out.items())),
        "pairs": len(lines),
        "train": len(lines) - len(heldout),
        "heldout": len(heldout),
        "ties": sum(line["label"] == TIE for line in lines),
        "new": sum(line["is_new"] for line in lines),
        "edits": sum(row.edit_id is not None for row in rows),
        "decided": sum(row.purpose == Purpose.ADJUDICATION for row in rows),
        "prompts": len({line["prompt_sha256"] for line in lines}),
        "annotators": len({row.annotator_id for row in rows if is_usable(row)}),
    }


def _learnable(campaign: Campaign) -> QuerySet[Judgment]:
    return judgments.learnable().filter(comparison__campaign=campaign)


def _judged(campaign: Campaign) -> QuerySet[Comparison]:
    return Comparison.objects.filter(campaign=campaign, judgments__isnull=False)


def _freeze_once(campaign: Campaign, incumbent: Adapter | None) -> Snapshot:
    rows = list(_learnable(campaign).select_related("comparison__prompt").order_by("id"))
    usable = [row for row in rows if is_usable(row)]
    of_judged = Q(items__comparison__in=_judged(campaign)) | Q(edited_in__comparison__in=_judged(campaign))
    texts = dict(Response.objects.filter(of_judged).values_list("id", "text").distinct())
    old = _judgments_behind(campaign, incumbent)
    # Not by what came since: labels must follow from the judgments that the snapshot holds.
    soft = votes.soft_labels(campaign, until=rows[-1].pk if rows else 0)
    pairs = derive_pairs(usable)
    lines = [to_line(pair, texts, old, soft.get((pair.first, pair.second))) for pair in pairs]
    counts = count(rows, lines)
    _check_enough(lines)
    sha256 = _write(lines, {"format": CARD_FORMAT, "campaign": campaign.slug, "counts": counts})
    return _record(campaign, sha256, counts, [row.pk for row in rows])


def _judgments_behind(campaign: Campaign, incumbent: Adapter | None) -> set[int]:
    """Ids of the judgments that the incumbent has learned from, when a run of this campaign made it."""
    if incumbent is None or incumbent.is_base:
        return set()
    run = incumbent.runs.filter(campaign=campaign, snapshot__isnull=False).order_by("-id").first()
    return set(run.snapshot.judgments.values_list("id", flat=True)) if run and run.snapshot else set()


def _check_enough(lines: list[dict[str, Any]]) -> None:
    usable = sum(line["label"] != TIE and not is_heldout(line["prompt_sha256"]) for line in lines)
    if usable < MIN_TRAIN_PAIRS:
        heldout = sum(is_heldout(line["prompt_sha256"]) for line in lines)
        raise NothingToTrain(
            _(
                "There are %(usable)d usable pairs to train on (%(heldout)d more are held out for the gate; ties, skips "
                "and both-bad teach nothing); label at least %(missing)d more, of other prompts too."
            )
            % {"usable": usable, "heldout": heldout, "missing": MIN_TRAIN_PAIRS - usable}
        )


def _write(lines: list[dict[str, Any]], card: dict[str, Any]) -> str:
    """Writes the folder under a temporary name, syncs it and renames it to its hash, which is returned."""
    settings.SNAPSHOTS_DIR.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=settings.SNAPSHOTS_DIR))
    try:
        train = _write_jsonl(folder / "train.jsonl", (x for x in lines if not is_heldout(x["prompt_sha256"])))
        heldout = _write_jsonl(folder / "heldout.jsonl", (x for x in lines if is_heldout(x["prompt_sha256"])))
        sha256 = hashlib.sha256(f"{train}{heldout}".encode()).hexdigest()
        split = {"salt": SPLIT_SALT, "heldout_share": HELDOUT_SHARE}
        files = {"train.jsonl": train, "heldout.jsonl": heldout}
        _write_jsonl(folder / "card.json", [{**card, "sha256": sha256, "files": files, "split": split}])
        fsync_folder(folder)
        folder.chmod(0o755)
        if not (settings.SNAPSHOTS_DIR / sha256).exists():
            folder.rename(settings.SNAPSHOTS_DIR / sha256)
            fsync_folder(settings.SNAPSHOTS_DIR)
        return sha256
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Writes canonical JSON lines, synced to disk; returns the file's sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for line in _encode(rows):
            file.write(line)
            digest.update(line)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _encode(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for row in rows:
        # ASCII only: a response may hold lone surrogates, which UTF-8 cannot carry, and line separators.
        yield json.dumps(row, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


def _lock(campaign: Campaign) -> None:
    """Until the transaction ends nobody undoes a judgment. (SQLite's transactions are immediate: they lock all.)"""
    list(_learnable(campaign).select_for_update(of=("self",)).values_list("id"))


@transaction.atomic
def _record(campaign: Campaign, sha256: str, counts: dict[str, Any], ids: list[int]) -> Snapshot:
    """The row and its judgments, which cannot be undone from here on. Raises _Changed when one was meanwhile.

    Skips and both-bad are linked too, though no line holds them: an existing row may thus gain such judgments.
    """
    # Locked first and asked anew after: an undo that was under way is over by then, and a later one sees `frozen_at`.
    _lock(campaign)
    if not set(_learnable(campaign).values_list("id", flat=True)).issuperset(ids):
        raise _Changed
    snapshot, is_made = Snapshot.objects.get_or_create(campaign=campaign, sha256=sha256, defaults={"counts": counts})
    through = Snapshot.judgments.through
    held = set() if is_made else set(snapshot.judgments.values_list("id", flat=True))
    links = [through(snapshot_id=snapshot.pk, judgment_id=pk) for pk in ids if pk not in held]
    through.objects.bulk_create(links, batch_size=5000)
    Judgment.objects.filter(snapshots=snapshot, frozen_at__isnull=True).update(frozen_at=timezone.now())
    return snapshot
