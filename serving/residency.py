"""Which versions engines hold: what is wanted is loaded and tested, what nobody wants any more is unloaded.

An engine has room for a few. Versions that an alias points at or tries out, or that an unfinished answer is pinned to,
keep their place; those that are only in recent use give it up, the one used longest ago first. A version that was
unloaded is retired, not lost: it is loaded again when it is wanted.
"""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import PurePath

from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from serving import artifacts, events, fleet, selftest, versions
from serving.client import Engine, EngineDown, EngineError, Resident, engines
from serving.events import Kind
from serving.fleet import Failure
from serving.models import Adapter, Deployment, Message
from serving.selftest import SelfTest

log = logging.getLogger(__name__)

NEVER = datetime.min.replace(tzinfo=UTC)
KEEP_LOADED = timedelta(minutes=10)  # after its last use, a version that no alias wants
PREPARING = timedelta(
    minutes=30
)  # so long at most a version keeps its place that is being loaded and tested for an alias
LEAVING_SECONDS = 10.0  # that a version which has to go may keep its place for the answers on it, before another goes
MAKING_ROOM_SECONDS = 30.0  # for one version on one engine; those that went may be asked for, and be back, meanwhile
LEAVING_LOOK = 0.5
OURS = re.compile(r"adapter-\d+-[0-9a-f]{6}", re.ASCII)  # names that this site gives; others are left alone


@dataclass(frozen=True)
class Loading:
    """How a version came onto the engines: on which it is resident now, and why not on the others."""

    ready: list[Engine]
    failures: dict[Engine, Failure]

    def without(self, failures: dict[Engine, Failure]) -> "Loading":
        """The same, with engines that failed since."""
        return Loading([engine for engine in self.ready if engine not in failures], self.failures | failures)

    def check_any(self) -> None:
        """Raises what the first engine that refused said, or EngineDown, when none is ready."""
        if not self.ready:
            refusals = [failure for failure in self.failures.values() if isinstance(failure, EngineError)]
            raise refusals[0] if refusals else EngineDown(_("No model server answers."))


@dataclass(frozen=True)
class _Places:
    """Whose place is whose, at this moment."""

    kept: frozenset[str]  # names that may not be pushed out
    used: dict[str, datetime]  # when the others were wanted last


@dataclass
class _Visit:
    """One engine that is being given one version. It asks the engine only: engines are visited at once, in threads."""

    engine: Engine
    adapter: Adapter
    is_full: bool = False  # as its last answer says, and another version may make room
    until: float = field(default_factory=lambda: time.monotonic() + MAKING_ROOM_SECONDS)
    happened: list[tuple[str, Kind, str]] = field(default_factory=list)  # name, kind, reason

    def load(self) -> None:
        """Returns when the version is resident. Raises EngineDown, EngineError."""
        name, self.is_full = self.adapter.engine_name, False
        if self._is_resident():
            return
        if self.adapter.is_base:
            raise EngineError(404, _("The model server does not serve %s; see BASE_MODEL_NAME.") % name)
        try:
            self.engine.load(name, str(self.adapter.folder))
        except EngineError as error:
            # vLLM refuses to load what is resident already: another process was a moment faster.
            if self._is_resident():
                return
            self.is_full = error.is_full
            raise
        self.happened.append((name, Kind.LOADED, ""))

    def _is_resident(self) -> bool:
        """Other weights under its name are unloaded: a version answers with its own or not at all."""
        found = self.engine.resident().get(self.adapter.engine_name)
        if found is None or _is_right(found, self.adapter):
            return found is not None
        if self.adapter.is_base:
            raise EngineError(409, _("The model server's base model is not the one that MODEL names."))
        self._unload(self.adapter.name, _("The engine had other weights under this name."))
        return False

    def load_instead(self, places: "_Places") -> None:
        """In place of the version that was used longest ago of those that keep no place. When there is none, the engine
        refuses as before. Raises EngineDown, EngineError.
        """
        self.is_full = False  # until the engine says so again: it may be gone meanwhile, or keep what it should unload
        idle = [name for name in self.engine.models() if OURS.fullmatch(name) and name not in places.kept]
        if idle:
            name = min(idle, key=lambda name: places.used.get(name, NEVER))
            self._unload(name, _("It made room for %s.") % self.adapter)
        until = min(time.monotonic() + (LEAVING_SECONDS if idle else 0), self.until)
        try:
            self._load_by(until)
        finally:
            # Else there is nothing more to be done.
            self.is_full = self.is_full and bool(idle) and time.monotonic() < self.until

    def _load_by(self, until: float) -> None:
        """An engine frees a version's place when the last answer on it has ended. `until`: monotonic seconds."""
        while True:
            try:
                return self.load()
            except EngineError:
                if not self.is_full or time.monotonic() >= until:
                    raise
            time.sleep(LEAVING_LOOK)

    def _unload(self, name: str, reason: str) -> None:
        try:
            self.engine.unload(name)
            self.happened.append((name, Kind.UNLOADED, reason))
        except EngineError:
            if name in self.engine.models():  # otherwise another process was a moment faster
                raise


