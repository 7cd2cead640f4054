"""Freeze judgments into immutable files that are named by their content.

A snapshot is a folder `SNAPSHOTS_DIR/<sha256>`: pairs in `train.jsonl` and `heldout.jsonl`, single responses in
`unpaired.jsonl` and `unpaired.heldout.jsonl`, what people improved in `edits.jsonl` and `edits.heldout.jsonl`; `card.json`
and `README.md` say what that is. The sha256 is that of the six files' hexadecimal sha256s in this order and of the flip
rate, which methods read from the card. Equal judgments give equal bytes and therefore the same snapshot.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Min, Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from labeling import judgments, votes
from labeling.models import Campaign, Comparison, ComparisonItem, Judgment, Response
from serving.models import Adapter
from training import cards, catalog, lines, split
from training.lines import Line, Lines, Row, Sources, Written
from training.ml.files import fsync_folder
from training.models import Run, Snapshot
from training.split import is_heldout

FREEZE_TRIES = 3
CHUNK = 5_000


class NothingToTrain(ValueError):
    """Too few usable lines; the message says how many there are and how many are wanted."""


class _Changed(Exception):
    """A judgment was undone between reading and freezing it."""


def freeze(campaign: Campaign, incumbent: Adapter | None = None, source: str = "pairs") -> Snapshot:
    """All judgments in force of one campaign, as a snapshot; an identical one is found instead of made again.

    `incumbent` decides `is_new`: a line is new when one of its judgments is not in the snapshot that the incumbent was
    trained on; without an incumbent, or with the base, every line is new. `source` is what the method reads (of
    `training.catalog`). Raises NothingToTrain when there is too little of that.
    """
    for _attempt in range(FREEZE_TRIES):
        with suppress(_Changed):
            return _freeze_once(campaign, incumbent, source)
    with transaction.atomic():  # people undo faster than this reads: now they wait
        _lock(campaign)
        return _freeze_once(campaign, incumbent, source)


def preview(campaign: Campaign, incumbent: Adapter | None = None) -> tuple[Lines, dict[str, Any]]:
    """What a snapshot of now would hold, and its counts. Nothing is written."""
    rows = _rows(campaign)
    collected = votes.collect(campaign, until=rows[-1].pk if rows else 0)
    leaving = split.find_leaving(campaign)
    made = lines.make(rows, _sources(campaign, incumbent, votes.labels_of(collected)), leaving)
    return made, cards.count(rows, made, leaving)


def waiting(campaign: Campaign, *, method: str = "dpo", since: datetime | None = None) -> int:
    """How many judgments in force, skips left out, the newest successful run of what `method` makes (a version, or a reward
    model) has not seen; made after `since`.
    """
    learned = (
        Run.objects.filter(campaign=campaign, status=Run.Status.SUCCEEDED, snapshot__isnull=False)
        .exclude(method__in=catalog.others(method))
        .order_by("-id")
        .values_list("snapshot_id", flat=True)
        .first()
    )
    rows = _learnable(campaign).exclude(verdict=Judgment.Verdict.SKIP)
    if since is not None:
        rows = rows.filter(created_at__gt=since)
    return rows.exclude(snapshots=learned).count() if learned else rows.count()


def _learnable(campaign: Campaign) -> QuerySet[Judgment]:
    return judgments.learnable().filter(comparison__campaign=campaign)


def _freeze_once(campaign: Campaign, incumbent: Adapter | None, source: str) -> Snapshot:
    rows = _rows(campaign)
    # Not by what came since: labels must follow from the judgments that the snapshot holds.
    collected = votes.collect(campaign, until=rows[-1].pk if rows else 0)
    leaving = split.find_leaving(campaign)
    made = lines.make(rows, _sources(campaign, incumbent, votes.labels_of(collected)), leaving)
    counts = cards.count(rows, made, leaving)
    _check_enough(made, source)
    card = cards.describe(campaign, rows, made, counts, cards.measure(campaign, collected))
    sha256 = _write(made, card)
    return _record(campaign, sha256, counts, [row.pk for row in rows])


def _rows(campaign: Campaign) -> list[Row]:
    """The judgments by id, with their prompts, each of which is read once however many were said on it. Two queries."""
    prompts = {pk: (sha256, turns) for pk, sha256, turns in campaign.prompts.values_list("pk", "sha256", "messages")}
    columns = [name for name in Row._fields if name not in ("prompt_sha256", "messages")]
    found = _learnable(campaign).order_by("pk").values_list("comparison__prompt", *columns)
    return [Row._make((*said, *prompts[prompt])) for prompt, *said in found.iterator(CHUNK)]


def _sources(
    campaign: Campaign, incumbent: Adapter | None, soft: Mapping[tuple[int, int], tuple[float, float]]
) -> Sources:
    judged = Comparison.objects.filter(campaign=campaign, judgments__isnull=False).values("pk")
    shown = ComparisonItem.objects.filter(comparison__in=judged).values("response")
    edits = Judgment.objects.filter(comparison__campaign=campaign, edit__isnull=False).values("edit")
    columns = ("pk", "text", "adapter__name", "generator", "source", "edited_from")
    found = Response.objects.filter(Q(pk__in=shown) | Q(pk__in=edits)).values_list(*columns)
    responses = {
        pk: Written(text, adapter or generator or ("edit" if source == "edit" else ""), edited_from)
        for pk, text, adapter, generator, source, edited_from in found
    }
    return Sources(responses, _opaque_names(campaign), _judgments_behind(campaign, incumbent), soft)


def _opaque_names(campaign: Campaign) -> dict[int, str]:
    """User id → a1, a2, … by each one's first judgment in the campaign: the same however the data grow, and no name."""
    said = Judgment.objects.filter(comparison__campaign=campaign).values("annotator").annotate(first=Min("pk"))
    people = said.order_by("first").values_list("annotator", flat=True)
    return {pk: f"a{number}" for number, pk in enumerate(people, 1)}


