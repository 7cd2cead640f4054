from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from serving import adapters, chat, client, residency
from serving.client import EngineDown, EngineError
from serving.models import Adapter, DeploymentEvent, Message
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


def test_it_unloads_the_others_when_one_cannot_be(good_adapter: Maker, engine: ScriptedEngine) -> None:
    rows = [good_adapter(seed) for seed in range(4)]
    for row in rows:
        adapters.publish(row)
    engine.stuck.add(rows[0].name)
    adapters.reconcile(timezone.now() + LATER)
    assert set(engine.adapters) == {rows[0].name, rows[2].name, rows[3].name}


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


def test_it_loads_again_what_answers_are_pinned_to(good_adapter: Maker, engine: ScriptedEngine, ada: User) -> None:
    """The engine was restarted under an answer that began two versions ago."""
    rows = [good_adapter(seed) for seed in range(3)]
    adapters.publish(rows[0])
    chat.start(ada, "Hi")
    for row in rows[1:]:
        adapters.publish(row)
    engine.adapters.clear()
    adapters.reconcile(timezone.now() + LATER)
    assert set(engine.adapters) == {row.name for row in rows}


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


def test_it_goes_on_when_an_engine_answers_nonsense(
    good_adapter: Maker, engine: ScriptedEngine, settings: Settings
) -> None:
    row, odd = good_adapter(1), ScriptedEngine()
    adapters.publish(row)
    engine.adapters.clear()
    odd.page = "Back in a minute."
    with running(odd) as url:
        settings.ENGINE_URLS = [url, *settings.ENGINE_URLS]
        adapters.reconcile()
    assert set(engine.adapters) == {row.name}


def test_it_brings_every_engine_to_the_same_versions(
    good_adapter: Maker, engine: ScriptedEngine, settings: Settings
) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    second = ScriptedEngine()
    second.effects = engine.effects
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


def test_it_pushes_out_one_version_even_if_answers_hold_its_place(
    good_adapter: Maker, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "LEAVING_LOOK", 0.01)
    first, second, third = (good_adapter(seed) for seed in range(3))
    engine.max_adapters = 2
    adapters.ensure_loaded(first)
    adapters.ensure_loaded(second)
    engine.lingering = 3
    adapters.ensure_loaded(third)
    assert set(engine.adapters) == {second.name, third.name}


