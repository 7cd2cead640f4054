"""Deployments: what is done with versions and aliases, and by whom. The face of this package for all others.

Publishing does, in this order:
  1. load the version on every engine at once, under its own name, beside whatever is loaded; from here to the end nothing
     pushes it out;
  2. self-test it on every engine on which it has not passed: a failure marks it REJECTED and moves nothing;
  3. warm it on every engine with one short request;
  4. move the alias, one conditional update on the generation number, and write the event in the same transaction.
Requests resolved the alias before and keep their version, which drains: it stays loaded while it is current, previous, on
trial, or pinned by an answer that is being written. Then it is retired, that is unloaded, and can be published again.
A canary goes through the same steps before it gets its share. A rollback goes back to a version that is loaded and was
tested, so steps 1 and 2 find nothing to do. No network call happens inside a transaction.
"""

import math
from dataclasses import replace
from datetime import datetime

from django.contrib.auth.models import User
from django.utils import timezone
from django.utils.translation import gettext as _

from serving import aliases, fleet, residency, versions
from serving.aliases import (
    CURRENT,
    AliasMoved,
    Choice,
    Decision,
    InvalidAlias,
    choose,
    current,
    deployment,
    resolve,
    seen,
)
from serving.artifacts import InvalidAdapter
from serving.client import Engine
from serving.events import Kind
from serving.models import Adapter, Deployment
from serving.residency import KEEP_LOADED, Loading
from serving.versions import UnknownModel, base, register, servable

__all__ = [
    "CURRENT", "KEEP_LOADED", "AliasMoved", "Choice", "InvalidAdapter", "InvalidAlias", "NoCanary", "NotServable",
    "NothingToRollBack", "UnknownModel", "base", "change_canary", "choose", "current", "deployment",
    "ensure_loaded", "promote_canary", "publish", "reconcile", "register", "remove_alias", "resolve", "rollback", "seen",
    "servable", "start_canary", "stop_canary",
]  # fmt: skip

WARM_MESSAGES = [{"role": "user", "content": "Hello"}]


class NotServable(Exception):
    """This version cannot be published or tried out; the message says why."""


class NothingToRollBack(Exception):
    """The alias has never pointed anywhere else."""


class NoCanary(Exception):
    """No version is on trial under this alias."""


# --- engines ----------------------------------------------------------------------------------------------------------
def reconcile(now: datetime | None = None) -> None:
    """Brings every engine to what the rows want; see `residency.reconcile`."""
    deployment()
    residency.reconcile(base().sha256, now or timezone.now())


def ensure_loaded(adapter: Adapter) -> list[Engine]:
    """Makes every engine that answers hold the version, keeps it loaded for KEEP_LOADED, and returns those engines.

    Raises EngineDown when none answers, EngineError when all that do refuse.
    """
    loading = _load(adapter, None)
    loading.check_any()
    return loading.ready


def _load(adapter: Adapter, actor: User | None, *, is_tested_again: bool = False) -> Loading:
    versions.keep_loaded(adapter, timezone.now() + KEEP_LOADED)
    return residency.load(adapter, actor=actor, is_tested_again=is_tested_again)


def _prepare(adapter: Adapter, decision: Decision, *, is_forced: bool, tests: bool = True) -> Decision:
    """Steps 1 to 3. With `is_forced` engines that fail are left out, and the reason says so: reconciliation gives them the
    version, and until then they get no request for it. Raises NotServable, EngineDown, EngineError.
    """
    loading = _load(adapter, decision.actor, is_tested_again=tests)
    _check_everywhere(adapter, loading, is_forced)
    if tests:
        loading = _test(adapter, loading, decision.actor)
        _check_everywhere(adapter, loading, is_forced)
    _answers, failures = fleet.ask_each(loading.ready, lambda engine: _warm(engine, adapter))
    loading = loading.without(failures)
    _check_everywhere(adapter, loading, is_forced)
    if not loading.failures:
        return decision
    without = _("without %s") % fleet.in_words(loading.failures)
    return replace(decision, reason=f"{decision.reason} ({without})")


def _test(adapter: Adapter, loading: Loading, actor: User | None) -> Loading:
    """Tests a version where it has not passed yet. Engines that could not be asked, and those on which alone it fails, are
    ready no more; failing before it has passed anywhere rejects it. Raises NotServable.
    """
    if adapter.status == Adapter.Status.READY:
        return loading.without(residency.admit(adapter, residency.untested(adapter, loading.ready), actor=actor))
    try:
        results, failures = residency.run_self_test(adapter, loading.ready, actor=actor)
    except (InvalidAdapter, OSError) as error:
        versions.set_tested(adapter, is_passed=False, error=str(error))
        raise NotServable(adapter.error) from error
    for shown in sorted(results.values(), key=lambda result: result.is_passed)[
        :1
    ]:  # one that failed, where there is one
        verdict = "" if shown.is_passed else shown.verdict()
        versions.set_tested(adapter, is_passed=shown.is_passed, error=verdict, self_test=shown.to_dict())
        if verdict:
            raise NotServable(verdict)
    return loading.without(failures)


def _warm(engine: Engine, adapter: Adapter) -> None:
    engine.chat(adapter.engine_name, WARM_MESSAGES, max_tokens=1, temperature=0.0)


def _check_everywhere(adapter: Adapter, loading: Loading, is_forced: bool) -> None:
    loading.check_any()
    if loading.failures and not is_forced:
        raise NotServable(
            _("%(adapter)s is not on every model server: %(engines)s. Try again when they are back, or go on without.")
            % {"adapter": adapter, "engines": fleet.in_words(loading.failures)}
        )