def _judgments_behind(campaign: Campaign, incumbent: Adapter | None) -> set[int]:
    """Ids of the judgments that the incumbent has learned from, when a run of this campaign made it."""
    if incumbent is None or incumbent.is_base:
        return set()
    run = incumbent.runs.filter(campaign=campaign, snapshot__isnull=False).order_by("-id").first()
    return set(run.snapshot.judgments.values_list("id", flat=True)) if run and run.snapshot else set()


def _check_enough(made: Lines, source: str) -> None:
    every = [*made.pairs, *made.unpaired, *made.edits]
    heldout = [line for line in every if is_heldout(line["prompt_sha256"])]
    n_heldout = lines.count_usable(heldout, source)
    usable = lines.count_usable(every, source) - n_heldout
    if usable < lines.MIN_LINES:
        raise NothingToTrain(
            _(
                "There are %(usable)d usable pairs to train on (%(heldout)d more are held out for the gate; what is "
                "skipped teaches nothing, and ties and single responses only teach the methods that read them); label at "
                "least %(missing)d more, of other prompts too."
            )
            % {"usable": usable, "heldout": n_heldout, "missing": lines.MIN_LINES - usable}
        )


def _write(made: Lines, card: dict[str, Any]) -> str:
    """Writes the folder under a temporary name, syncs it and renames it to its hash, which is returned."""
    settings.SNAPSHOTS_DIR.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=settings.SNAPSHOTS_DIR))
    try:
        parts = _parts(made)
        files = {name: _write_jsonl(folder / name, part) for name, part in parts.items()}
        card = {**card, "sha256": _digest(files, card["flip_rate"]), "files": files}
        _write_jsonl(folder / "card.json", [card])
        readme = cards.to_markdown(card, {name: len(part) for name, part in parts.items()})
        _write_bytes(folder / "README.md", [readme.encode()])
        return _publish(folder, card["sha256"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parts(made: Lines) -> dict[str, list[Line]]:
    """File → its lines, in the order in which their sha256s are hashed."""
    kinds = (("train", "heldout", made.pairs), ("unpaired", "unpaired.heldout", made.unpaired))
    parts: dict[str, list[Line]] = {}
    for train, heldout, every in (*kinds, ("edits", "edits.heldout", made.edits)):
        sides: tuple[list[Line], list[Line]] = ([], [])
        for line in every:
            sides[is_heldout(line["prompt_sha256"])].append(line)
        parts[f"{train}.jsonl"], parts[f"{heldout}.jsonl"] = sides
    return parts


def _digest(files: Mapping[str, str], flip_rate: float | None) -> str:
    return hashlib.sha256(f"{''.join(files.values())}{json.dumps(flip_rate)}".encode()).hexdigest()


def _publish(folder: Path, sha256: str) -> str:
    fsync_folder(folder)
    folder.chmod(0o755)
    if not (settings.SNAPSHOTS_DIR / sha256).exists():
        folder.rename(settings.SNAPSHOTS_DIR / sha256)
        fsync_folder(settings.SNAPSHOTS_DIR)
    return sha256


def _write_jsonl(path: Path, rows: Iterable[Line]) -> str:
    """Writes canonical JSON lines, synced to disk; returns the file's sha256."""
    return _write_bytes(path, _encode(rows))


def _write_bytes(path: Path, parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
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

    What no line holds (skips, say) is linked too: an existing row may thus gain such judgments, and counts them.
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
    if links and not is_made:
        Snapshot.objects.filter(pk=snapshot.pk).update(counts=counts)
        snapshot.counts = counts
    Judgment.objects.filter(snapshots=snapshot, frozen_at__isnull=True).update(frozen_at=timezone.now())
    return snapshot
