import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connection
from pytest_django import Settings

from serving import adapters
from serving.client import EngineDown
from serving.models import Adapter, Deployment, DeploymentEvent
from tests.serving import folders
from tests.serving.scripted import ScriptedEngine

pytestmark = pytest.mark.django_db
Maker = Callable[[int], Adapter]


def history() -> list[tuple[int, str]]:
    return list(DeploymentEvent.objects.order_by("generation").values_list("generation", "adapter__name"))


# --- registering ------------------------------------------------------------------------------------------------------
def test_it_makes_the_base_once(base_model: Path) -> None:
    base = adapters.base()
    assert base == adapters.base()
    assert (base.name, base.is_base, base.status) == ("base-bbbbbb", True, Adapter.Status.READY)
    assert base.engine_name == "base"


def test_it_says_when_model_is_not_prepared(settings: Settings, tmp_path: Path) -> None:
    settings.MODEL = str(tmp_path)
    with pytest.raises(adapters.InvalidAdapter, match="make model"):
        adapters.base()


def test_it_registers_a_folder_under_number_and_hash(adapter: Maker) -> None:
    row = adapter(1)
    assert row.name == f"adapter-{row.pk}-{row.sha256[:6]}"
    assert row.status == Adapter.Status.REGISTERED
    assert row.manifest["run"] == 7
    assert (row.folder / "adapter_model.safetensors").is_file()


def test_it_registers_the_same_content_once(base_model: Path, tmp_path: Path) -> None:
    first = adapters.register(folders.write(tmp_path / "a", seed=1), notes="first")
    again = adapters.register(folders.write(tmp_path / "b", seed=1), notes="second")
    assert first == again
    assert again.notes == "first"
    assert adapters.register(folders.write(tmp_path / "c", seed=2)) != first
    assert len(list(first.folder.parent.iterdir())) == 2


def test_it_refuses_known_weights_with_another_scale(base_model: Path, tmp_path: Path) -> None:
    adapters.register(folders.write(tmp_path / "a"))
    with pytest.raises(adapters.InvalidAdapter, match="same weights"):
        adapters.register(folders.write(tmp_path / "b", config_changes={"lora_alpha": 16}))


def test_it_restores_a_folder_that_was_lost(base_model: Path, tmp_path: Path) -> None:
    row = adapters.register(folders.write(tmp_path / "a"))
    row.folder.rename(tmp_path / "gone")
    adapters.register(tmp_path / "a")
    assert (row.folder / "manifest.json").is_file()


def test_it_leaves_nothing_of_a_refused_folder(settings: Settings, base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(adapters.InvalidAdapter):
        adapters.register(folders.write(tmp_path / "a", config_changes={"use_dora": True}))
    assert list(settings.ADAPTERS_DIR.iterdir()) == []
    assert not Adapter.objects.filter(is_base=False).exists()


def test_it_refuses_another_chat_template(base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(adapters.InvalidAdapter, match="chat template"):
        adapters.register(folders.write(tmp_path / "a", manifest_changes={"chat_template_sha256": "d" * 64}))


# --- names ------------------------------------------------------------------------------------------------------------
def test_it_resolves_aliases_and_names(good_adapter: Maker) -> None:
    row = good_adapter(1)
    base = adapters.base()
    assert adapters.resolve("current") == adapters.resolve("base") == adapters.resolve(base.name) == base
    adapters.publish(row)
    assert adapters.resolve("current") == adapters.resolve(row.name) == adapters.current() == row


def test_it_does_not_resolve_what_may_not_answer(adapter: Maker) -> None:
    for name in ("nobody", adapter(1).name, ""):
        with pytest.raises(adapters.UnknownModel):
            adapters.resolve(name)


def test_it_moves_an_alias_to_the_new_base(settings: Settings, good_adapter: Maker, base_model: Path) -> None:
    adapters.publish(good_adapter(1))
    (base_model / "alignapp-model.json").write_text('{"sha256": "' + "e" * 64 + '"}')
    assert adapters.current().name == "base-eeeeee"
    assert adapters.deployment().previous is None  # the old version can never answer again
    assert adapters.deployment().generation == 3


# --- publishing -------------------------------------------------------------------------------------------------------
def test_it_publishes_with_a_self_test_and_an_event(good_adapter: Maker, engine: ScriptedEngine, ada: User) -> None:
    row = good_adapter(1)
    deployment = adapters.publish(row, actor=ada, reason="better")
    row.refresh_from_db()
    assert (deployment.adapter, deployment.previous, deployment.generation) == (row, adapters.base(), 2)
    assert row.status == Adapter.Status.READY
    assert row.self_test["slope"] == pytest.approx(1)
    assert engine.adapters == {row.name: str(row.folder)}
    event = DeploymentEvent.objects.get(generation=2)
    assert (event.adapter, event.previous, event.actor, event.reason) == (row, adapters.base(), ada, "better")


def test_it_warms_a_version_before_it_answers(good_adapter: Maker, engine: ScriptedEngine) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    assert [body["model"] for body in engine.paths("/v1/chat/completions")] == [row.name]


def test_it_tests_a_version_once_in_its_life(good_adapter: Maker, engine: ScriptedEngine) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    n_probed = len(engine.paths("/v1/completions"))
    adapters.rollback()
    adapters.publish(row)
    assert len(engine.paths("/v1/completions")) == n_probed == 2 * folders.N_PROBES


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, -1.0])
def test_it_rejects_a_version_that_is_applied_wrongly(
    good_adapter: Maker, engine: ScriptedEngine, scale: float
) -> None:
    row = good_adapter(1)
    engine.scale = scale
    with pytest.raises(adapters.NotServable, match="does not do what it did"):
        adapters.publish(row)
    row.refresh_from_db()
    assert row.status == Adapter.Status.REJECTED
    assert row.self_test["is_passed"] is False
    assert adapters.current().is_base


