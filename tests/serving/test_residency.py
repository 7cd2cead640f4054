from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from pytest_django import Settings

from serving import adapters, chat
from serving.client import EngineError
from serving.models import Adapter, Message
from tests.serving.scripted import TOKEN, ScriptedEngine, running

pytestmark = pytest.mark.django_db
Maker = Callable[[int], Adapter]
LATER = timedelta(minutes=30)  # when no version is in recent use any more


def test_it_loads_again_what_a_restarted_engine_lost(good_adapter: Maker, engine: ScriptedEngine) -> None:
    first, second = good_adapter(1), good_adapter(2)
    adapters.publish(first)
    adapters.publish(second)
    engine.adapters.clear()
    adapters.reconcile(timezone.now() + LATER)
    assert set(engine.adapters) == {first.name, second.name}


def test_it_unloads_what_nobody_wants(good_adapter: Maker, engine: ScriptedEngine) -> None:
    rows = [good_adapter(seed) for seed in range(3)]
    for row in rows:
        adapters.publish(row)
    adapters.reconcile()
    assert set(engine.adapters) == {row.name for row in rows}  # the oldest is in recent use
    adapters.reconcile(timezone.now() + LATER)
    assert set(engine.adapters) == {rows[1].name, rows[2].name}


def test_it_keeps_a_version_while_an_answer_is_pinned_to_it(
    good_adapter: Maker, engine: ScriptedEngine, ada: User
) -> None:
    rows = [good_adapter(seed) for seed in range(3)]
    adapters.publish(rows[0])
    question = chat.start(ada, "Hi")
    for row in rows[1:]:
        adapters.publish(row)
    adapters.reconcile(timezone.now() + LATER)
    assert rows[0].name in engine.adapters
    Message.objects.filter(parent=question).update(status=Message.Status.COMPLETE)
    adapters.reconcile(timezone.now() + LATER)
    assert rows[0].name not in engine.adapters


def test_it_leaves_versions_alone_that_are_not_ours(engine: ScriptedEngine) -> None:
    engine.adapters["somebody-elses"] = "/x"
    adapters.reconcile(timezone.now() + LATER)
    assert "somebody-elses" in engine.adapters


def test_it_goes_on_when_an_engine_is_down(good_adapter: Maker, engine: ScriptedEngine, settings: Settings) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    engine.adapters.clear()
    settings.ENGINE_URLS = ["http://127.0.0.1:9", *settings.ENGINE_URLS]
    adapters.reconcile()
    assert row.name in engine.adapters


def test_it_brings_every_engine_to_the_same_versions(
    good_adapter: Maker, engine: ScriptedEngine, settings: Settings
) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    second = ScriptedEngine()
    with running(second) as url:
        assert settings.ENGINE_TOKEN == TOKEN
        settings.ENGINE_URLS = [*settings.ENGINE_URLS, url]
        adapters.reconcile()
    assert second.adapters == engine.adapters == {row.name: str(row.folder)}


def test_it_loads_the_others_when_one_folder_is_gone(good_adapter: Maker, engine: ScriptedEngine) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    engine.adapters.clear()
    engine.unloadable.add("adapter-0-000000")
    Adapter.objects.create(
        name="adapter-0-000000", sha256="0" * 64, base_sha256=row.base_sha256, wanted_until=timezone.now() + LATER
    )
    adapters.reconcile()
    assert set(engine.adapters) == {row.name}


def test_it_makes_room_for_a_version_beyond_the_limit(good_adapter: Maker, engine: ScriptedEngine) -> None:
    rows = [good_adapter(seed) for seed in range(6)]
    for row in rows:
        adapters.publish(row)
    assert set(engine.adapters) == {row.name for row in rows[2:]}  # the two used longest ago left
    adapters.ensure_loaded(rows[0])
    assert set(engine.adapters) == {row.name for row in (rows[0], *rows[3:])}


def test_it_refuses_when_every_place_is_kept(good_adapter: Maker, engine: ScriptedEngine, ada: User) -> None:
    engine.max_adapters = 2
    rows = [good_adapter(seed) for seed in range(3)]
    adapters.publish(rows[0])
    adapters.publish(rows[1])
    with pytest.raises(EngineError, match="unload one first"):
        adapters.publish(rows[2])
    assert set(engine.adapters) == {rows[0].name, rows[1].name}
    assert adapters.current() == rows[1]


def test_it_keeps_the_others_when_a_load_fails_for_another_reason(good_adapter: Maker, engine: ScriptedEngine) -> None:
    rows = [good_adapter(seed) for seed in range(5)]
    for row in rows[:4]:
        adapters.publish(row)
    engine.unloadable.add(rows[4].name)
    with pytest.raises(EngineError, match="no such folder"):
        adapters.publish(rows[4])
    assert set(engine.adapters) == {row.name for row in rows[:4]}


def test_it_loads_what_aliases_point_at_first(good_adapter: Maker, engine: ScriptedEngine) -> None:
    rows = [good_adapter(seed) for seed in range(5)]
    for row in rows[::-1]:  # the oldest number is current, all are in recent use
        adapters.publish(row)
    engine.adapters.clear()
    engine.max_adapters = 1
    adapters.reconcile()
    assert set(engine.adapters) == {rows[0].name}
    engine.max_adapters = 3
    for _again in range(2):
        adapters.reconcile()
        assert list(engine.adapters) == [rows[0].name, rows[1].name, rows[2].name]


def test_it_makes_room_for_what_an_alias_points_at(good_adapter: Maker, engine: ScriptedEngine) -> None:
    rows = [good_adapter(seed) for seed in range(4)]
    for row in rows:
        adapters.publish(row)
    engine.adapters.clear()
    engine.max_adapters = 2
    adapters.ensure_loaded(rows[0])
    adapters.ensure_loaded(rows[1])
    adapters.reconcile()
    assert set(engine.adapters) == {rows[2].name, rows[3].name}