# --- publishing -------------------------------------------------------------------------------------------------------
def publish(
    adapter: Adapter,
    *,
    alias: str = CURRENT,
    actor: User | None = None,
    reason: str = "",
    expected_generation: int | None = None,
    is_forced: bool = False,
) -> Deployment:
    """Makes `adapter` what the alias answers with; an alias that is not there yet is made once the version is ready.
    Publishing what is published already changes nothing.

    A rejected version is tested again: the fault may have been the engine's. With `expected_generation` the alias is
    moved only from that generation; without it, of two publications at once the later one wins. With `is_forced`, which
    takes a reason, engines that do not answer are left out. Raises InvalidAlias, NotServable (of another base, failing
    its self-test now, not on every engine), AliasMoved, EngineDown, EngineError.
    """
    decision = Decision(actor, reason, expected_generation)
    _check_servable(adapter)
    _check_forced(reason, is_forced)
    row = seen(alias)
    aliases.check_generation(row, expected_generation)  # before an engine is put to work
    with residency.prepared(adapter):
        decision = _prepare(adapter, decision, is_forced=is_forced)
        kind = Kind.CANARY_PROMOTED if row.canary == adapter else Kind.PUBLISHED
        return aliases.move(alias, adapter, decision, kind)


def rollback(
    alias: str = CURRENT, *, actor: User | None = None, reason: str = "", expected_generation: int | None = None
) -> Deployment:
    """Back to the version before; once more returns. It is loaded and was tested, so this is a check and a move.

    It goes on without engines that fail: what people are fleeing from does not wait for a repair. `expected_generation` is
    the one that the person saw: "the version before" means another one after each move. Raises NothingToRollBack,
    AliasMoved, EngineDown and EngineError when no engine can answer with it.
    """
    row = seen(alias)
    aliases.check_generation(row, expected_generation)
    if row.previous is None:
        raise NothingToRollBack(_("“%s” has had only one version so far.") % alias)
    # Never from a generation that this has not seen: it would be another version that is gone back to.
    decision = Decision(actor, reason or _("Rolled back."), row.generation)
    decision = _prepare(row.previous, decision, is_forced=True, tests=False)
    return aliases.move(alias, row.previous, decision, Kind.ROLLED_BACK)


def remove_alias(
    alias: str, *, actor: User | None = None, reason: str = "", expected_generation: int | None = None
) -> None:
    """Asks no engine: what no other alias has a use for is retired by reconciliation. Raises NotServable, AliasMoved."""
    if alias == CURRENT:
        raise NotServable(_("“%s” is what the chat answers with. It cannot be removed.") % alias)
    aliases.remove(alias, Decision(actor, reason, expected_generation))


# --- canaries ---------------------------------------------------------------------------------------------------------
def start_canary(
    adapter: Adapter,
    share: float,
    *,
    alias: str = CURRENT,
    actor: User | None = None,
    reason: str = "",
    expected_generation: int | None = None,
    is_forced: bool = False,
) -> Deployment:
    """Lets `adapter` answer this share (0 to 1) of the alias's conversations; loaded, tested and warmed as for publishing.

    Raises NotServable (also while another one is on trial) and what `publish` raises.
    """
    _check_servable(adapter)
    _check_share(share)
    _check_forced(reason, is_forced)
    row = seen(alias)
    aliases.check_generation(row, expected_generation)
    if row.adapter == adapter:
        raise NotServable(_("%s answers everybody already.") % adapter)
    if row.canary not in (None, adapter):
        raise NotServable(_("%s is on trial already. Promote or stop it first.") % row.canary)
    with residency.prepared(adapter):
        decision = _prepare(adapter, Decision(actor, reason, row.generation), is_forced=is_forced)
        return aliases.try_out(alias, adapter, share, decision)


def change_canary(
    share: float,
    *,
    alias: str = CURRENT,
    actor: User | None = None,
    reason: str = "",
    expected_generation: int | None = None,
) -> Deployment:
    """Another share. As it grows, the conversations that have the canary keep it. Raises NoCanary, NotServable, AliasMoved."""
    _check_share(share)
    row, canary = _on_trial(alias, expected_generation)
    return aliases.try_out(alias, canary, share, Decision(actor, reason, row.generation))


def promote_canary(
    alias: str = CURRENT, *, actor: User | None = None, reason: str = "", expected_generation: int | None = None
) -> Deployment:
    """The canary answers everybody; what answered before is kept as previous. Raises NoCanary and what `publish` raises."""
    row, canary = _on_trial(alias, expected_generation)
    return publish(canary, alias=alias, actor=actor, reason=reason, expected_generation=row.generation)


def stop_canary(
    alias: str = CURRENT, *, actor: User | None = None, reason: str = "", expected_generation: int | None = None
) -> Deployment:
    """The trial ends and everybody is answered as before. Asks no engine. Raises NoCanary, AliasMoved."""
    row, canary = _on_trial(alias, expected_generation)
    return aliases.end_trial(row, canary, Decision(actor, reason, row.generation))


def _on_trial(alias: str, expected_generation: int | None) -> tuple[Deployment, Adapter]:
    row = seen(alias)
    aliases.check_generation(row, expected_generation)
    if row.canary is None:
        raise NoCanary(_("No version is on trial under “%s”.") % alias)
    return row, row.canary


def _check_servable(adapter: Adapter) -> None:
    adapter.refresh_from_db()
    if adapter.base_sha256 != base().sha256:
        raise NotServable(_("%s was trained on another base model than MODEL.") % adapter)


def _check_share(share: float) -> None:
    if not (math.isfinite(share) and 0 <= share <= 1):
        raise NotServable(_("The share of conversations must be between 0 and 1."))


def _check_forced(reason: str, is_forced: bool) -> None:
    if is_forced and not reason.strip():
        raise NotServable(_("Give a reason for going on without the model servers that do not answer."))
