"""Versions and aliases: register, load, test, publish, roll back. The only writer of Adapter.status and of Deployment rows.

A version is immutable and carries its own name; `current` is a row that points at one. Publishing does, in this order:
  1. load the version on every engine, under its own name, beside whatever is loaded;
  2. self-test it, unless it passed before: a failure marks it REJECTED and moves nothing;
  3. warm it with one short request;
  4. move the alias, one conditional update on the generation number, and write the event in the same transaction.
Requests resolved the alias before and keep their version: it stays loaded while it is current, previous, or pinned by an
answer that is being written. No network call happens inside a transaction.
"""

import json
import logging
import secrets
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from serving import artifacts, residency, selftest
from serving.artifacts import InvalidAdapter
from serving.client import Engine
from serving.models import Adapter, Deployment, DeploymentEvent

__all__ = [
    "AliasMoved", "InvalidAdapter", "NotServable", "NothingToRollBack", "UnknownModel", "base", "current", "deployment",
    "ensure_loaded", "publish", "reconcile", "register", "resolve", "rollback", "self_test", "servable",
]  # fmt: skip

log = logging.getLogger(__name__)

CURRENT = "current"
KEEP_LOADED = timedelta(minutes=10)  # after its last use, a version that no alias wants
WARM_MESSAGES = [{"role": "user", "content": "Hello"}]


class UnknownModel(Exception):
    """There is no alias and no servable version of that name."""


class NotServable(Exception):
    """This version cannot be published; the message says why."""


class NothingToRollBack(Exception):
    """The alias has never pointed anywhere else."""


class AliasMoved(Exception):
    """The alias has been moved since its generation was read; nothing was changed."""


# --- what there is ----------------------------------------------------------------------------------------------------
def base() -> Adapter:
    """The row of the configured base model, made on demand. Raises InvalidAdapter when MODEL is no prepared folder."""
    sha256 = _base_card()["sha256"]
    adapter, _created = Adapter.objects.get_or_create(
        sha256=sha256,
        base_sha256=sha256,
        defaults={"name": f"base-{sha256[:6]}", "is_base": True, "status": Adapter.Status.READY},
    )
    return adapter


def current() -> Adapter:
    """The version that answers now."""
    return deployment(CURRENT).adapter


def resolve(name: str) -> Adapter:
    """The version behind an alias or a version's own name, read from the database each time. Raises UnknownModel."""
    if name == CURRENT or Deployment.objects.filter(alias=name).exists():
        return deployment(name).adapter
    root = base()
    if name in (root.name, settings.BASE_MODEL_NAME):
        return root
    adapter = servable().filter(name=name).first()
    if adapter is None:
        raise UnknownModel(_("There is no model named %s here.") % name)
    return adapter


def servable() -> Any:
    """Versions of the configured base that may answer: the base itself and adapters that passed, newest first."""
    return Adapter.objects.filter(base_sha256=base().sha256, status=Adapter.Status.READY)


def deployment(alias: str = CURRENT) -> Deployment:
    """The alias's row; made, pointing at the base, when there is none. An alias left behind by another MODEL is moved
    to the new base: its adapter fits a model that is no longer served.
    """
    root = base()
    row, created = _alias_row(alias, root)
    if created or row.adapter.base_sha256 == root.sha256:
        return row
    return _move(alias, root, actor=None, reason=_("MODEL was changed to another base model."))


def register(folder: Path, *, notes: str = "") -> Adapter:
    """Checks a PEFT folder and copies it, read-only, below ADAPTERS_DIR. The same content is registered once.

    Raises InvalidAdapter. The row is visible only when its folder is complete: a crash leaves a `.incoming-…` folder.
    """
    card = _base_card()
    root = base()
    incoming = settings.ADAPTERS_DIR / f".incoming-{secrets.token_hex(8)}"
    try:
        artifacts.copy(Path(folder), incoming)  # what is checked is the copy: nobody else writes it
        artifact = artifacts.check(
            incoming, base_sha256=root.sha256, base_shapes=artifacts.shapes(Path(settings.MODEL))
        )
        _check_template(artifact.manifest, card)
        return _store(artifact, incoming, notes)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _store(artifact: artifacts.Artifact, incoming: Path, notes: str) -> Adapter:
    """The row and the folder of a checked artifact; both appear together or not at all."""
    with transaction.atomic():
        adapter, created = Adapter.objects.select_for_update().get_or_create(
            sha256=artifact.sha256,
            base_sha256=artifact.manifest["base_sha256"],
            defaults={"name": f"incoming-{secrets.token_hex(8)}", "manifest": artifact.manifest, "notes": notes},
        )
        if created:
            adapter.name = f"adapter-{adapter.pk}-{artifact.sha256[:6]}"
            adapter.save(update_fields=["name"])
        if not adapter.folder.exists():
            incoming.rename(adapter.folder)
        elif not artifacts.is_same_config(incoming, adapter.folder):
            raise InvalidAdapter(_("%s has the same weights, but another adapter_config.json.") % adapter)
    return adapter


# --- engines ----------------------------------------------------------------------------------------------------------
def reconcile(now: datetime | None = None) -> None:
    """Brings every engine to what the rows want; see `residency.reconcile`."""
    deployment()
    residency.reconcile(base().sha256, now or timezone.now())


def ensure_loaded(adapter: Adapter) -> list[Engine]:
    """Makes every engine that answers hold the version, keeps it loaded for KEEP_LOADED, and returns those engines.

    Raises EngineDown when none answers, EngineError when one refuses.
    """
    Adapter.objects.filter(pk=adapter.pk).update(wanted_until=timezone.now() + KEEP_LOADED)
    return residency.load(adapter)


