"""Aliases: names that stand for a version, `current` first of all. The only writer of Deployment rows.

An alias may have a canary, a second version that answers a share of its conversations. Each change is one conditional
update on the generation number with one event in the same transaction, so the events of an alias are a chain. Names are
resolved once per request, from the database, never cached: a request keeps the version that it was admitted with.
"""

import hashlib
import logging
import re
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from serving import events, versions
from serving.events import Kind
from serving.models import Adapter, Deployment

log = logging.getLogger(__name__)

CURRENT = "current"
NAME = re.compile(r"[a-z][a-z0-9-]{0,49}", re.ASCII)
OF_VERSIONS = re.compile(r"adapter-\d+(-.*)?|base-[0-9a-f]{6}", re.ASCII)  # names that versions have, or may get
NO_CANARY: dict[str, Any] = {"canary": None, "canary_share": 0.0, "canary_since": None}


class InvalidAlias(Exception):
    """No alias can have this name; the message says why."""


class AliasMoved(Exception):
    """The alias has been changed since its generation was read; nothing was done."""


@dataclass(frozen=True)
class Choice:
    """The version that answers one request, and how it was come by."""

    adapter: Adapter
    alias: str  # "" when a version was named
    is_canary: bool


@dataclass(frozen=True)
class Decision:
    """Who decides to change an alias, and why. With a generation, only if the alias still has that one."""

    actor: User | None = None
    reason: str = ""
    generation: int | None = None


# --- reading ----------------------------------------------------------------------------------------------------------
def current() -> Adapter:
    """The version that answers now."""
    return deployment(CURRENT).adapter


def resolve(name: str, sticky: str = "") -> Choice:
    """The version behind an alias or a version's own name, read from the database each time. Raises UnknownModel.

    While an alias has a canary, `sticky` (a conversation) decides which of the two answers: the same one each time.
    Without it the canary never does. One query for an alias, as each request for an answer asks this; two for a version.
    """
    row = Deployment.objects.select_related("adapter", "canary").filter(alias=name).first()
    if row is None and name != CURRENT:
        return Choice(versions.named(name), alias="", is_canary=False)
    is_of_base = row is not None and row.adapter.base_sha256 == versions.base_sha256()
    return choose(row if row is not None and is_of_base else deployment(name), sticky)


def choose(row: Deployment, sticky: str) -> Choice:
    """The canary for those whose point lies below its share. Points are even, and differ for each canary; as the share
    grows, those who had the canary keep it.
    """
    if row.canary is not None and sticky and _point(row, sticky) < row.canary_share:
        return Choice(row.canary, row.alias, is_canary=True)
    return Choice(row.adapter, row.alias, is_canary=False)


def _point(row: Deployment, sticky: str) -> float:
    """Where `sticky` lies between 0 and 1."""
    digest = hashlib.sha256(f"{row.alias}\0{row.canary_id}\0{sticky}".encode()).digest()
    return int.from_bytes(digest[:6]) / (1 << 48)  # 48 bits: a float holds them exactly, so it stays below 1


def deployment(alias: str = CURRENT) -> Deployment:
    """The alias's row; made, pointing at the base, when there is none. An alias left behind by another MODEL is moved
    to the new base: its adapter fits a model that is no longer served.
    """
    root = versions.base()
    row, _created = _row(alias, root)
    return _on_base(row, root)


def _on_base(row: Deployment, root: Adapter) -> Deployment:
    if row.adapter.base_sha256 == root.sha256:
        return row
    return move(row.alias, root, Decision(reason=_("MODEL was changed to another base model.")))


def seen(alias: str) -> Deployment:
    """The alias's row; of one that is not there yet, unsaved, what it is when `move` makes it. Raises InvalidAlias."""
    if alias == CURRENT:
        return deployment()
    if (row := _rows().filter(alias=alias).first()) is not None:
        return _on_base(row, versions.base())
    _check_name(alias)
    return Deployment(alias=alias, adapter=versions.base(), generation=_first_generation(alias))


def _check_name(alias: str) -> None:
    """Aliases are looked up before versions, so one with a version's name would hide it. Raises InvalidAlias."""
    if not NAME.fullmatch(alias):
        raise InvalidAlias(
            _("An alias has 1 to 50 lower-case letters, digits and hyphens, and begins with a letter, as in beta-2.")
        )
    if alias == settings.BASE_MODEL_NAME or OF_VERSIONS.fullmatch(alias):
        raise InvalidAlias(_("“%s” is a name of versions. Choose another one for the alias.") % alias)


