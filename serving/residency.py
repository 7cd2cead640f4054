"""Which versions engines hold: what is wanted is loaded, what nobody wants any more is unloaded.

An engine has room for a few. Versions that an alias points at, or that an unfinished answer is pinned to, keep their
place; those that are only in recent use give it up, the one used longest ago first.
"""

import logging
import re
from datetime import UTC, datetime

from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _

from serving.client import Engine, EngineDown, EngineError, engines
from serving.models import Adapter, Deployment, Message

log = logging.getLogger(__name__)

NEVER = datetime.min.replace(tzinfo=UTC)
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
    """By engine name, in the order in which they are to be loaded: what aliases point at, others that keep their place,
    and those in recent use, the latest first.
    """
    pointed_at = Adapter.objects.filter(deployments__isnull=False)
    recent = Adapter.objects.filter(wanted_until__gt=now).order_by("-wanted_until")
    return _ours(pointed_at, base_sha256) | _ours(_keeping(), base_sha256) | _ours(recent, base_sha256)


def _keeping() -> QuerySet[Adapter]:
    """Current and previous version of every alias, and those pinned by unfinished answers."""
    aliases = Deployment.objects.values_list("adapter", "previous")
    ids = {pk for pair in aliases for pk in pair if pk}
    pinned = Message.objects.filter(status__in=Message.UNFINISHED, adapter__isnull=False).values("adapter")
    return Adapter.objects.filter(Q(pk__in=ids) | Q(pk__in=pinned))


def _ours(rows: QuerySet[Adapter], base_sha256: str) -> dict[str, Adapter]:
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
    keeping = _keeping().values_list("name", flat=True)
    for name in [name for name in versions if name not in loaded]:
        try:
            # Of those in recent use none pushes out another: a person who asks one does that.
            _load(engine, versions[name], makes_room=name in keeping)
            log.info("loaded %s on %s", name, engine.url)
        except EngineError as error:
            # One version that cannot be loaded (its folder is gone) must not keep the others away.
            log.error("%s could not be loaded on %s: %s", name, engine.url, error)


def _is_loaded_on(engine: Engine, adapter: Adapter) -> bool:
    """Loads it where it is missing; False when the engine does not answer."""
    try:
        _load(engine, adapter, makes_room=True)
    except EngineDown:
        log.warning("%s does not answer; %s is not loaded there", engine.url, adapter)
        return False
    return True


def _load(engine: Engine, adapter: Adapter, *, makes_room: bool) -> None:
    if adapter.engine_name in engine.models():
        return
    if adapter.is_base:
        raise EngineError(404, _("The model server does not serve %s; see BASE_MODEL_NAME.") % adapter.engine_name)
    while True:
        try:
            engine.load(adapter.engine_name, str(adapter.folder))
            return
        except EngineError as error:
            # vLLM refuses to load what is resident already: another process was a moment faster.
            if adapter.engine_name in engine.models():
                return
            if not (error.is_full and makes_room and _make_room(engine, adapter)):
                raise


def _make_room(engine: Engine, adapter: Adapter) -> bool:
    """Unloads the version that was used longest ago of those that keep no place; False when there is none."""
    keeping = {adapter.name, *_keeping().values_list("name", flat=True)}
    used = {row.name: row.wanted_until or NEVER for row in Adapter.objects.filter(is_base=False)}
    idle = [name for name in engine.models() if OURS.fullmatch(name) and name not in keeping]
    if not idle:
        return False
    name = min(idle, key=lambda name: used.get(name, NEVER))
    try:
        engine.unload(name)
        log.info("unloaded %s from %s to make room for %s", name, engine.url, adapter)
    except EngineError:
        if name in engine.models():  # otherwise another process was a moment faster
            raise
    return True