def test_it_gives_up_when_what_went_is_always_back(
    good_adapter: Maker, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody asks for it by its name, again and again."""
    monkeypatch.setattr(residency, "LEAVING_LOOK", 0.01)
    monkeypatch.setattr(residency, "LEAVING_SECONDS", 0.1)
    monkeypatch.setattr(residency, "MAKING_ROOM_SECONDS", 0.5)
    engine.max_adapters = 1
    first, second = good_adapter(1), good_adapter(2)
    adapters.ensure_loaded(first)
    engine.before_load = lambda: engine.adapters.setdefault(first.name, str(first.folder))
    with pytest.raises(EngineError, match="unload one first"):
        adapters.ensure_loaded(second)


def test_it_complains_of_no_version_that_has_no_place(good_adapter: Maker, engine: ScriptedEngine) -> None:
    engine.max_adapters = 1
    adapters.ensure_loaded(good_adapter(1))
    adapters.ensure_loaded(good_adapter(2))
    adapters.reconcile()
    assert not DeploymentEvent.objects.filter(kind=DeploymentEvent.Kind.LOAD_FAILED).exists()


def test_it_refuses_when_an_engine_unloads_nothing(good_adapter: Maker, engine: ScriptedEngine) -> None:
    """The same version would be chosen to go, again and again."""
    engine.max_adapters = 1
    first, second = good_adapter(1), good_adapter(2)
    adapters.ensure_loaded(first)
    engine.stuck.add(first.name)
    with pytest.raises(EngineError):
        adapters.ensure_loaded(second)


def test_it_gives_up_on_an_engine_that_goes_away_full(
    good_adapter: Maker, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.max_adapters = 1
    first, second = good_adapter(1), good_adapter(2)
    adapters.ensure_loaded(first)

    def gone(_: client.Engine) -> list[str]:
        raise EngineDown("ConnectError")

    monkeypatch.setattr(client.Engine, "models", gone)
    with pytest.raises(EngineDown):
        adapters.ensure_loaded(second)


@pytest.mark.django_db(transaction=True)
def test_it_pushes_out_no_version_that_is_being_published(good_adapter: Maker, engine: ScriptedEngine) -> None:
    """All others keep their places, and the new one has no alias yet, when a program asks a fifth by its name."""
    first, second, on_trial, new, asked = (good_adapter(seed) for seed in range(5))
    adapters.publish(first)
    adapters.publish(second)
    adapters.start_canary(on_trial, 0.1)
    refused: list[EngineError] = []

    def ask() -> None:
        engine.before_probe = lambda: None
        try:
            adapters.ensure_loaded(asked)
        except EngineError as error:
            refused.append(error)
        finally:
            connection.close()

    engine.before_probe = ask
    adapters.publish(new)
    assert [error.is_full for error in refused] == [True]
    assert set(engine.adapters) == {row.name for row in (first, second, on_trial, new)}
    new.refresh_from_db()
    assert new.wanted_until is not None
    assert new.wanted_until <= timezone.now() + adapters.KEEP_LOADED  # in recent use, and no longer on its way


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


def test_it_replaces_other_weights_under_a_versions_name(good_adapter: Maker, engine: ScriptedEngine) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    engine.adapters[row.name], engine.sha256s[row.name] = "/somebody/elses", "0" * 64
    adapters.reconcile()
    assert engine.adapters == {row.name: str(row.folder)}
    assert told(row) == ["loaded", "unloaded", "loaded"]


def test_it_leaves_weights_alone_that_are_right(good_adapter: Maker, engine: ScriptedEngine) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    engine.sha256s[row.name] = row.sha256
    engine.requests.clear()
    adapters.reconcile()
    assert engine.requests == []


def test_it_answers_with_no_other_base_model(engine: ScriptedEngine) -> None:
    engine.sha256s["base"] = "0" * 64
    with pytest.raises(EngineError, match="not the one that MODEL names"):
        adapters.ensure_loaded(adapters.base())


def told(row: Adapter) -> list[str]:
    """What the audit log says happened to it on engines, besides its self-test."""
    events = row.events.filter(alias="").exclude(kind__startswith="self-test").order_by("pk")
    return list(events.values_list("kind", flat=True))


def test_it_retires_a_version_and_publishes_it_again(good_adapter: Maker, engine: ScriptedEngine) -> None:
    rows = [good_adapter(seed) for seed in range(3)]
    for row in rows:
        adapters.publish(row)
    n_probed = len(engine.paths("/v1/completions"))
    adapters.reconcile(timezone.now() + LATER)
    assert rows[0].name not in engine.adapters
    assert adapters.publish(rows[0]).adapter == rows[0]
    assert rows[0].name in engine.adapters
    assert told(rows[0]) == ["loaded", "unloaded", "loaded"]
    assert rows[0].events.get(kind="unloaded").reason == "Nobody wanted it any more."
    assert len(engine.paths("/v1/completions")) == n_probed  # it was tested once


def test_it_says_once_that_a_version_cannot_be_loaded(good_adapter: Maker, engine: ScriptedEngine) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    engine.adapters.clear()
    engine.unloadable.add(row.name)
    for _again in range(3):
        adapters.reconcile()
    assert told(row) == ["loaded", "load failed"]
    assert row.events.get(kind="load failed").reason == f"{engine.url}: no such folder"
    engine.unloadable.clear()
    adapters.reconcile()
    assert told(row) == ["loaded", "load failed", "loaded"]


def test_it_says_what_made_room_for_what(good_adapter: Maker, engine: ScriptedEngine) -> None:
    rows = [good_adapter(seed) for seed in range(5)]
    for row in rows:
        adapters.publish(row)
    assert rows[0].events.get(kind="unloaded").reason == f"It made room for {rows[4].name}."


def test_it_uses_an_engine_that_takes_a_version_when_another_refuses(
    good_adapter: Maker, engine: ScriptedEngine, settings: Settings
) -> None:
    row = good_adapter(1)
    other = ScriptedEngine()
    other.unloadable.add(row.name)
    with running(other) as url:
        settings.ENGINE_URLS = [url, *settings.ENGINE_URLS]
        assert [ready.url for ready in adapters.ensure_loaded(row)] == [engine.url]


def test_it_gives_a_version_to_an_engine_that_comes_back(
    good_adapter: Maker, engine: ScriptedEngine, settings: Settings
) -> None:
    """It was published without this one, which starts with nothing."""
    row = good_adapter(1)
    down = ScriptedEngine()
    down.effects = engine.effects
    with running(down) as url:
        port = int(url.rpartition(":")[2])
    settings.ENGINE_URLS = [*settings.ENGINE_URLS, url]
    adapters.publish(row, is_forced=True, reason="It burns.")
    assert down.adapters == {}
    with running(down, port):
        adapters.reconcile()
    assert down.adapters == {row.name: str(row.folder)}


def test_it_tests_a_version_on_an_engine_that_joins(
    good_adapter: Maker, engine: ScriptedEngine, settings: Settings
) -> None:
    """It applies the version wrongly: it is unloaded there, others go on, and it is not tried again every 15 seconds."""
    row = good_adapter(1)
    adapters.publish(row)
    joined = ScriptedEngine()
    joined.effects, joined.scale = engine.effects, 0.5
    with running(joined) as url:
        settings.ENGINE_URLS = [*settings.ENGINE_URLS, url]
        for _again in range(3):
            adapters.reconcile()
        assert joined.adapters == {}
        assert len(joined.paths("/v1/load_lora_adapter")) == 1
        assert [ready.url for ready in adapters.ensure_loaded(row)] == [engine.url]
        with pytest.raises(adapters.NotServable, match="slope"):
            adapters.publish(row)
        row.refresh_from_db()
        assert row.status == Adapter.Status.READY
        joined.scale = 1.0  # it was repaired
        adapters.publish(row)
        assert joined.adapters == {row.name: str(row.folder)}


def test_it_tests_a_version_once_on_an_engine(good_adapter: Maker, engine: ScriptedEngine) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    n_probed = len(engine.paths("/v1/completions"))
    engine.adapters.clear()
    adapters.reconcile()
    assert row.name in engine.adapters
    assert len(engine.paths("/v1/completions")) == n_probed