# --- changing ---------------------------------------------------------------------------------------------------------
def move(alias: str, adapter: Adapter, decision: Decision, kind: Kind = Kind.PUBLISHED) -> Deployment:
    """Points the alias at `adapter`: generation + 1 and one event. Of two at once, the later one wins, and sees the
    other's version as its previous one; one with an expected generation gives up instead, with AliasMoved.

    A canary goes on beside the new version, unless it is the new version or was made for another base.
    """
    while True:
        row, _created = _row(alias, versions.base(), decision.generation)
        check_generation(row, decision.generation)
        if row.adapter_id == adapter.pk:
            return row
        changes: dict[str, Any] = {
            "adapter": adapter,
            # A version of another base can never answer again: there is nothing to roll back to.
            "previous": row.adapter if row.adapter.base_sha256 == adapter.base_sha256 else None,
        }
        if row.canary and (row.canary == adapter or row.canary.base_sha256 != adapter.base_sha256):
            changes |= NO_CANARY
        if moved := _change(row, changes, kind, adapter, decision):
            log.info("%s moved from %s to %s", alias, row.adapter, adapter)
            return moved


def try_out(alias: str, canary: Adapter, share: float, decision: Decision) -> Deployment:
    """Gives `canary` this share of the alias's conversations, whether it has one already or not. Raises AliasMoved, also
    without an expected generation when somebody else changes the alias at the same moment.
    """
    row, _created = _row(alias, versions.base(), decision.generation)
    check_generation(row, decision.generation)
    is_new = row.canary_id != canary.pk
    changes = {"canary": canary, "canary_share": share}
    if is_new:
        changes["canary_since"] = timezone.now()
    kind = Kind.CANARY_STARTED if is_new else Kind.CANARY_CHANGED
    return _changed(row, changes, kind, canary, decision, share)


def end_trial(row: Deployment, canary: Adapter, decision: Decision) -> Deployment:
    """The canary answers no more conversations. Raises AliasMoved."""
    check_generation(row, decision.generation)
    return _changed(row, dict(NO_CANARY), Kind.CANARY_STOPPED, canary, decision, share=0.0)


def remove(alias: str, decision: Decision) -> None:
    """Nobody can ask for the alias any more, and its versions lose the places that it kept. Raises AliasMoved."""
    row = _rows().filter(alias=alias).first()
    if row is None:
        raise AliasMoved(_("“%s” was removed already.") % alias)
    check_generation(row, decision.generation)
    with transaction.atomic():
        n_removed, _by_model = Deployment.objects.filter(pk=row.pk, generation=row.generation).delete()
        if not n_removed:
            raise _changed_meanwhile(row)
        events.record_alias(
            row.alias, row.generation + 1, Kind.ALIAS_REMOVED, row.adapter, actor=decision.actor, reason=decision.reason,
        )  # fmt: skip
    log.info("%s was removed", row.alias)


def check_generation(row: Deployment, expected: int | None) -> None:
    if expected is not None and row.generation != expected:
        raise AliasMoved(
            _("“%(alias)s” was moved meanwhile: it is %(adapter)s now. Look again, then decide.")
            % {"alias": row.alias, "adapter": row.adapter}
        )


def _changed(
    row: Deployment, changes: dict[str, Any], kind: Kind, adapter: Adapter, decision: Decision, share: float
) -> Deployment:
    changed = _change(row, changes, kind, adapter, decision, share)
    if changed is None:
        raise _changed_meanwhile(row)
    return changed


def _changed_meanwhile(row: Deployment) -> AliasMoved:
    return AliasMoved(_("“%s” was changed at the same moment. Look again, then decide.") % row.alias)


def _change(
    row: Deployment,
    changes: dict[str, Any],
    kind: Kind,
    adapter: Adapter,
    decision: Decision,
    share: float | None = None,
) -> Deployment | None:
    """The row after the change; None when somebody else changed it since it was read."""
    generation = row.generation + 1
    with transaction.atomic():
        is_changed = Deployment.objects.filter(pk=row.pk, generation=row.generation).update(
            **changes, generation=generation, updated_at=timezone.now()
        )
        if not is_changed:
            return None
        events.record_alias(
            row.alias, generation, kind, adapter,
            previous=row.adapter, share=share, actor=decision.actor, reason=decision.reason,
        )  # fmt: skip
    return _rows().get(pk=row.pk)


def _first_generation(alias: str) -> int:
    """1, or where an alias of this name ended that was removed: what a page showed of that one is no generation of this."""
    return events.last_generation(alias) + 1


def _rows() -> QuerySet[Deployment]:
    return Deployment.objects.select_related("adapter", "previous", "canary")


def _row(alias: str, root: Adapter, expected: int | None = None) -> tuple[Deployment, bool]:
    """The row, made on demand with its event, and whether it was made now. Raises AliasMoved rather than make one of another
    generation than the expected: it was removed meanwhile.
    """
    if (row := _rows().filter(alias=alias).first()) is not None:
        return row, False
    row = Deployment(alias=alias, adapter=root, generation=_first_generation(alias))
    check_generation(row, expected)
    try:
        with transaction.atomic():
            row.save(force_insert=True)
            reason = _("The base model, before anything was published.")
            events.record_alias(alias, row.generation, Kind.PUBLISHED, root, reason=reason)
    except IntegrityError:  # another process made it at the same moment
        return _rows().get(alias=alias), False
    return row, True
