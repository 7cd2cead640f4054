from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries, Settings

from serving import adapters, tasks, trials
from serving.models import Adapter, DeploymentEvent, ServedRequest
from serving.trials import Tally
from tests.serving.scripted import ScriptedEngine

Maker = Callable[[int], Adapter]
Rule = Callable[[Tally, Tally], bool]
CLEAN = Tally(1000, 0)


def ask(adapter: Adapter, *, done: int = 0, failed: int = 0, refused: int = 0, cancelled: int = 0) -> None:
    """Puts so many requests of these ends into the log, as of now."""
    counts = {"done": done, "failed": failed, "refused": refused, "cancelled": cancelled}
    ServedRequest.objects.bulk_create(
        ServedRequest(
            request_id="x",
            at=timezone.now(),
            endpoint="page",
            alias="current",
            adapter=adapter,
            outcome=outcome,
            status=200,
            seconds=1,
        )
        for outcome, n in counts.items()
        for _i in range(n)
    )


def last_event() -> DeploymentEvent:
    return DeploymentEvent.objects.exclude(alias="").latest("generation")


# --- the rule ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("new", "old"),
    [(Tally(20, 20), CLEAN), (Tally(20, 20), Tally(0, 0)), (Tally(40, 8), CLEAN), (Tally(400, 60), Tally(400, 10))],
)
def test_it_knows_a_version_that_fails_more_often(new: Tally, old: Tally) -> None:
    assert trials.is_worse(new, old)


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (Tally(0, 0), CLEAN),
        (Tally(19, 19), CLEAN),  # too few to say
        (Tally(1000, 49), CLEAN),  # worse, but below the floor
        (Tally(400, 60), Tally(400, 60)),
        (Tally(100, 90), Tally(100, 95)),  # an engine that is down is nobody's canary's fault
        (Tally(20, 2), Tally(0, 0)),
    ],
)
def test_it_stops_nobody_without_need(new: Tally, old: Tally) -> None:
    assert not trials.is_worse(new, old)


def false_alarms(rule: Rule, rate: float, share: float, *, n_trials: int = 200, n_requests: int = 500) -> float:
    """Of trials in which both sides fail at the same rate, asked at each failure of the canary, those that are ended."""
    random = np.random.default_rng(7)
    n_ended = 0
    for _trial in range(n_trials):
        is_canary, is_failed = random.random(n_requests) < share, random.random(n_requests) < rate
        new, old = (is_canary.cumsum(), (is_canary & is_failed).cumsum()), (~is_canary).cumsum()
        old_failed = (~is_canary & is_failed).cumsum()
        looks = np.nonzero(is_canary & is_failed)[0]
        n_ended += any(
            rule(Tally(int(new[0][i]), int(new[1][i])), Tally(int(old[i]), int(old_failed[i]))) for i in looks
        )
    return n_ended / n_trials


def at_one_percent(new: Tally, old: Tally) -> bool:
    """What the rule would be if it were asked once."""
    return new.n >= trials.MIN_REQUESTS and trials.p_value(new, old) <= trials.LEVEL


@pytest.mark.parametrize(("rate", "share"), [(0.02, 0.2), (0.1, 0.05), (0.1, 0.5), (0.3, 0.5)])
def test_it_raises_no_false_alarms_however_often_it_is_asked(rate: float, share: float) -> None:
    assert false_alarms(trials.is_worse, rate, share) <= trials.LEVEL


def test_it_needs_more_than_an_ordinary_test() -> None:
    assert false_alarms(at_one_percent, 0.1, 0.5) > 3 * trials.LEVEL


# --- acting -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def canary(good_adapter: Maker, ada: User) -> Adapter:
    """On trial with a fifth of the conversations, beside another published version."""
    old, new = good_adapter(1), good_adapter(2)
    adapters.publish(old)
    adapters.start_canary(new, 0.2, actor=ada, reason="Is it kinder?")
    return new


def test_it_stops_a_canary_that_fails(canary: Adapter, settings: Settings) -> None:
    ask(adapters.current(), done=80, failed=1)
    ask(canary, done=10, failed=10)
    tasks.reconcile()
    row = adapters.deployment()
    assert (row.canary, row.canary_share, row.adapter) == (None, 0.0, adapters.current())
    event = last_event()
    assert (event.kind, event.adapter, event.actor, event.share) == ("canary stopped", canary, None, 0.0)
    assert "10 of 20 requests failed (50.0 %)" in event.reason
    assert "1 of 81 requests failed (1.2 %)" in event.reason


@pytest.mark.parametrize("end", ["refused", "cancelled"])
def test_it_does_not_count_what_was_refused_or_cancelled(canary: Adapter, end: str) -> None:
    ask(adapters.current(), done=80)
    ask(canary, done=10, **{end: 500})
    tasks.reconcile()
    assert adapters.deployment().canary == canary


