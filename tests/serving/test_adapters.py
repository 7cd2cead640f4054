import threading
import time
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.db import connection
from pytest_django import DjangoAssertNumQueries, Settings

from serving import adapters
from serving.client import EngineDown
from serving.models import Adapter, Deployment, DeploymentEvent
from tests.serving.scripted import ScriptedEngine, running

pytestmark = pytest.mark.django_db
Maker = Callable[[int], Adapter]


def history() -> list[tuple[int | None, str]]:
    moves = DeploymentEvent.objects.exclude(alias="")
    return list(moves.order_by("generation").values_list("generation", "adapter__name"))


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
    assert len(engine.paths("/v1/completions")) == n_probed == 2


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


def test_it_moves_nothing_until_every_engine_has_the_version(good_adapter: Maker, settings: Settings) -> None:
    row = good_adapter(1)
    settings.ENGINE_URLS = ["http://127.0.0.1:9", *settings.ENGINE_URLS]
    with pytest.raises(adapters.NotServable, match=r"http://127\.0\.0\.1:9: does not answer"):
        adapters.publish(row)
    assert adapters.current().is_base
    [event] = row.events.filter(kind="load failed")
    assert (event.engine, event.reason) == ("http://127.0.0.1:9", "http://127.0.0.1:9: does not answer")


def test_it_goes_on_without_an_engine_for_a_reason(good_adapter: Maker, settings: Settings) -> None:
    row = good_adapter(1)
    settings.ENGINE_URLS = ["http://127.0.0.1:9", *settings.ENGINE_URLS]
    with pytest.raises(adapters.NotServable, match="Give a reason"):
        adapters.publish(row, is_forced=True, reason=" ")
    assert adapters.publish(row, is_forced=True, reason="The other one burns.").adapter == row
    event = DeploymentEvent.objects.get(generation=2)
    assert event.reason == "The other one burns. (without http://127.0.0.1:9: does not answer)"


def test_it_counts_an_engine_that_cannot_answer_with_it_as_missing(
    good_adapter: Maker, engine: ScriptedEngine, settings: Settings
) -> None:
    """It was loaded there, and the first request failed."""
    row = good_adapter(1)
    other = ScriptedEngine()
    with running(other) as url:
        settings.ENGINE_URLS = [*settings.ENGINE_URLS, url]
        other.effects, other.unusable = engine.effects, {row.name}
        with pytest.raises(adapters.NotServable, match=url):
            adapters.publish(row)
        assert adapters.current().is_base
        other.unusable.clear()
        assert adapters.publish(row).adapter == row


def test_it_tests_a_version_on_every_engine(good_adapter: Maker, engine: ScriptedEngine, settings: Settings) -> None:
    """One engine that applies it wrongly is enough to reject it."""
    row = good_adapter(1)
    other = ScriptedEngine()
    with running(other) as url:
        settings.ENGINE_URLS = [*settings.ENGINE_URLS, url]
        other.effects, other.scale = engine.effects, 0.5
        with pytest.raises(adapters.NotServable, match="does not do what it did"):
            adapters.publish(row)
        tested = row.events.filter(kind__startswith="self-test").values_list("engine", "kind")
        assert dict(tested) == {engine.url: "self-test passed", url: "self-test failed"}
    row.refresh_from_db()
    assert row.status == Adapter.Status.REJECTED


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


def test_it_goes_back_with_one_question_and_one_short_request(good_adapter: Maker, engine: ScriptedEngine) -> None:
    """The version before is loaded and was tested: nothing but a look whether it is there, and a warm-up."""
    first, second = good_adapter(1), good_adapter(2)
    adapters.publish(first)
    adapters.publish(second)
    engine.requests.clear()
    engine.n_questions = 0
    assert adapters.rollback().adapter == first
    assert [(path, body["model"]) for path, body in engine.requests] == [("/v1/chat/completions", first.name)]
    assert engine.n_questions == 1
    assert DeploymentEvent.objects.exclude(alias="").latest("generation").kind == "rolled back"


def test_it_goes_back_without_an_engine_that_is_down(good_adapter: Maker, settings: Settings) -> None:
    first, second = good_adapter(1), good_adapter(2)
    adapters.publish(first)
    adapters.publish(second)
    settings.ENGINE_URLS = ["http://127.0.0.1:9", *settings.ENGINE_URLS]
    assert adapters.rollback(reason="It rambles.").adapter == first
    event = DeploymentEvent.objects.exclude(alias="").latest("generation")
    assert event.reason == "It rambles. (without http://127.0.0.1:9: does not answer)"


def test_it_moves_an_alias_with_few_queries_after_the_test(
    good_adapter: Maker, engine: ScriptedEngine, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    """Each costs time between a passed self-test and the first answer."""
    row = good_adapter(1)
    adapters.publish(row)
    adapters.rollback()
    engine.requests.clear()
    with django_assert_max_num_queries(20):
        adapters.publish(row)
    assert [path for path, _body in engine.requests] == ["/v1/chat/completions"]


@pytest.mark.django_db(transaction=True)
def test_it_goes_back_once_when_two_ask_at_once(good_adapter: Maker, engine: ScriptedEngine) -> None:
    first, second = good_adapter(1), good_adapter(2)
    adapters.publish(first)
    adapters.publish(second)
    engine.silence.clear()  # both wait with their warm-up, having seen the same generation
    ends: list[str] = []

    def roll_back() -> None:
        try:
            ends.append(adapters.rollback().adapter.name)
        except adapters.AliasMoved:
            ends.append("moved")
        finally:
            connection.close()

    threads = [threading.Thread(target=roll_back) for _i in range(2)]
    for thread in threads:
        thread.start()
    while len(engine.paths("/v1/chat/completions")) < 4:
        time.sleep(0.01)
    engine.silence.set()
    for thread in threads:
        thread.join()
    assert sorted(ends) == sorted([first.name, "moved"])
    assert adapters.current() == first


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
    events = list(DeploymentEvent.objects.exclude(alias="").order_by("generation"))
    assert [event.generation for event in events] == list(range(1, 8))
    # Each saw what was current when it moved the alias: the history is a chain.
    assert [event.previous for event in events[1:]] == [event.adapter for event in events[:-1]]
    last = Deployment.objects.get(alias="current")
    assert (last.generation, last.adapter) == (7, events[-1].adapter)
