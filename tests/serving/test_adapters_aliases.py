"""Aliases beside `current`: each leads a life of its own on engines that all share."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from serving import adapters, trials
from serving.models import Adapter, Deployment, DeploymentEvent, ServedRequest
from tests.serving.scripted import ScriptedEngine

pytestmark = pytest.mark.django_db
Maker = Callable[[int], Adapter]
LATER = timedelta(minutes=30)  # when no version is in recent use any more


@pytest.fixture(autouse=True)
def roomy(engine: ScriptedEngine) -> None:
    engine.max_adapters = 16


def answers(alias: str) -> Adapter:
    return adapters.resolve(alias).adapter


def test_it_makes_an_alias_by_publishing(good_adapter: Maker, ada: User) -> None:
    row = good_adapter(1)
    adapters.publish(row, alias="beta", actor=ada, reason="For the testers.", expected_generation=1)
    assert answers("beta") == row
    assert answers("current").is_base
    made, published = DeploymentEvent.objects.filter(alias="beta").order_by("generation")
    assert (made.generation, made.adapter.is_base) == (1, True)
    assert (published.generation, published.adapter, published.actor) == (2, row, ada)


def test_it_makes_no_alias_for_a_version_that_cannot_answer(good_adapter: Maker, engine: ScriptedEngine) -> None:
    engine.scale = 0.0
    with pytest.raises(adapters.NotServable):
        adapters.publish(good_adapter(1), alias="beta")
    assert not Deployment.objects.filter(alias="beta").exists()
    with pytest.raises(adapters.UnknownModel):
        answers("beta")


def test_it_makes_an_alias_once_of_two_who_saw_none(good_adapter: Maker) -> None:
    first = good_adapter(1)
    seen = adapters.seen("beta")
    adapters.publish(first, alias="beta", expected_generation=seen.generation)
    with pytest.raises(adapters.AliasMoved, match="it is adapter-"):
        adapters.publish(good_adapter(2), alias="beta", expected_generation=seen.generation)
    assert answers("beta") == first


@pytest.mark.parametrize(
    "alias", ["", "Beta", "2nd", "-beta", "be ta", "be_ta", "béta", "beta\n", "a" * 51, "base", "base-9f8e7d", "adapter-7", "adapter-7-1a2b3c"]
)  # fmt: skip
def test_it_makes_no_alias_of_a_name_that_is_none(good_adapter: Maker, engine: ScriptedEngine, alias: str) -> None:
    row = good_adapter(1)
    with pytest.raises(adapters.InvalidAlias):
        adapters.publish(row, alias=alias)
    assert not engine.adapters
    assert not Deployment.objects.exists()


def test_it_hides_no_base_model(good_adapter: Maker, settings: Settings) -> None:
    settings.BASE_MODEL_NAME = "llama"
    with pytest.raises(adapters.InvalidAlias, match="“llama” is a name of versions"):
        adapters.publish(good_adapter(1), alias="llama")


def test_it_keeps_what_any_alias_has_a_use_for(good_adapter: Maker, engine: ScriptedEngine) -> None:
    """Whatever becomes of the others: the version that answers, the one before, and the one on trial."""
    old, new, tried, *others = [good_adapter(seed) for seed in range(6)]
    for row in (old, new):
        adapters.publish(row, alias="beta")
    adapters.start_canary(tried, 0.1, alias="beta")
    for row in (old, new, tried, *others):
        adapters.publish(row)
    adapters.reconcile(timezone.now() + LATER)
    assert set(engine.adapters) == {row.name for row in (old, new, tried, *others[1:])}
    engine.adapters.clear()
    adapters.reconcile(timezone.now() + LATER)
    assert set(engine.adapters) == {row.name for row in (old, new, tried, *others[1:])}


def test_it_retires_what_no_alias_has_a_use_for_any_more(good_adapter: Maker, engine: ScriptedEngine) -> None:
    rows = [good_adapter(seed) for seed in range(3)]
    adapters.publish(rows[0])
    for row in rows:
        adapters.publish(row, alias="beta")
    adapters.reconcile(timezone.now() + LATER)
    assert rows[0].name in engine.adapters  # by `current` alone
    for row in rows[1:]:
        adapters.publish(row)
    adapters.reconcile(timezone.now() + LATER)
    assert set(engine.adapters) == {row.name for row in rows[1:]}


def test_it_rolls_back_and_tries_out_under_one_alias_only(good_adapter: Maker) -> None:
    one, other, tried = [good_adapter(seed) for seed in range(3)]
    for alias in ("current", "beta"):
        adapters.publish(one, alias=alias)
        adapters.publish(other, alias=alias)
    adapters.start_canary(tried, 1.0, alias="beta")
    assert [adapters.resolve(alias, "a talk").adapter for alias in ("current", "beta")] == [other, tried]
    adapters.rollback("beta")
    assert [answers(alias) for alias in ("current", "beta")] == [other, one]
    adapters.promote_canary("beta")
    assert [answers(alias) for alias in ("current", "beta")] == [other, tried]
    assert adapters.deployment().generation == 3


def test_it_ends_by_itself_what_goes_badly_under_one_alias(good_adapter: Maker) -> None:
    good, bad = good_adapter(1), good_adapter(2)
    adapters.publish(good)
    adapters.publish(good, alias="beta")
    adapters.publish(bad, alias="beta")
    now = timezone.now()
    ServedRequest.objects.bulk_create(
        ServedRequest(
            request_id="x", at=now, endpoint="completions", alias="beta", adapter=bad, outcome="failed", status=502, seconds=1,
        )
        for _i in range(30)
    )  # fmt: skip
    trials.judge(now)
    assert [answers(alias) for alias in ("current", "beta")] == [good, good]
    assert [adapters.deployment(alias).generation for alias in ("current", "beta")] == [2, 4]


def test_it_removes_an_alias_and_the_places_that_it_kept(
    good_adapter: Maker, engine: ScriptedEngine, ada: User
) -> None:
    one, other, tried = [good_adapter(seed) for seed in range(3)]
    adapters.publish(one)
    for row in (one, other):
        adapters.publish(row, alias="beta")
    adapters.start_canary(tried, 0.5, alias="beta")
    adapters.remove_alias("beta", actor=ada, reason="The test is over.", expected_generation=4)
    with pytest.raises(adapters.UnknownModel):
        answers("beta")
    event = DeploymentEvent.objects.get(kind="alias removed")
    assert (event.alias, event.generation, event.adapter) == ("beta", 5, other)
    assert (event.actor, event.reason) == (ada, "The test is over.")
    adapters.reconcile(timezone.now() + LATER)
    assert set(engine.adapters) == {one.name}


def test_it_removes_only_what_was_seen(good_adapter: Maker) -> None:
    adapters.publish(good_adapter(1), alias="beta")
    with pytest.raises(adapters.AliasMoved):
        adapters.remove_alias("beta", expected_generation=1)
    with pytest.raises(adapters.AliasMoved):
        adapters.remove_alias("gamma")
    assert not answers("beta").is_base


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("act", [adapters.publish, partial(adapters.start_canary, share=0.5)])
def test_it_gives_way_to_a_removal_while_an_engine_loads(
    good_adapter: Maker, engine: ScriptedEngine, act: Callable[..., Deployment]
) -> None:
    adapters.publish(good_adapter(1), alias="beta")
    late = good_adapter(2)

    def remove() -> None:
        try:
            adapters.remove_alias("beta")
        finally:
            connection.close()

    engine.before_load = remove
    with pytest.raises(adapters.AliasMoved):
        act(late, alias="beta", expected_generation=2)
    assert not Deployment.objects.filter(alias="beta").exists()


def test_it_never_removes_what_the_chat_answers_with(good_adapter: Maker) -> None:
    adapters.publish(good_adapter(1))
    with pytest.raises(adapters.NotServable, match="cannot be removed"):
        adapters.remove_alias("current")
    assert not answers("current").is_base


def test_it_makes_a_removed_alias_again_with_generations_of_its_own(good_adapter: Maker) -> None:
    row = good_adapter(1)
    adapters.publish(row, alias="beta")
    adapters.remove_alias("beta")
    with pytest.raises(adapters.AliasMoved):
        adapters.publish(row, alias="beta", expected_generation=2)  # of a page that showed the first one
    assert not Deployment.objects.filter(alias="beta").exists()
    adapters.publish(row, alias="beta", expected_generation=adapters.seen("beta").generation)
    assert answers("beta") == row
    generations = (
        DeploymentEvent.objects.filter(alias="beta").order_by("generation").values_list("generation", flat=True)
    )
    assert list(generations) == [1, 2, 3, 4, 5]


def test_it_makes_no_alias_by_going_back_or_ending_a_trial(good_adapter: Maker) -> None:
    with pytest.raises(adapters.NothingToRollBack):
        adapters.rollback("beta")
    with pytest.raises(adapters.NoCanary):
        adapters.stop_canary("beta")
    assert not Deployment.objects.filter(alias="beta").exists()
