"""Requests that may be sent twice and act once: those that carry an Idempotency-Key. The only writer of their rows.

A key belongs to one person and is forgotten after a day. A request that fails leaves none, so that it can be sent
again; one whose process died is forgotten after a minute.
"""

import hashlib
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db.models import Q
from django.utils.translation import gettext as _

from serving.models import IdempotentRequest

KEPT = timedelta(days=1)
IN_HAND = timedelta(minutes=1)
MAX_KEY = 80


class Conflict(Exception):
    """The key was used for something else, or its first request is not answered yet."""


def fingerprint(method: str, path: str, body: bytes) -> str:
    """sha256 of what was asked; two requests are the same when it is."""
    return hashlib.sha256(b"\n".join((method.encode(), path.encode(), body))).hexdigest()


def begin(person: User, key: str, asked: str, now: datetime) -> tuple[IdempotentRequest, bool]:
    """The row of this request, and whether it is new and has to be dealt with; otherwise its answer is there.

    Raises Conflict.
    """
    # 1. What is too old no longer counts.
    lost = Q(status=None, created_at__lt=now - IN_HAND)
    IdempotentRequest.objects.filter(Q(created_at__lt=now - KEPT) | lost, person=person).delete()
    # 2. Of two at once, the unique constraint lets one make the row.
    row, is_new = IdempotentRequest.objects.get_or_create(
        person=person, key=key, defaults={"fingerprint": asked, "created_at": now}
    )
    # 3. The other one gets the answer, if it is to the same request, and if it is there.
    if row.fingerprint != asked:
        raise Conflict(_("This Idempotency-Key was used for another request. Make a new one for every request."))
    if not is_new and row.status is None:
        raise Conflict(_("The first request with this Idempotency-Key is not answered yet. Try again in a moment."))
    return row, is_new


def finish(row: IdempotentRequest, status: int, body: Any) -> None:
    """Keeps the answer."""
    IdempotentRequest.objects.filter(pk=row.pk).update(status=status, body=body)


def forget(row: IdempotentRequest) -> None:
    """The request failed: the key can be used again."""
    IdempotentRequest.objects.filter(pk=row.pk, status=None).delete()
