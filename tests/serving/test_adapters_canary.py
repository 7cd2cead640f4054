"""Canaries: a second version that answers a share of an alias's conversations."""

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from serving import adapters, chat
from serving.models import Adapter, Deployment, DeploymentEvent, Message
from tests.serving.scripted import ScriptedEngine

pytestmark = pytest.mark.django_db
Maker = Callable[[int], Adapter]


def history() -> list[tuple[int | None, str, str, float | None]]:
    events = DeploymentEvent.objects.exclude(alias="").order_by("generation")[1:]
    return [(event.generation, event.kind, event.adapter.name, event.share) for event in events]


def share_of(canary: Adapter, n: int = 2000) -> float:
    return sum(adapters.resolve("current", str(i)).adapter == canary for i in range(n)) / n


def test_it_loads_tests_and_warms_a_canary_before_it_answers(
    good_adapter: Maker, engine: ScriptedEngine, ada: User
) -> None:
    canary = good_adapter(1)
    row = adapters.start_canary(canary, 0.25, actor=ada, reason="Is it kinder?")
    canary.refresh_from_db()
    assert (row.adapter, row.canary, row.canary_share, row.generation) == (adapters.base(), canary, 0.25, 2)
    assert row.canary_since is not None
    assert canary.status == Adapter.Status.READY
    assert canary.name in engine.adapters
    assert [body["model"] for body in engine.paths("/v1/chat/completions")] == [canary.name]
    event = DeploymentEvent.objects.get(generation=2)
    assert (event.kind, event.share, event.previous, event.actor) == ("canary started", 0.25, adapters.base(), ada)


def test_it_answers_its_share_and_nobody_without_a_conversation(good_adapter: Maker) -> None:
    canary = good_adapter(1)
    adapters.start_canary(canary, 0.25)
    assert share_of(canary, 400) == pytest.approx(0.25, abs=0.07)
    assert adapters.current().is_base
    assert adapters.resolve("current").adapter.is_base
    assert adapters.resolve("base", "1").adapter.is_base


def test_it_keeps_a_conversation_where_it_is(good_adapter: Maker, ada: User) -> None:
    canary = good_adapter(1)
    adapters.start_canary(canary, 0.5)
    seen = set()
    for _conversation in range(12):
        question = chat.start(ada, "Hi")
        first = question.children.get()
        question.children.update(status=Message.Status.COMPLETE)  # only a complete answer is replied to
        chat.ask(question.conversation, "And now?", first.pk)
        chat.regenerate(first)
        answered = set(question.conversation.messages.filter(role="assistant").values_list("adapter", flat=True))
        assert len(answered) == 1
        seen |= answered
    assert seen == {canary.pk, adapters.base().pk}


def test_it_goes_from_a_small_share_to_everybody(good_adapter: Maker, ada: User) -> None:
    old, canary = good_adapter(1), good_adapter(2)
    adapters.publish(old)
    adapters.start_canary(canary, 0.01)
    since = adapters.deployment().canary_since
    row = adapters.change_canary(0.5, reason="So far, so good.")
    assert (row.canary_share, row.canary_since) == (0.5, since)
    row = adapters.promote_canary(actor=ada, reason="Good.")
    assert (row.adapter, row.previous, row.canary, row.canary_share) == (canary, old, None, 0.0)
    assert share_of(canary, 20) == 1
    assert history() == [
        (2, "published", old.name, None),
        (3, "canary started", canary.name, 0.01),
        (4, "canary share changed", canary.name, 0.5),
        (5, "canary promoted", canary.name, None),
    ]
    assert adapters.rollback().adapter == old


def test_it_is_stopped_without_any_engine(good_adapter: Maker, settings: Settings, ada: User) -> None:
    canary = good_adapter(1)
    adapters.start_canary(canary, 1.0)
    settings.ENGINE_URLS = ["http://127.0.0.1:9"]
    row = adapters.stop_canary(actor=ada, reason="It is rude.")
    assert (row.adapter, row.canary, row.canary_since) == (adapters.base(), None, None)
    assert share_of(canary, 20) == 0
    event = DeploymentEvent.objects.get(generation=3)
    assert (event.kind, event.adapter, event.reason, event.share) == ("canary stopped", canary, "It is rude.", 0.0)


