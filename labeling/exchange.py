"""What comes in from elsewhere, as rows: prompts, responses that other models wrote, and judgments made in other tools.

Lines sent to the API are stored at once (`import_pairs`). A file becomes an Import: the row is the truth, and a worker
goes on from its `position`, in batches, each in one transaction with the position, so that a killed import doubles
nothing. The only writer of Import and ImportProblem.
"""

import itertools
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from celery import current_app
from django.conf import settings
from django.contrib.auth.models import User
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.utils.translation import gettext as _

from labeling import formats, intake, screening
from labeling.errors import Invalid
from labeling.formats import own
from labeling.formats.records import Record, Refusal
from labeling.models import Campaign, Import, ImportProblem

BATCH = 200  # records per transaction: on SQLite nobody who labels meanwhile waits long
MAX_FILE_BYTES = 2 * 1024**3
MAX_PROBLEMS = 10_000  # rows of ImportProblem per import; the counters go on
SECONDS_PER_CALL = 60.0  # then the worker is free for others, and the import is sent again
STALE = timedelta(minutes=2)  # a batch takes a second: who has not been heard of for so long was killed
ABANDONED = timedelta(days=7)  # an upload that nobody started
KEEP, REFUSE = "keep", "refuse"  # what to do with records that screening warns of
State = Import.State
WARNINGS = {
    screening.IDENTITY_LEAK: "A response says which model or vendor wrote it, so whoever judges it is not blind.",
    screening.ERROR_BANNER: "A response is an error message, or breaks off.",
    screening.PRIVATE_DATA: "It holds what is likely to be private: an address, a phone, card or identity number, a key.",
}


# --- lines -----------------------------------------------------------------------------------------------------------
@dataclass
class Report:
    """`added` and `duplicates` count comparisons; `refused` says which lines (from 1) were not taken, and why."""

    lines: int = 0
    added: int = 0
    duplicates: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def import_pairs(campaign: Campaign, lines: Iterable[object]) -> Report:
    """Takes what is right, reports what is not. Sending the same lines again changes nothing.

    A line: {"prompt": text or "messages": turns, "responses": [{"text", "generator"?}, 2 to 4], "domain"?,
    "judgments"?}. Of more than two responses every pair is compared, unless they were ranked together.
    """
    report = Report()
    checked = _checked(lines, report)
    while batch := list(itertools.islice(checked, BATCH)):
        stored = intake.store(campaign, batch)
        report.added += stored.n_new
        report.duplicates += stored.n_old
    return report


def _checked(lines: Iterable[object], report: Report) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        report.lines = number
        try:
            record = own.read_line(line if isinstance(line, dict) else {"": line})
            if len(record.answers) < 2:
                raise Invalid(own.RESPONSES)
            yield record
        except Invalid as error:
            report.refused.append({"line": number, "why": str(error)})


# --- files -----------------------------------------------------------------------------------------------------------
def path(row: Import) -> Path:
    """Where the file lies until the import is over: named by the row, never by what somebody called it."""
    return settings.ARTIFACTS_DIR / "imports" / str(row.pk)


def upload(campaign: Campaign, user: User, client_key: uuid.UUID, file: UploadedFile, now: datetime) -> Import:
    """Keeps a file and finds out its format; nothing is imported until `start`. Sent again with the same key, it is the
    same import. Raises Invalid when the file is too large, or nothing can be read of it.
    """
    earlier = Import.objects.filter(created_by=user, client_key=client_key).first()
    if earlier:
        return earlier
    if (file.size or 0) > MAX_FILE_BYTES:
        raise Invalid(
            _("This file has %(size)s MB; at most %(most)s MB are taken. Split it and upload the parts one by one.")
            % {"size": f"{(file.size or 0) // 2**20:,}", "most": f"{MAX_FILE_BYTES // 2**20:,}"}
        )
    name = Path((file.name or "file").replace("\\", "/")).name.replace("\x00", "")[:200]
    row = Import.objects.create(
        campaign=campaign, created_by=user, client_key=client_key, filename=name, format="", created_at=now
    )
    try:
        _write(path(row), file)
        Import.objects.filter(pk=row.pk).update(format=formats.detect(path(row)))
    except formats.Unreadable as error:
        discard(row)
        raise Invalid(str(error)) from error
    row.refresh_from_db()
    return row


def _write(target: Path, file: UploadedFile) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as copy:
        for chunk in file.chunks():
            copy.write(chunk)


def preview(row: Import, format: str, n: int = 5) -> list[Record | Refusal]:
    """The first records of a file as they would be taken. Raises Invalid when nothing can be read."""
    try:
        return list(itertools.islice(formats.read(path(row), format), n))
    except (formats.Unreadable, OSError) as error:
        raise Invalid(str(error)) from error


def warnings_of(record: Record) -> list[str]:
    """What screening warns of, in sentences."""
    return [WARNINGS[code] for code in intake.warnings(record)]