def test_it_tests_a_rejected_version_again(good_adapter: Maker, engine: ScriptedEngine) -> None:
    row = good_adapter(1)
    engine.scale = 0.0
    for _again in range(2):
        with pytest.raises(adapters.NotServable, match="does not do what it did"):
            adapters.publish(row)
    assert adapters.current().is_base
    engine.scale = 1.0  # the engine was repaired
    assert adapters.publish(row).adapter == row
    row.refresh_from_db()
    assert (row.status, row.error) == (Adapter.Status.READY, "")


def test_it_changes_nothing_when_published_twice(good_adapter: Maker) -> None:
    row = good_adapter(1)
    assert adapters.publish(row).generation == adapters.publish(row).generation == 2
    assert len(history()) == 2


def test_it_moves_nothing_while_no_engine_answers(good_adapter: Maker, settings: Settings) -> None:
    row = good_adapter(1)
    settings.ENGINE_URLS = ["http://127.0.0.1:9"]
    with pytest.raises(EngineDown):
        adapters.publish(row)
    row.refresh_from_db()
    assert row.status == Adapter.Status.REGISTERED
    assert adapters.current().is_base


def test_it_publishes_on_the_engines_that_answer(good_adapter: Maker, settings: Settings) -> None:
    settings.ENGINE_URLS = ["http://127.0.0.1:9", *settings.ENGINE_URLS]
    assert adapters.publish(good_adapter(1)).generation == 2


def test_it_rolls_back_and_forth(good_adapter: Maker, ada: User) -> None:
    first, second = good_adapter(1), good_adapter(2)
    adapters.publish(first)
    adapters.publish(second)
    assert adapters.rollback(actor=ada, reason="worse").adapter == first
    assert adapters.rollback().adapter == second
    assert history() == [
        (1, "base-bbbbbb"), (2, first.name), (3, second.name), (4, first.name), (5, second.name),
    ]  # fmt: skip


def test_it_rolls_back_only_what_was_seen(good_adapter: Maker) -> None:
    first, second = good_adapter(1), good_adapter(2)
    adapters.publish(first)
    seen = adapters.publish(second).generation
    assert adapters.rollback(expected_generation=seen).adapter == first
    with pytest.raises(adapters.AliasMoved, match=first.name):
        adapters.rollback(expected_generation=seen)  # the other administrator's page
    assert adapters.current() == first


def test_it_publishes_only_from_the_expected_generation(good_adapter: Maker, engine: ScriptedEngine) -> None:
    first, second = good_adapter(1), good_adapter(2)
    seen = adapters.deployment().generation
    adapters.publish(first, expected_generation=seen)
    with pytest.raises(adapters.AliasMoved):
        adapters.publish(second, expected_generation=seen)
    assert adapters.current() == first
    assert second.name not in engine.adapters  # nothing was loaded in vain


@pytest.mark.django_db(transaction=True)
def test_it_gives_way_to_a_publication_during_its_own(good_adapter: Maker, engine: ScriptedEngine) -> None:
    ours, theirs = good_adapter(1), good_adapter(2)
    seen = adapters.deployment().generation

    def publish_theirs() -> None:
        engine.before_load = lambda: None
        try:
            adapters.publish(theirs)
        finally:
            connection.close()

    engine.before_load = publish_theirs
    with pytest.raises(adapters.AliasMoved):
        adapters.publish(ours, expected_generation=seen)
    assert history() == [(1, "base-bbbbbb"), (2, theirs.name)]


def test_it_says_when_there_is_nothing_to_roll_back_to(engine: ScriptedEngine) -> None:
    with pytest.raises(adapters.NothingToRollBack):
        adapters.rollback()


@pytest.mark.django_db(transaction=True)
def test_it_gives_each_of_many_publications_its_own_generation(good_adapter: Maker, engine: ScriptedEngine) -> None:
    rows = [good_adapter(seed) for seed in range(6)]
    engine.max_adapters = len(rows)
    failures: list[BaseException] = []

    def publish(row: Adapter) -> None:
        try:
            adapters.publish(row)
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            connection.close()

    threads = [threading.Thread(target=publish, args=[row]) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    events = list(DeploymentEvent.objects.order_by("generation"))
    assert [event.generation for event in events] == list(range(1, 8))
    # Each saw what was current when it moved the alias: the history is a chain.
    assert [event.previous for event in events[1:]] == [event.adapter for event in events[:-1]]
    last = Deployment.objects.get(alias="current")
    assert (last.generation, last.adapter) == (7, events[-1].adapter)
