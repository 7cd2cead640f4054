"""API keys: made, changed for new ones and revoked by the person who owns them. The only writer of ApiKey rows.

A key is shown once, when it is made; only its hash is stored. A plain SHA-256 is enough: there are 320 random bits in
a key, so there is nothing to guess, unlike in a password. A key never may what its owner may not.
"""

import hashlib
import secrets
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from serving.models import ApiKey

MARK = "align_"  # so that people and secret scanners know what it is
N_BYTES = 40
N_SHOWN = 12  # characters that tell keys apart; 284 random bits stay secret
USE_NOTED_EVERY = timedelta(minutes=1)
MAX_KEYS = 50  # of one person, in force

SCOPES = {
    "labels:read": gettext_lazy("Read comparisons, judgments and statistics"),
    "labels:write": gettext_lazy("Claim pairs, judge, decide disputes, set preferences"),
    "campaigns:read": gettext_lazy("Read campaigns, prompts and responses"),
    "campaigns:write": gettext_lazy("Make and change campaigns, members, prompts, responses and known answers"),
    "exports:read": gettext_lazy("Export judgments"),
    "imports:write": gettext_lazy("Import files, and see how far they are"),
    "chat": gettext_lazy("Talk to the model, and say what is thought of its answers"),
}


class Refused(Exception):
    """A key that cannot be made; the message says what to do."""


def create(
    owner: User, name: str, scopes: list[str], now: datetime, expires_at: datetime | None = None
) -> tuple[ApiKey, str]:
    """A new key, and its text, which nobody can look up later. Raises Refused."""
    name = name.strip()
    if not name or len(name) > 80 or "\x00" in name:
        raise Refused(_("Give the key a name of 1 to 80 characters: what it is for."))
    if not scopes or not set(scopes) <= set(SCOPES):
        raise Refused(_("Choose what the key may do, out of: %(known)s.") % {"known": ", ".join(SCOPES)})
    if expires_at is not None and expires_at <= now:
        raise Refused(_("The key must expire in the future, or never."))
    with transaction.atomic():
        User.objects.select_for_update(no_key=True).only("pk").get(pk=owner.pk)
        if in_force(owner, now).count() >= MAX_KEYS:
            raise Refused(_("You have %(n)d keys. Revoke one that is not used any more.") % {"n": MAX_KEYS})
        return _store(owner, name, sorted(set(scopes)), now, expires_at)


def _store(owner: User, name: str, scopes: list[str], now: datetime, expires_at: datetime | None) -> tuple[ApiKey, str]:
    text = MARK + secrets.token_urlsafe(N_BYTES)
    key = ApiKey.objects.create(
        owner=owner,
        name=name,
        prefix=text[:N_SHOWN],
        sha256=_digest(text),
        scopes=scopes,
        created_at=now,
        expires_at=expires_at,
    )
    return key, text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def in_force(owner: User, now: datetime) -> QuerySet[ApiKey]:
    """This person's keys that work."""
    return ApiKey.objects.filter(Q(expires_at=None) | Q(expires_at__gt=now), owner=owner, revoked_at=None)


@transaction.atomic
def rotate(key: ApiKey, now: datetime) -> tuple[ApiKey, str]:
    """Revokes the key and makes one like it, for as long as the old one was made for. Raises Refused when it is
    revoked already: of two who rotate at once, one gets a key.
    """
    if not revoke(key, now):
        raise Refused(_("This key is revoked already. Make a new one."))
    lifetime = key.expires_at - key.created_at if key.expires_at else None
    made, text = _store(key.owner, key.name, key.scopes, now, now + lifetime if lifetime else None)
    set_limits(made, requests=key.requests_per_minute, tokens=key.tokens_per_minute, concurrent=key.max_concurrent)
    return made, text


def revoke(key: ApiKey, now: datetime) -> bool:
    """From now on nobody gets in by it; False when it was revoked before."""
    return ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=now) == 1


def find(text: str, now: datetime) -> ApiKey | None:
    """The key in force with this text, its owner an active account; notes that it is used."""
    key = look_up(text, now)
    if key is not None:
        note_use(key, now)
    return key


def look_up(text: str, now: datetime) -> ApiKey | None:
    """As `find`, by one query whatever the text, and without writing anything."""
    if not text.startswith(MARK):
        return None
    rows = ApiKey.objects.select_related("owner").filter(revoked_at=None, owner__is_active=True)
    key = rows.filter(sha256=_digest(text)).first()
    return None if key is None or (key.expires_at is not None and key.expires_at <= now) else key


def note_use(key: ApiKey, now: datetime) -> None:
    """At most once a minute: it is to tell keys in use from forgotten ones."""
    if key.last_used_at is None or key.last_used_at <= now - USE_NOTED_EVERY:
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=now)


def set_limits(key: ApiKey, *, requests: int | None, tokens: int | None, concurrent: int | None) -> None:
    """What the key may ask models for: a minute and at once. None: as the site has it; 0: no limit."""
    ApiKey.objects.filter(pk=key.pk).update(
        requests_per_minute=requests, tokens_per_minute=tokens, max_concurrent=concurrent
    )