def _is_right(found: Resident, adapter: Adapter) -> bool:
    """Whether these are the version's own weights, by their hash, else by their folder; yes where the engine tells neither."""
    if found.sha256:
        return found.sha256 == adapter.sha256
    return adapter.is_base or not found.path or PurePath(found.path).name == adapter.name


def load(adapter: Adapter, *, actor: User | None = None, is_tested_again: bool = False) -> Loading:
    """Makes every engine that answers hold the version, all at once. An engine that is down gets it from `reconcile`
    when it is back; one on which it failed its self-test does not, unless it is to be tested there again.
    """
    asked, passed = engines(), events.verdicts(adapter)
    refused: dict[Engine, Failure] = {
        engine: EngineError(409, _("The version failed its self-test there."))
        for engine in asked
        if not is_tested_again and adapter.status == Adapter.Status.READY and not passed.get(engine.url, True)
    }
    return _visit([engine for engine in asked if engine not in refused], adapter, actor=actor).without(refused)


@contextmanager
def prepared(adapter: Adapter) -> Iterator[None]:
    """Within it, nothing pushes the version out: it is on its way to an alias. Afterwards it is one in recent use, and
    keeps its place if an alias points at it. That it is on its way shows in a `wanted_until` beyond PREPARING.
    """
    versions.keep_loaded(adapter, timezone.now() + 2 * PREPARING)
    try:
        yield
    finally:
        versions.keep_loaded(adapter, timezone.now() + KEEP_LOADED, is_shortened=True)


def _visit(asked: Sequence[Engine], adapter: Adapter, *, makes_room: bool = True, actor: User | None = None) -> Loading:
    visits = {engine: _Visit(engine, adapter) for engine in asked}
    ready, failures = fleet.ask_each(asked, lambda engine: visits[engine].load())
    while makes_room and (full := [engine for engine in failures if visits[engine].is_full]):
        places = _places(adapter)  # asked anew for each that has to go: a publication may have begun since
        ready_now, failures_now = fleet.ask_each(full, partial(_load_instead, visits, places))
        ready |= ready_now
        failures = {engine: why for engine, why in failures.items() if engine not in ready_now} | failures_now
    for engine, visit in visits.items():
        _record(engine, visit.happened, actor)
        if engine in failures and (makes_room or not visit.is_full):  # else it stays where it was, without a place
            words = fleet.in_words({engine: failures[engine]})
            log.error("%s could not be loaded: %s", adapter, words)
            events.record_engine(adapter, Kind.LOAD_FAILED, engine.url, actor=actor, reason=words)
    return Loading(list(ready), failures)


def _load_instead(visits: dict[Engine, _Visit], places: _Places, engine: Engine) -> None:
    visits[engine].load_instead(places)


def _places(adapter: Adapter) -> _Places:
    wanted_until = Adapter.objects.filter(is_base=False).values_list("name", "wanted_until")
    used = {name: until or NEVER for name, until in wanted_until}
    return _Places(frozenset({adapter.name, *_keeping().values_list("name", flat=True)}), used)


def _record(engine: Engine, happened: list[tuple[str, Kind, str]], actor: User | None) -> None:
    for name, kind, reason in happened:
        log.info("%s: %s on %s. %s", name, kind.label, engine.url, reason)
        if adapter := Adapter.objects.filter(name=name).first():
            events.record_engine(adapter, kind, engine.url, actor=actor, reason=reason)


# --- self-tests -------------------------------------------------------------------------------------------------------
def untested(adapter: Adapter, among: Sequence[Engine]) -> list[Engine]:
    """Engines on which it has not passed, though it has on another: they joined later, or were down."""
    passed = events.verdicts(adapter)
    return [engine for engine in among if any(passed.values()) and not passed.get(engine.url)]


