"""Which versions engines hold: what is wanted is loaded, what nobody wants any more is unloaded."""

import logging
import re
from datetime import datetime

from django.db.models import Q
from django.utils.translation import gettext as _

from serving.client import Engine, EngineDown, EngineError, engines
from serving.models import Adapter, Deployment, Message

log = logging.getLogger(__name__)

OURS = re.compile(r"adapter-\d+-[0-9a-f]{6}", re.ASCII)  # names that this site gives; others are left alone


def load(adapter: Adapter) -> list[Engine]:
    """Makes every engine that answers hold the version, and returns those engines.

    Raises EngineDown when none answers, EngineError when one refuses. An engine that is down gets the version from
    `reconcile` when it is back.
    """
    ready = [engine for engine in engines() if _is_loaded_on(engine, adapter)]
    if not ready:
        raise EngineDown(_("No model server answers."))
    return ready


def reconcile(base_sha256: str, now: datetime) -> None:
    """Loads what is wanted and missing (the engine was restarted), then unloads what is unwanted, engine by engine.

    Safe to run twice at once and after any crash: every step looks at the rows and the engine anew.
    """
    for engine in engines():
        try:
            _reconcile_engine(engine, base_sha256, now)
        except EngineDown:
            log.warning("%s does not answer", engine.url)
        except EngineError as error:
            log.error("%s: %s", engine.url, error)


def wanted(base_sha256: str, now: datetime) -> dict[str, Adapter]:
    """By engine name: current and previous version of every alias, those pinned by unfinished answers, and those in
    recent use.
    """
    aliases = Deployment.objects.values_list("adapter", "previous")
    ids = {pk for pair in aliases for pk in pair if pk}
    pinned = Message.objects.filter(status__in=Message.UNFINISHED, adapter__isnull=False).values("adapter")
    rows = Adapter.objects.filter(Q(pk__in=ids) | Q(pk__in=pinned) | Q(wanted_until__gt=now))
    return {row.engine_name: row for row in rows.filter(is_base=False, base_sha256=base_sha256)}


def _reconcile_engine(engine: Engine, base_sha256: str, now: datetime) -> None:
    loaded = set(engine.models())
    _load_missing(engine, wanted(base_sha256, now), loaded)
    for name in sorted(loaded):
        # Asked anew for each: a publication may have begun since.
        if OURS.fullmatch(name) and name not in wanted(base_sha256, now):
            engine.unload(name)
            log.info("unloaded %s from %s", name, engine.url)
            # One that began between the question and the unloading gets its version back at once.
            _load_missing(engine, wanted(base_sha256, now), set(engine.models()))


def _load_missing(engine: Engine, versions: dict[str, Adapter], loaded: set[str]) -> None:
    for name in sorted(set(versions) - loaded):
        try:
            _load(engine, versions[name])
            log.info("loaded %s on %s", name, engine.url)
        except EngineError as error:
            # One version that cannot be loaded (its folder is gone) must not keep the others away.
            log.error("%s could not be loaded on %s: %s", name, engine.url, error)


def _is_loaded_on(engine: Engine, adapter: Adapter) -> bool:
    """Loads it where it is missing; False when the engine does not answer."""
    try:
        _load(engine, adapter)
    except EngineDown:
        log.warning("%s does not answer; %s is not loaded there", engine.url, adapter)
        return False
    return True


def _load(engine: Engine, adapter: Adapter) -> None:
    if adapter.engine_name in engine.models():
        return
    if adapter.is_base:
        raise EngineError(404, _("The model server does not serve %s; see BASE_MODEL_NAME.") % adapter.engine_name)
    try:
        engine.load(adapter.engine_name, str(adapter.folder))
    except EngineError:
        # vLLM refuses to load what is resident already: another process was a moment faster.
        if adapter.engine_name not in engine.models():
            raise