def test_it_is_promoted_when_it_is_published(good_adapter: Maker) -> None:
    canary = good_adapter(1)
    adapters.start_canary(canary, 0.1)
    row = adapters.publish(canary)
    assert (row.adapter, row.canary) == (canary, None)
    assert [kind for _generation, kind, _name, _share in history()] == ["canary started", "canary promoted"]


def test_it_goes_on_beside_another_publication(good_adapter: Maker) -> None:
    canary, other = good_adapter(1), good_adapter(2)
    adapters.start_canary(canary, 0.1)
    assert adapters.publish(other).canary == canary
    assert adapters.rollback().canary == canary


def test_it_ends_with_its_base_model(good_adapter: Maker, base_model: Path) -> None:
    adapters.publish(good_adapter(1))
    adapters.start_canary(good_adapter(2), 0.1)
    (base_model / "alignapp-model.json").write_text('{"sha256": "' + "e" * 64 + '"}')
    assert adapters.deployment().canary is None


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_it_refuses_a_share_that_is_none(good_adapter: Maker, engine: ScriptedEngine, share: float) -> None:
    with pytest.raises(adapters.NotServable, match="between 0 and 1"):
        adapters.start_canary(good_adapter(1), share)
    assert engine.adapters == {}


def test_it_tries_out_one_version_at_a_time(good_adapter: Maker) -> None:
    first, second = good_adapter(1), good_adapter(2)
    adapters.start_canary(first, 0.1)
    with pytest.raises(adapters.NotServable, match=first.name):
        adapters.start_canary(second, 0.1)
    with pytest.raises(adapters.NotServable, match="answers everybody"):
        adapters.start_canary(adapters.base(), 0.1)


def test_it_says_when_nothing_is_on_trial(engine: ScriptedEngine) -> None:
    for act in (lambda: adapters.change_canary(0.2), adapters.promote_canary, adapters.stop_canary):
        with pytest.raises(adapters.NoCanary, match="current"):
            act()


def test_it_rejects_a_canary_that_fails_its_self_test(good_adapter: Maker, engine: ScriptedEngine) -> None:
    engine.scale = 0.5
    with pytest.raises(adapters.NotServable, match="does not do what it did"):
        adapters.start_canary(good_adapter(1), 0.1)
    assert adapters.deployment().canary is None


def test_it_changes_only_what_was_seen(good_adapter: Maker) -> None:
    adapters.start_canary(good_adapter(1), 0.1)
    for act in (
        lambda: adapters.change_canary(0.2, expected_generation=1),
        lambda: adapters.promote_canary(expected_generation=1),
        lambda: adapters.stop_canary(expected_generation=1),
        lambda: adapters.start_canary(good_adapter(2), 0.2, expected_generation=1),
    ):
        with pytest.raises(adapters.AliasMoved):
            act()
    assert adapters.deployment().generation == 2


def test_it_keeps_its_place_on_the_engines(good_adapter: Maker, engine: ScriptedEngine) -> None:
    old, now, canary, other = (good_adapter(seed) for seed in range(4))
    adapters.publish(old)
    adapters.publish(now)
    adapters.start_canary(canary, 0.1)
    adapters.ensure_loaded(other)
    adapters.reconcile(timezone.now() + timedelta(hours=1))
    assert set(engine.adapters) == {old.name, now.name, canary.name}
    engine.adapters.clear()  # the engine was restarted
    adapters.reconcile(timezone.now() + timedelta(hours=1))
    assert set(engine.adapters) == {old.name, now.name, canary.name}
    adapters.stop_canary()
    adapters.reconcile(timezone.now() + timedelta(hours=1))
    assert set(engine.adapters) == {old.name, now.name}


@pytest.mark.django_db(transaction=True)
def test_it_gives_each_of_many_changes_its_own_generation(good_adapter: Maker, engine: ScriptedEngine) -> None:
    """Some are refused, because another came first; none is lost, and none is done twice."""
    adapters.start_canary(good_adapter(1), 0.1)
    refused: list[BaseException] = []

    def change(share: float) -> None:
        try:
            adapters.change_canary(share)
        except adapters.AliasMoved as error:
            refused.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=change, args=[i / 10]) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    row = Deployment.objects.get()
    assert row.generation == 2 + len(threads) - len(refused)
    assert [generation for generation, *_rest in history()] == list(range(2, row.generation + 1))
    assert history()[-1][3] == row.canary_share