def run_self_test(
    adapter: Adapter, on: Sequence[Engine], *, actor: User | None = None
) -> tuple[dict[Engine, SelfTest], dict[Engine, Failure]]:
    """Compares the adapter's effects with the trainer's on every engine of `on`, all at once; and which could not be asked.

    Raises InvalidAdapter and OSError when its probes cannot be read.
    """
    probes = artifacts.read_probes(adapter.folder)
    results, failures = fleet.ask_each(
        on, lambda engine: selftest.measure(engine, settings.BASE_MODEL_NAME, adapter.engine_name, probes)
    )
    for engine, result in results.items():
        kind = Kind.SELF_TEST_PASSED if result.is_passed else Kind.SELF_TEST_FAILED
        events.record_engine(adapter, kind, engine.url, actor=actor, reason=result.verdict())
    return results, failures


def admit(adapter: Adapter, on: Sequence[Engine], *, actor: User | None = None) -> dict[Engine, Failure]:
    """Tests a version that has passed elsewhere on these engines too. Where it fails it is unloaded: others go on with it.

    Returns why, for those engines that must not answer with it.
    """
    if not on:
        return {}
    try:
        results, failures = run_self_test(adapter, on, actor=actor)
    except (artifacts.InvalidAdapter, OSError) as error:
        return {engine: EngineError(409, str(error)) for engine in on}
    for engine, result in results.items():
        if not result.is_passed:
            failures[engine] = EngineError(409, result.verdict())
            _unload(engine, adapter)
    return failures


def _unload(engine: Engine, adapter: Adapter) -> None:
    try:
        engine.unload(adapter.engine_name)
    except (EngineDown, EngineError) as error:
        log.error("%s could not be unloaded from %s: %s", adapter, engine.url, error)
    else:
        log.info("%s failed its self-test on %s and was unloaded", adapter, engine.url)


# --- reconciling ------------------------------------------------------------------------------------------------------
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
    """Current and previous version and canary of every alias, those that are being prepared to be one of these, and
    those pinned by unfinished answers.
    """
    aliases = Deployment.objects.values_list("adapter", "previous", "canary")
    ids = {pk for row in aliases for pk in row if pk}
    pinned = Message.objects.filter(status__in=Message.UNFINISHED, adapter__isnull=False).values("adapter")
    being_prepared = Q(wanted_until__gt=timezone.now() + PREPARING)
    return Adapter.objects.filter(Q(pk__in=ids) | Q(pk__in=pinned) | being_prepared)


def _ours(rows: QuerySet[Adapter], base_sha256: str) -> dict[str, Adapter]:
    return {row.engine_name: row for row in rows.filter(is_base=False, base_sha256=base_sha256)}


def _reconcile_engine(engine: Engine, base_sha256: str, now: datetime) -> None:
    resident = engine.resident()
    _load_missing(engine, wanted(base_sha256, now), resident)
    for name in sorted(resident):
        # Asked anew for each: a publication may have begun since.
        if OURS.fullmatch(name) and name not in wanted(base_sha256, now):
            _retire(engine, name)
            # One that began between the question and the unloading gets its version back at once.
            _load_missing(engine, wanted(base_sha256, now), engine.resident())


def _retire(engine: Engine, name: str) -> None:
    """One that cannot be unloaded (newer vLLM refuses where the adapter has left its memory) keeps no other one there."""
    try:
        engine.unload(name)
    except EngineError as error:
        log.error("%s could not be unloaded from %s: %s", name, engine.url, error)
    else:
        _record(engine, [(name, Kind.UNLOADED, _("Nobody wanted it any more."))], None)


def _load_missing(engine: Engine, versions: dict[str, Adapter], resident: dict[str, Resident]) -> None:
    """One version that cannot be loaded (its folder is gone) does not keep the others away. Raises EngineDown."""
    keeping = set(_keeping().values_list("name", flat=True))
    for name, adapter in versions.items():
        is_there = name in resident and _is_right(resident[name], adapter)
        if is_there or (adapter.status == Adapter.Status.READY and not events.verdicts(adapter).get(engine.url, True)):
            continue
        # Of those in recent use none pushes out another: a person who asks one does that.
        loading = _visit([engine], adapter, makes_room=name in keeping)
        failures = loading.failures | admit(adapter, untested(adapter, loading.ready))
        if down := [failure for failure in failures.values() if isinstance(failure, EngineDown)]:
            raise down[0]
