"""A person's conversations: by day, page by page, and by the words in them.

Words are looked for with the database's own regular expressions: unlike LIKE, SQLite's ignore the case of every letter,
not only of English ones. Each word must occur somewhere, in the title or in a message.
"""

import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import groupby

from django.contrib.auth.models import User
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _

from serving.models import Conversation, Message

PAGE_SIZE = 50
MAX_QUERY_CHARS = 200
MAX_WORDS = 8
AROUND = 60  # characters of a message on each side of what was found

Pieces = list[tuple[str, bool]]  # text, and whether it was looked for


@dataclass
class Listed:
    """A conversation in the list; what was found in it, if something was looked for."""

    conversation: Conversation
    title: Pieces
    excerpt: Pieces = field(default_factory=list)
    message: Message | None = None  # that the excerpt is from


@dataclass
class Page:
    groups: list[tuple[str, list[Listed]]]  # "Today", …
    after: str  # names the next page; empty when there is none
    count: int | None  # of all that was found; None for the plain list


def listed(owner: User, query: str = "", after: str = "", now: datetime | None = None) -> Page:
    """PAGE_SIZE conversations, the latest first, from where the page before ended."""
    words = split(query)
    found = _matching(Conversation.objects.filter(owner=owner), words).order_by("-updated_at", "-pk")
    rows = list(_from(found, after)[: PAGE_SIZE + 1])
    shown, today = rows[:PAGE_SIZE], timezone.localdate(now)
    return Page(
        groups=[(day, list(group)) for day, group in groupby(_described(shown, words), lambda row: _day(row, today))],
        after=_mark(shown[-1]) if len(rows) > PAGE_SIZE else "",
        count=found.count() if words else None,
    )


def split(query: str) -> list[str]:
    """The words that are looked for."""
    return query[:MAX_QUERY_CHARS].replace("\x00", "").split()[:MAX_WORDS]


def _matching(rows: QuerySet[Conversation], words: list[str]) -> QuerySet[Conversation]:
    for word in words:
        said = Message.objects.filter(conversation=OuterRef("pk"), content__iregex=re.escape(word))
        rows = rows.filter(Q(title__iregex=re.escape(word)) | Exists(said))
    return rows


# --- pages ------------------------------------------------------------------------------------------------------------
def _mark(row: Conversation) -> str:
    return f"{row.updated_at.isoformat()}_{row.pk}"


def _from(rows: QuerySet[Conversation], after: str) -> QuerySet[Conversation]:
    """Those behind the mark; all of them when it is none."""
    at, _underscore, pk = after.partition("_")
    try:
        when, last = datetime.fromisoformat(at), uuid.UUID(pk)
    except ValueError:
        return rows
    if timezone.is_naive(when):
        return rows
    return rows.filter(Q(updated_at__lt=when) | Q(updated_at=when, pk__lt=last))


def _day(row: Listed, today: date) -> str:
    day = timezone.localdate(row.conversation.updated_at)
    if day >= today:
        return _("Today")
    if day == today - timedelta(days=1):
        return _("Yesterday")
    if day > today - timedelta(days=7):
        return _("This week")
    if day > today - timedelta(days=30):
        return _("This month")
    return date_format(day, "YEAR_MONTH_FORMAT")


# --- what was found ---------------------------------------------------------------------------------------------------
def _described(rows: list[Conversation], words: list[str]) -> Iterator[Listed]:
    if not words:
        yield from (Listed(row, [(row.title, False)]) for row in rows)
        return
    pattern = re.compile("|".join(map(re.escape, words)), re.IGNORECASE)
    first = _first_said(rows, pattern)
    for row in rows:
        message = first.get(row.pk)
        excerpt = _marked(_around(message.content, pattern), pattern) if message else []
        yield Listed(row, _marked(row.title, pattern), excerpt, message)


def _first_said(rows: Iterable[Conversation], pattern: re.Pattern[str]) -> dict[uuid.UUID, Message]:
    """By conversation: its newest message in which one of the words occurs."""
    said = Message.objects.filter(conversation__in=rows, content__iregex=pattern.pattern).order_by("created_at")
    return {
        message.conversation_id: message for message in said.only("conversation_id", "parent_id", "content", "role")
    }


def _around(text: str, pattern: re.Pattern[str]) -> str:
    """One line: the place of the first hit with a little of what stands around it."""
    line = " ".join(text.split())
    hit = pattern.search(line)
    if hit is None:  # the database folds a letter that this does not
        return line[: 2 * AROUND]
    start, end = max(hit.start() - AROUND, 0), hit.end() + AROUND
    return ("…" if start else "") + line[start:end] + ("…" if end < len(line) else "")


def _marked(text: str, pattern: re.Pattern[str]) -> Pieces:
    # A group makes split() keep what it splits at: every second piece is a hit.
    pieces = re.split(f"({pattern.pattern})", text, flags=re.IGNORECASE)
    return [(piece, i % 2 == 1) for i, piece in enumerate(pieces) if piece]
