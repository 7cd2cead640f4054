"""Who asks, for what, whether they may now, and which version answers: all that the database says of a request, at its
beginning in one visit and at its end in another. Synchronous.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone
from django.utils.translation import gettext as _

from serving import adapters, keys, limits, requests, versions
from serving.limits import Limited, Ticket
from serving.models import ApiKey
from serving.openai import bodies, catalog, problems
from serving.openai.bodies import Asked, Kind
from serving.openai.problems import Problem
from serving.requests import Served

SCOPE = "chat"


@dataclass
class Admitted:
    """A request on its way. It was given a version and a lease, which `settle` takes back."""

    asked: Asked
    kind: Kind
    key: ApiKey
    ticket: Ticket
    served: Served

    def limit_headers(self) -> dict[str, str]:
        return _headers(self.ticket)


def admit(shown: str, raw: bytes, kind: Kind, request_id: str, now: datetime) -> Admitted:
    """`shown` is the Authorization header, `raw` the body. Raises Problem. Nothing is written."""
    key = _key(shown, now)
    try:
        asked = bodies.parse(raw, kind)
    except Problem:
        limits.settle(_ticket(key, 0), 0)  # nonsense counts as a request, too
        raise
    ticket = _ticket(key, asked.n_tokens)
    with _given_back_if_refused(ticket):
        choice = catalog.chosen(asked.model, f"{key.pk} {asked.sticky}")
    served = Served(
        endpoint=kind.name,
        adapter=choice.adapter,
        alias=choice.alias,
        is_canary=choice.is_canary,
        person_id=key.owner_id,
        key_id=key.pk,
        request_id=request_id,
    )
    return Admitted(asked, kind, key, ticket, served)


def settle(admitted: Admitted) -> None:
    """The request has ended, however, and used the tokens that `served` says."""
    now, usage = timezone.now(), admitted.served.usage
    try:
        limits.settle(admitted.ticket, usage.prompt_tokens + usage.completion_tokens if usage else 0)
    finally:
        keys.note_use(admitted.key, now)
        _keep_loaded(admitted.served, now)
        requests.record(admitted.served)  # last: who finds the row finds all else done


def _keep_loaded(served: Served, now: datetime) -> None:
    """A version that is asked by name stays loaded while it is in use; noted at most once a minute."""
    adapter, until = served.adapter, now + adapters.KEEP_LOADED
    is_noted = adapter.wanted_until is not None and adapter.wanted_until > until - timedelta(minutes=1)
    if not (served.alias or adapter.is_base or is_noted):
        versions.keep_loaded(adapter, until)


def listing(shown: str, name: str) -> tuple[bytes, dict[str, str]]:
    """The models, or the one of that name, as JSON, and headers. Raises Problem."""
    now = timezone.now()
    key = _key(shown, now)
    ticket = _ticket(key, 0)
    with _given_back_if_refused(ticket):
        body = catalog.listing(name)
    limits.settle(ticket, 0)
    keys.note_use(key, now)
    return body, _headers(ticket)


def _key(shown: str, now: datetime) -> ApiKey:
    scheme, _space, text = shown.partition(" ")
    key = keys.look_up(text.strip(), now) if scheme.lower() == "bearer" else None
    if key is None:
        raise problems.unauthorized()
    if SCOPE not in key.scopes:
        raise Problem(403, _("This key lacks the scope %s. Make one that has it.") % SCOPE, "insufficient_permissions")
    return key


def _ticket(key: ApiKey, n_tokens: int) -> Ticket:
    try:
        return limits.take(key, n_tokens)
    except Limited as error:
        raise problems.limited(error) from error


@contextmanager
def _given_back_if_refused(ticket: Ticket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        limits.settle(ticket, 0)
        raise


def _headers(ticket: Ticket) -> dict[str, str]:
    return problems.limit_headers(ticket.limits, ticket.requests, ticket.tokens)