def self_test(adapter: Adapter, on: list[Engine]) -> bool:
    """Compares the adapter's effects with the trainer's on every engine of `on`; stores the result and the status."""
    try:
        probes = artifacts.read_probes(adapter.folder)
    except (InvalidAdapter, OSError) as error:
        _set(adapter, status=Adapter.Status.REJECTED, error=str(error))
        return False
    results = [selftest.measure(engine, settings.BASE_MODEL_NAME, adapter.engine_name, probes) for engine in on]
    failed = [result for result in results if not result.is_passed]
    shown = (failed or results)[0]
    _set(
        adapter,
        status=Adapter.Status.REJECTED if failed else Adapter.Status.READY,
        error=shown.verdict() if failed else "",
        self_test=shown.to_dict(),
    )
    return not failed


# --- aliases ----------------------------------------------------------------------------------------------------------
def publish(
    adapter: Adapter,
    *,
    alias: str = CURRENT,
    actor: User | None = None,
    reason: str = "",
    expected_generation: int | None = None,
) -> Deployment:
    """Makes `adapter` what the alias answers with. Publishing what is published already changes nothing.

    A rejected version is tested again: the fault may have been the engine's. With `expected_generation` the alias is
    moved only from that generation; without it, of two publications at once the later one wins. Raises NotServable (of
    another base, or failing its self-test now), AliasMoved, EngineDown, EngineError.
    """
    adapter.refresh_from_db()
    if adapter.base_sha256 != base().sha256:
        raise NotServable(_("%s was trained on another base model than MODEL.") % adapter)
    _check_generation(deployment(alias), expected_generation)  # before an engine is put to work
    ready = ensure_loaded(adapter)
    if adapter.status != Adapter.Status.READY and not self_test(adapter, ready):
        raise NotServable(adapter.error)
    for engine in ready:
        engine.chat(adapter.engine_name, WARM_MESSAGES, max_tokens=1, temperature=0.0)
    return _move(alias, adapter, actor=actor, reason=reason, expected_generation=expected_generation)


def rollback(
    alias: str = CURRENT, *, actor: User | None = None, reason: str = "", expected_generation: int | None = None
) -> Deployment:
    """Back to the version before; once more returns. Raises NothingToRollBack and what `publish` raises.

    `expected_generation` is the one that the person saw: "the version before" means another one after each move.
    """
    row = deployment(alias)
    _check_generation(row, expected_generation)
    if row.previous is None:
        raise NothingToRollBack(_("“%s” has had only one version so far.") % alias)
    return publish(
        row.previous,
        alias=alias,
        actor=actor,
        reason=reason or _("Rolled back."),
        expected_generation=expected_generation,
    )


def _check_generation(row: Deployment, expected: int | None) -> None:
    if expected is not None and row.generation != expected:
        raise AliasMoved(
            _("“%(alias)s” was moved meanwhile: it is %(adapter)s now. Look again, then decide.")
            % {"alias": row.alias, "adapter": row.adapter}
        )


def _move(
    alias: str, adapter: Adapter, *, actor: User | None, reason: str, expected_generation: int | None = None
) -> Deployment:
    """Points the alias at `adapter`: generation + 1 and one event. Of two at once, the later one wins, and sees the
    other's version as its previous one; one with an expected generation gives up instead, with AliasMoved.
    """
    while True:
        row, _created = _alias_row(alias, base())
        _check_generation(row, expected_generation)
        if row.adapter_id == adapter.pk:
            return row
        with transaction.atomic():
            moved = Deployment.objects.filter(pk=row.pk, generation=row.generation).update(
                adapter=adapter,
                # A version of another base can never answer again: there is nothing to roll back to.
                previous=row.adapter if row.adapter.base_sha256 == adapter.base_sha256 else None,
                generation=row.generation + 1,
                updated_at=timezone.now(),
            )
            if moved:
                _record(alias, row.generation + 1, adapter, row.adapter, actor, reason)
        if moved:
            log.info("%s moved from %s to %s", alias, row.adapter, adapter)
            return Deployment.objects.select_related("adapter", "previous").get(pk=row.pk)


def _alias_row(alias: str, root: Adapter) -> tuple[Deployment, bool]:
    """The row, made on demand with generation 1 and its event, and whether it was made now."""
    rows = Deployment.objects.select_related("adapter", "previous")
    if (row := rows.filter(alias=alias).first()) is not None:
        return row, False
    try:
        with transaction.atomic():
            row = Deployment.objects.create(alias=alias, adapter=root)
            _record(alias, 1, root, None, None, _("The base model, before anything was published."))
    except IntegrityError:  # another process made it at the same moment
        return rows.get(alias=alias), False
    return row, True


def _record(
    alias: str, generation: int, adapter: Adapter, previous: Adapter | None, actor: User | None, reason: str
) -> DeploymentEvent:
    return DeploymentEvent.objects.create(
        alias=alias, generation=generation, adapter=adapter, previous=previous, actor=actor, reason=reason
    )


def _set(adapter: Adapter, **values: Any) -> None:
    for name, value in values.items():
        setattr(adapter, name, value)
    adapter.save(update_fields=list(values))


def _base_card() -> dict[str, Any]:
    """alignapp-model.json of MODEL."""
    file = Path(settings.MODEL) / "alignapp-model.json"
    try:
        card = json.loads(file.read_text())
        str(card["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidAdapter(
            _("MODEL is not a prepared model: %s is missing or broken. Run `make model`.") % file
        ) from error
    return card


def _check_template(manifest: dict[str, Any], card: dict[str, Any]) -> None:
    """An adapter trained with another chat template would answer prompts that it never saw."""
    trained, served = manifest.get("chat_template_sha256"), card.get("chat_template_sha256")
    if trained and served and trained != served:
        raise InvalidAdapter(_("The adapter was trained with another chat template than this model's."))
