"""A campaign trains by itself when it is time, and never twice at once."""

from datetime import timedelta
from typing import Any

import pytest
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from labeling.models import Campaign
from tests.training.rows import NOW, add_campaign, add_judged
from training import policies, runs
from training.models import Policy, Run
from training.snapshots import freeze


def add_policy(campaign: Campaign | None = None, **fields: Any) -> Policy:
    values = {"is_enabled": True, "every_n": 5, **fields}
    return Policy.objects.create(campaign=campaign or add_campaign(), **values)


@pytest.mark.django_db
def test_it_is_due_from_the_nth_judgment_on() -> None:
    policy = add_policy()
    add_judged(policy.campaign, 4)
    assert not policies.is_due(policy)
    add_judged(policy.campaign, 1)
    assert policies.is_due(policy)


@pytest.mark.django_db
@pytest.mark.parametrize("fields", [{"is_enabled": False}, {"every_n": 0}])
def test_it_is_not_due_when_switched_off(fields: dict[str, Any]) -> None:
    policy = add_policy(**fields)
    add_judged(policy.campaign, 6)
    assert not policies.is_due(policy)


@pytest.mark.django_db
def test_it_counts_from_the_last_success() -> None:
    policy = add_policy()
    add_judged(policy.campaign, 6)
    Run.objects.create(campaign=policy.campaign, snapshot=freeze(policy.campaign), status=Run.Status.SUCCEEDED)
    assert not policies.is_due(policy)
    add_judged(policy.campaign, 5)
    assert policies.is_due(policy)


@pytest.mark.django_db
def test_it_does_not_repeat_a_failure_before_as_many_judgments_came_again() -> None:
    policy = add_policy()
    add_judged(policy.campaign, 6, now=NOW - timedelta(hours=1))
    run = Run.objects.create(campaign=policy.campaign, status=Run.Status.FAILED)
    Run.objects.filter(pk=run.pk).update(created_at=NOW)
    assert not policies.is_due(policy)
    add_judged(policy.campaign, 5, now=NOW + timedelta(hours=1))
    assert policies.is_due(policy)


@pytest.mark.django_db
def test_it_starts_one_run_with_the_policys_method() -> None:
    policy = add_policy(method="ipo", params={"beta": 0.2})
    add_judged(policy.campaign, 5)
    (run,) = policies.check()
    assert (run.method, run.params["beta"], run.trigger) == ("ipo", 0.2, Run.Trigger.POLICY)
    assert policies.check() == []
    assert policies.start(policy) is None


@pytest.mark.django_db
def test_it_leaves_paused_campaigns_alone() -> None:
    policy = add_policy(add_campaign(status=Campaign.Status.PAUSED))
    add_judged(policy.campaign, 5)
    assert policies.check() == []


@pytest.mark.django_db
def test_it_trains_at_its_time_if_any_judgment_is_new() -> None:
    policy = add_policy(every_n=0)
    assert policies.start(policy) is None
    add_judged(policy.campaign, 1)
    assert policies.start(policy)


@pytest.mark.django_db
def test_it_follows_its_crontab_into_beats_table() -> None:
    night = CrontabSchedule.objects.create(minute="0", hour="3")
    policy = add_policy(crontab=night)
    policies.schedule(policy)
    task = PeriodicTask.objects.get(task=policies.TASK)
    assert (task.crontab, task.args, task.enabled) == (night, f"[{policy.pk}]", True)
    policy.refresh_from_db()
    assert policy.periodic_task == task
    policy.is_enabled = False
    policies.schedule(policy)
    policy.refresh_from_db()
    assert [t.enabled for t in PeriodicTask.objects.filter(task=policies.TASK)] == [False]
    policy.crontab = None
    policies.schedule(policy)
    policy.refresh_from_db()
    assert policy.periodic_task is None
    assert not PeriodicTask.objects.filter(task=policies.TASK).exists()


@pytest.mark.django_db
def test_it_publishes_nothing_without_adapter_gate_or_wish() -> None:
    policy = add_policy(publishes=True)
    run = runs.create(policy.campaign, "dpo", {})
    assert not policies.publish_if_wanted(run)
    policy.delete()
    assert not policies.publish_if_wanted(run)