@pytest.mark.parametrize("status", [503, 504])
def test_it_does_not_count_what_no_engine_took(canary: Adapter, status: int) -> None:
    """An engine that is restarted fails everybody for half a minute; one that dies over an answer has begun it."""
    ask(adapters.current(), done=80)
    ask(canary, failed=100)
    ServedRequest.objects.filter(adapter=canary).update(status=status)
    tasks.reconcile()
    assert adapters.deployment().canary == canary
    ServedRequest.objects.filter(adapter=canary).update(seconds_to_first_token=0.2)
    tasks.reconcile()
    assert adapters.deployment().canary is None


def test_it_does_not_count_what_was_asked_of_a_version_by_name(canary: Adapter) -> None:
    ask(canary, failed=100)
    ServedRequest.objects.filter(adapter=canary).update(alias="")
    tasks.reconcile()
    assert adapters.deployment().canary == canary


@pytest.mark.parametrize(("apart", "n_failed"), [(0, 1), (59, 3), (60, 5)])
def test_it_counts_answers_that_an_engine_cut_at_once_as_one_failure(
    canary: Adapter, apart: int, n_failed: int
) -> None:
    """By when they ended; those of another engine count apart."""
    began = timezone.now()
    ask(canary, done=60, failed=5)
    for i, row in enumerate(ServedRequest.objects.filter(adapter=canary, outcome="failed")):
        row.at, row.seconds, row.engine = began + timedelta(seconds=i * (apart - 5)), 100 + 5 * i, "http://one.test"
        row.status, row.seconds_to_first_token = 503, 0.2
        row.save()
    assert trials.tally(canary, began - timedelta(minutes=1)) == Tally(60 + n_failed, n_failed)
    ServedRequest.objects.filter(outcome="failed").update(engine="")
    assert trials.tally(canary, began - timedelta(minutes=1)) == Tally(65, 5)


def test_it_lets_a_publication_be_when_its_engine_is_restarted(good_adapter: Maker) -> None:
    old, new = good_adapter(1), good_adapter(2)
    adapters.publish(old)
    ask(old, done=1000)
    adapters.publish(new)
    ask(new, done=60, failed=5)
    cut = ServedRequest.objects.filter(outcome="failed")
    cut.update(status=503, seconds_to_first_token=0.2, engine="http://one.test")
    trials.judge(timezone.now())
    assert adapters.current() == new
    cut.update(status=502, seconds_to_first_token=None, engine="")
    trials.judge(timezone.now())
    assert adapters.current() == old


def test_it_counts_from_the_last_change_of_the_share(canary: Adapter) -> None:
    """What a smaller share saw would mix two mixtures of requests."""
    ask(canary, failed=30)
    adapters.change_canary(0.5)
    tasks.reconcile()
    assert adapters.deployment().canary == canary
    ask(canary, failed=30)
    tasks.reconcile()
    assert adapters.deployment().canary is None


def test_it_takes_back_a_publication_that_fails(good_adapter: Maker) -> None:
    old, new = good_adapter(1), good_adapter(2)
    adapters.publish(old)
    ask(old, done=100, failed=1)
    adapters.publish(new)
    ask(new, done=20)
    tasks.reconcile()
    assert adapters.current() == new
    ask(new, failed=20)
    tasks.reconcile()
    assert adapters.current() == old
    event = last_event()
    assert (event.kind, event.adapter, event.previous, event.actor) == ("rolled back", old, new, None)
    assert "20 of 40 requests failed (50.0 %)" in event.reason


def test_it_does_not_go_back_and_forth_between_two_that_fail(good_adapter: Maker) -> None:
    old, new = good_adapter(1), good_adapter(2)
    adapters.publish(old)
    adapters.publish(new)
    ask(new, failed=20)
    tasks.reconcile()
    assert adapters.current() == old
    ask(old, failed=200)
    tasks.reconcile()
    assert adapters.current() == old


def test_it_leaves_a_version_alone_after_its_probation(good_adapter: Maker) -> None:
    adapters.publish(good_adapter(1))
    ask(adapters.current(), failed=50)
    trials.judge(timezone.now() + trials.PROBATION + timedelta(seconds=1))
    assert not adapters.current().is_base
    trials.judge(timezone.now())
    assert adapters.current().is_base


def test_it_waits_for_an_engine_before_it_goes_back(
    good_adapter: Maker, engine: ScriptedEngine, settings: Settings
) -> None:
    new = good_adapter(1)
    adapters.publish(new)
    ask(new, failed=50)
    answering, settings.ENGINE_URLS = settings.ENGINE_URLS, ["http://127.0.0.1:9"]
    tasks.reconcile()
    assert adapters.current() == new
    settings.ENGINE_URLS = answering
    tasks.reconcile()
    assert adapters.current().is_base


def test_it_asks_little_of_the_database(canary: Adapter, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    """Aliases, then for each trial since when, and what was answered and failed on both sides."""
    with django_assert_num_queries(1 + 5 + 5):
        trials.judge(timezone.now())
