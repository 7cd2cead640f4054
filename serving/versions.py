"""The versions that there are: the base model and the adapters registered for it. The only writer of Adapter rows.

A version is immutable and carries its own name. What becomes of it is its status: a self-test makes it READY or REJECTED.
"""

import json
import re
import secrets
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _

from serving import artifacts
from serving.artifacts import InvalidAdapter
from serving.models import Adapter

NUMBERED = re.compile(r"adapter-([0-9]{1,9})")  # a version's name without its hash


class UnknownModel(Exception):
    """There is no alias and no servable version of that name."""


def base() -> Adapter:
    """The row of the configured base model, made on demand. Raises InvalidAdapter when MODEL is no prepared folder."""
    sha256 = base_sha256()
    adapter, _created = Adapter.objects.get_or_create(
        sha256=sha256,
        base_sha256=sha256,
        defaults={"name": f"base-{sha256[:6]}", "is_base": True, "status": Adapter.Status.READY},
    )
    return adapter


def base_sha256() -> str:
    """What tells the configured base model from others. Raises InvalidAdapter."""
    return str(_base_card()["sha256"])


def servable() -> QuerySet[Adapter]:
    """Versions of the configured base that may answer: the base itself and adapters that passed, newest first."""
    return Adapter.objects.filter(base_sha256=base().sha256, status=Adapter.Status.READY)


def named(name: str) -> Adapter:
    """The servable version of this name, with or without its hash. Raises UnknownModel."""
    if name == settings.BASE_MODEL_NAME:
        return base()
    ready = Adapter.objects.filter(base_sha256=base_sha256(), status=Adapter.Status.READY)
    numbered = NUMBERED.fullmatch(name)
    found = ready.filter(pk=int(numbered[1]), is_base=False) if numbered else ready.filter(name=name)
    if (adapter := found.first()) is None:
        raise UnknownModel(_("There is no model named %s here.") % name)
    return adapter


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


def set_tested(adapter: Adapter, *, is_passed: bool, error: str = "", self_test: dict[str, Any] | None = None) -> None:
    """What its self-test found. One that could not be made keeps the figures of the last one."""
    adapter.status = Adapter.Status.READY if is_passed else Adapter.Status.REJECTED
    adapter.error = error
    adapter.self_test = adapter.self_test if self_test is None else self_test
    adapter.save(update_fields=["status", "error", "self_test"])


def set_notes(adapter: Adapter, notes: str) -> None:
    """What people are told of it where they choose who answers, a sentence a line."""
    Adapter.objects.filter(pk=adapter.pk).update(notes=notes)


def keep_loaded(adapter: Adapter, until: datetime, *, is_shortened: bool = False) -> None:
    """Nobody has to want it for engines to hold it until then, or longer if that is wanted already."""
    rows = Adapter.objects.filter(pk=adapter.pk)
    if not is_shortened:
        rows = rows.filter(Q(wanted_until=None) | Q(wanted_until__lt=until))
    rows.update(wanted_until=until)


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
