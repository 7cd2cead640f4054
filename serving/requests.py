"""The request log: one row for each answer that a version was asked for, whoever asked. The only writer of ServedRequest.

It holds who asked whom, how long it took and how it ended, and nothing of what was said.
"""

import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Count, F, Q, Sum
from django.utils import timezone

from serving.client import EngineDown, EngineError, EngineSlow, Usage
from serving.models import Adapter, ApiKey, Deployment, Message, ServedRequest

Outcome = ServedRequest.Outcome

MAX_ERROR_CHARS = 500
PURGED_AT_ONCE = 5_000
OF_REQUESTS = (400, 413, 415, 422)  # an engine's refusals that the request is to blame for
SANE_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
CLIENT_CLOSED_REQUEST = 499  # nginx's code for a reader who left; no answer carries it


@dataclass
class Served:
    """One request, from its admission to its end. Until something else is known, its reader left."""

    endpoint: str
    adapter: Adapter
    alias: str = ""
    is_canary: bool = False
    person_id: int | None = None
    key_id: int | None = None
    request_id: str = field(default_factory=lambda: new_id())
    at: datetime = field(default_factory=timezone.now)
    started: float = field(default_factory=time.monotonic)
    engine: str = ""
    is_asked: bool = False  # an engine, for it
    first_token: float | None = None  # monotonic seconds
    usage: Usage | None = None
    outcome: str = Outcome.CANCELLED
    status: int = CLIENT_CLOSED_REQUEST
    error: str = ""

    @property
    def caller(self) -> str:
        """Who asks, in a word that says nothing to others: one person, whatever the number of keys."""
        return f"person-{self.person_id}" if self.person_id else f"key-{self.key_id}" if self.key_id else ""

    def note_token(self) -> None:
        if self.first_token is None:
            self.first_token = time.monotonic()

    def note_done(self) -> None:
        self.outcome, self.status = Outcome.DONE, 200

    def note_failure(self, failure: EngineDown | EngineError) -> None:
        """The request was at fault when the engine says so, else the engine was."""
        self.status, self.error = status_of(failure), str(failure)[:MAX_ERROR_CHARS]
        self.outcome = Outcome.REFUSED if self.status in OF_REQUESTS else Outcome.FAILED


def new_id() -> str:
    return f"req_{uuid.uuid4().hex}"


def status_of(failure: EngineDown | EngineError) -> int:
    """The HTTP status that tells a program of it. That an engine lost the version, has no place for it, or has too much to do
    is 503 as well: it will be otherwise in a moment.
    """
    if isinstance(failure, EngineError):
        is_passing = failure.is_full or failure.status in (404, 429)
        return failure.status if failure.status in OF_REQUESTS else 503 if is_passing else 502
    return 504 if isinstance(failure, EngineSlow) else 503


def of_page(answer: Message, adapter: Adapter) -> Served:
    """The request behind an answer of a conversation. Its alias is the one that stands for the version by now."""
    moved = Deployment.objects.filter(Q(adapter=adapter) | Q(canary=adapter)).order_by("pk").first()
    return Served(
        endpoint="page",
        adapter=adapter,
        alias=moved.alias if moved else "",
        is_canary=moved is not None and moved.canary_id == adapter.pk,
        person_id=answer.conversation.owner_id,
        request_id=str(answer.pk),
    )


def record(served: Served, now: float | None = None) -> ServedRequest:
    """The row of a request that has ended at `now` (monotonic seconds; None: just now)."""
    now = time.monotonic() if now is None else now
    usage = served.usage or Usage(0, 0)
    return ServedRequest.objects.create(
        request_id=served.request_id,
        at=served.at,
        endpoint=served.endpoint,
        alias=served.alias,
        adapter=served.adapter,
        is_canary=served.is_canary,
        engine=served.engine[:200],
        person_id=served.person_id,
        key_id=served.key_id,
        outcome=served.outcome,
        status=served.status,
        error=served.error.replace("\x00", ""),
        seconds=now - served.started,
        seconds_to_first_token=None if served.first_token is None else served.first_token - served.started,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


@dataclass(frozen=True)
class Use:
    n_requests: int = 0
    n_tokens: int = 0


def used_today(keys: Iterable[ApiKey], now: datetime) -> dict[int, Use]:
    """What each key asked of models since midnight, by its id."""
    midnight = timezone.localtime(now).replace(hour=0, minute=0, second=0, microsecond=0)
    ids = [key.pk for key in keys]
    rows = ServedRequest.objects.filter(key__in=ids, at__gte=midnight).order_by().values("key")
    counted = rows.annotate(n=Count("pk"), tokens=Sum(F("prompt_tokens") + F("completion_tokens")))
    return dict.fromkeys(ids, Use()) | {row["key"]: Use(row["n"], row["tokens"]) for row in counted}


def purge(now: datetime) -> int:
    """Removes rows older than REQUEST_LOG_DAYS, so many at a time that nobody waits for it. Returns how many."""
    old = ServedRequest.objects.filter(at__lt=now - timedelta(days=settings.REQUEST_LOG_DAYS))
    # Looked for first: a DELETE that finds nothing would still take SQLite's write lock.
    found = list(old.order_by("at").values_list("pk", flat=True)[:PURGED_AT_ONCE])
    return ServedRequest.objects.filter(pk__in=found).delete()[0] if found else 0