def start(row: Import, format: str, on_warning: str) -> None:
    """Lets a worker import the file. Raises Invalid when it is no longer waiting to be started."""
    options = {"on_warning": REFUSE if on_warning == REFUSE else KEEP}  # empty until somebody started it
    waiting = Import.objects.filter(pk=row.pk, state=State.WAITING, options={})
    if not waiting.update(format=format, options=options):
        raise Invalid(_("This import was started already."))
    transaction.on_commit(partial(nudge, row.pk), robust=True)


def discard(row: Import) -> None:
    """Forgets an upload that was not started. Raises Invalid when it was."""
    waiting = Import.objects.filter(pk=row.pk, state=State.WAITING, options={})
    if not waiting.delete()[0]:
        raise Invalid(_("This import was started already."))
    path(row).unlink(missing_ok=True)


def nudge(pk: int) -> None:
    """Tells the workers to look at an import. Nothing depends on its arrival: the sweeper sends it again."""
    current_app.send_task("labeling.tasks.run_import", args=[pk], expires=60)


def sweep(now: datetime) -> None:
    """Nudges imports that nobody is at, and forgets uploads that were never started."""
    for pk in _free(now).values_list("pk", flat=True):
        nudge(pk)
    for row in Import.objects.filter(state=State.WAITING, options={}, created_at__lt=now - ABANDONED):
        discard(row)


def _free(now: datetime) -> QuerySet[Import]:
    started = Q(state=State.WAITING) & ~Q(options={})
    left = Q(state=State.RUNNING) & (Q(claimed_at=None) | Q(claimed_at__lt=now - STALE))
    return Import.objects.filter(started | left)


def run(pk: int, now: datetime, seconds: float = SECONDS_PER_CALL) -> bool:
    """Goes on with an import for about `seconds`; True when there is more to do. Another worker's is left alone."""
    if not _free(now).filter(pk=pk).update(state=State.RUNNING, claimed_at=now):
        return False
    row = Import.objects.select_related("campaign").get(pk=pk)
    ends = time.monotonic() + seconds
    try:
        found = formats.read(path(row), row.format, after=row.position)
        while batch := list(itertools.islice(found, BATCH)):
            if not _take(row, batch):
                return False
            if time.monotonic() >= ends:
                return bool(_mine(row).update(claimed_at=None))
    except formats.Unreadable as error:
        return _finish(row, State.FAILED, str(error))
    except OSError as error:
        why = _("The file is gone from this machine (%s). Upload it again; what was imported stays.")
        return _finish(row, State.FAILED, why % error.strerror)
    return _finish(row, State.DONE, "")


def _mine(row: Import) -> QuerySet[Import]:
    """The row, as long as no other worker has taken it over and gone further."""
    return Import.objects.filter(pk=row.pk, state=State.RUNNING, position=row.position)


def _finish(row: Import, state: str, message: str) -> bool:
    now = datetime.now(tz=row.created_at.tzinfo)
    if _mine(row).update(state=state, message=message, finished_at=now, claimed_at=None):
        path(row).unlink(missing_ok=True)
    return False


@transaction.atomic
def _take(row: Import, batch: list[Record | Refusal]) -> bool:
    """Stores a batch together with how far the import is; False, and nothing is stored, when another worker has it."""
    position = batch[-1].number
    if not _mine(row).update(position=position, claimed_at=datetime.now(tz=row.created_at.tzinfo)):
        return False
    records = [item for item in batch if isinstance(item, Record)]
    problems = [_problem(row, item.number, item.why, item.excerpt) for item in batch if isinstance(item, Refusal)]
    warned = {record.number: codes for record in records if (codes := intake.warnings(record))}
    is_strict = row.options.get("on_warning") == REFUSE
    for record in records:
        if why := " ".join(WARNINGS[code] for code in warned.get(record.number, [])):
            excerpt = record.messages[-1]["content"][:100]
            problems.append(_problem(row, record.number, why, excerpt, is_refused=is_strict))
    taken = [record for record in records if not (is_strict and record.number in warned)]
    n_added = sum(intake.store(row.campaign, taken).added) if taken else 0
    Import.objects.filter(pk=row.pk).update(
        n_added=F("n_added") + n_added,
        n_duplicates=F("n_duplicates") + len(taken) - n_added,
        n_refused=F("n_refused") + len(batch) - len(taken),
        n_warnings=F("n_warnings") + (0 if is_strict else len(warned)),
    )
    room = max(0, MAX_PROBLEMS - row.problems.count()) if problems else 0
    ImportProblem.objects.bulk_create(problems[:room])
    row.position = position
    return True


def _problem(row: Import, line: int, why: str, excerpt: str, *, is_refused: bool = True) -> ImportProblem:
    shown = " ".join(excerpt.replace("\x00", "").split())[:200]
    return ImportProblem(of=row, line=line, is_refused=is_refused, why=why, excerpt=shown)
