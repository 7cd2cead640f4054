"""A campaign trains by itself when it is time, and never twice at once."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from pytest_django import Settings

from labeling.models import Campaign
from labeling.retractions import retract_judgment
from serving import adapters
from serving.models import Adapter, DeploymentEvent
from tests.serving.scripted import TOKEN, ScriptedEngine, running
from tests.training.rows import NOW, add_annotator, add_campaign, add_judged, model_card
from training import policies, runs
from training.models import Evaluation, Policy, Run
from training.snapshots import freeze


def add_policy(campaign: Campaign | None = None, **fields: Any) -> Policy:
    values = {"is_enabled": True, "every_n": 5, **fields}
    return Policy.objects.create(campaign=campaign or add_campaign(), **values)


def add_passed_run(campaign: Campaign) -> Run:
    """A run that ended at NOW with an adapter that the gate passed."""
    adapter = Adapter.objects.create(name="adapter-2-a", sha256="a" * 64, base_sha256="b" * 64, status="ready")
    base = adapters.current()
    run = Run.objects.create(
        campaign=campaign, adapter=adapter, incumbent=base, status=Run.Status.SUCCEEDED, finished_at=NOW
    )
    Evaluation.objects.create(run=run, adapter=adapter, incumbent=base, is_passed=True, verdict="better")
    return run


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
def test_it_keeps_one_entry_when_the_campaign_gets_another_slug() -> None:
    policy = add_policy(crontab=CrontabSchedule.objects.create(minute="0", hour="3"))
    policies.schedule(policy)
    Campaign.objects.filter(pk=policy.campaign_id).update(slug="another")
    policies.schedule(Policy.objects.get(pk=policy.pk))
    PeriodicTask.objects.filter(task=policies.TASK).update(name="Nights")
    policies.schedule(Policy.objects.get(pk=policy.pk))
    assert PeriodicTask.objects.filter(task=policies.TASK).count() == 1


@pytest.mark.django_db
def test_it_goes_on_after_a_policy_with_bad_parameters(caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = add_policy(params={"no such parameter": 1}), add_policy()
    for policy in (broken, sound):
        add_judged(policy.campaign, 5)
    assert [run.campaign for run in policies.check()] == [sound.campaign]
    assert f"the policy of “{broken.campaign}” cannot train" in caplog.text


@pytest.mark.django_db
def test_it_publishes_only_runs_that_ended_after_its_last_change(tmp_path: Path, settings: Settings) -> None:
    settings.MODEL = model_card(tmp_path)
    policy = add_policy(publishes=True)
    run = add_passed_run(policy.campaign)
    with running(ScriptedEngine()) as url:
        settings.ENGINE_URLS, settings.ENGINE_TOKEN = [url], TOKEN
        for change, is_published in ((timedelta(seconds=1), False), (timedelta(seconds=-1), True)):
            Policy.objects.filter(pk=policy.pk).update(updated_at=NOW + change)
            policies.check()
            assert (adapters.current() == run.adapter) is is_published


@pytest.mark.django_db
def test_it_leaves_what_learned_from_a_retracted_judgment_to_a_person(
    tmp_path: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.MODEL = model_card(tmp_path)
    policy = add_policy(publishes=True)
    Policy.objects.filter(pk=policy.pk).update(updated_at=NOW - timedelta(seconds=1))
    rows = add_judged(policy.campaign, 6)
    run = add_passed_run(policy.campaign)
    run.snapshot = freeze(policy.campaign)
    run.save()
    retract_judgment(rows[0], add_annotator(), "a mistake", NOW)
    with running(ScriptedEngine()) as url:
        settings.ENGINE_URLS, settings.ENGINE_TOKEN = [url], TOKEN
        assert not policies.publish_if_wanted(run)
        assert "taken back" in caplog.text
        run.snapshot = None
        run.save()
        assert policies.publish_if_wanted(run)


@pytest.mark.django_db
@pytest.mark.parametrize(("start", "is_published"), [("incumbent", False), ("base", True)])
def test_it_asks_what_a_version_goes_on_from_and_not_what_is_in_chat(
    tmp_path: Path, settings: Settings, start: str, is_published: bool
) -> None:
    """The version in chat learned, in another campaign, from a judgment that was taken back."""
    settings.MODEL = model_card(tmp_path)
    policy, other = add_policy(publishes=True), add_campaign()
    Policy.objects.filter(pk=policy.pk).update(updated_at=NOW - timedelta(seconds=1))
    rows = add_judged(other, 6)
    tainted = Adapter.objects.create(name="adapter-1-c", sha256="c" * 64, base_sha256="b" * 64, status="ready")
    Run.objects.create(campaign=other, snapshot=freeze(other), adapter=tainted, status=Run.Status.SUCCEEDED)
    with running(ScriptedEngine()) as url:
        settings.ENGINE_URLS, settings.ENGINE_TOKEN = [url], TOKEN
        adapters.publish(tainted)
        run = add_passed_run(policy.campaign)
        run.params = {"start": start}
        run.save()
        retract_judgment(rows[0], add_annotator(), "a mistake", NOW)
        assert policies.publish_if_wanted(run) is is_published


@pytest.mark.django_db
def test_it_counts_and_publishes_by_runs_that_make_versions(tmp_path: Path, settings: Settings) -> None:
    """A reward model learned from all judgments since, and a worker was lost before it published the version."""
    settings.MODEL = model_card(tmp_path)
    policy = add_policy(publishes=True)
    Policy.objects.filter(pk=policy.pk).update(updated_at=NOW - timedelta(seconds=1))
    add_judged(policy.campaign, 6, now=NOW - timedelta(hours=1))
    run = add_passed_run(policy.campaign)
    rewarding = {"campaign": policy.campaign, "method": "reward_model"}
    Run.objects.create(**rewarding, snapshot=freeze(policy.campaign), status=Run.Status.SUCCEEDED)
    Run.objects.create(**rewarding, status=Run.Status.FAILED)
    assert policies.is_due(policy)
    policy.method = "reward_model"
    Run.objects.filter(status=Run.Status.FAILED).delete()
    assert not policies.is_due(policy)
    with running(ScriptedEngine()) as url:
        settings.ENGINE_URLS, settings.ENGINE_TOKEN = [url], TOKEN
        policies.check()
    assert adapters.current() == run.adapter


@pytest.mark.django_db
@pytest.mark.parametrize("is_of_alias", [True, False])
def test_it_publishes_unless_somebody_decided_about_the_version(
    tmp_path: Path, settings: Settings, is_of_alias: bool
) -> None:
    """That an engine could not load it was nobody's decision; that a person ended its trial was."""
    settings.MODEL = model_card(tmp_path)
    policy = add_policy(publishes=True)
    run = add_passed_run(policy.campaign)
    Policy.objects.filter(pk=policy.pk).update(updated_at=NOW - timedelta(seconds=1))
    assert run.adapter is not None
    about = {"alias": "current", "generation": 9, "kind": "canary stopped"} if is_of_alias else {"kind": "load failed"}
    DeploymentEvent.objects.create(adapter=run.adapter, **about)
    with running(ScriptedEngine()) as url:
        settings.ENGINE_URLS, settings.ENGINE_TOKEN = [url], TOKEN
        assert policies.publish_if_wanted(run) is not is_of_alias


@pytest.mark.django_db(transaction=True)
def test_it_gives_way_to_a_person_who_publishes_meanwhile(tmp_path: Path, settings: Settings) -> None:
    settings.MODEL = model_card(tmp_path)
    policy = add_policy(publishes=True)
    run = add_passed_run(policy.campaign)
    Policy.objects.filter(pk=policy.pk).update(updated_at=NOW - timedelta(seconds=1))
    theirs = Adapter.objects.create(name="adapter-3-b", sha256="d" * 64, base_sha256="b" * 64, status="ready")
    engine = ScriptedEngine()

    def publish_theirs() -> None:
        engine.before_load = lambda: None
        try:
            adapters.publish(theirs)
        finally:
            connection.close()

    with running(engine) as url:
        settings.ENGINE_URLS, settings.ENGINE_TOKEN = [url], TOKEN
        engine.before_load = publish_theirs
        assert not policies.publish_if_wanted(run)
    assert adapters.current() == theirs


@pytest.mark.django_db
def test_it_publishes_nothing_without_adapter_gate_or_wish() -> None:
    policy = add_policy(publishes=True)
    run = runs.create(policy.campaign, "dpo", {})
    assert not policies.publish_if_wanted(run)
    policy.delete()
    assert not policies.publish_if_wanted(run)


@pytest.mark.django_db
def test_it_forgets_the_schedule_of_a_campaign_that_was_deleted() -> None:
    crontab = CrontabSchedule.objects.create(minute="0", hour="4")
    gone, kept = add_policy(crontab=crontab), add_policy(add_campaign(), crontab=crontab)
    for policy in (gone, kept):
        policies.schedule(policy)
    PeriodicTask.objects.create(name="by hand", task=policies.TASK, args="[tomorrow", crontab=crontab)
    PeriodicTask.objects.create(name="another task", task="training.tasks.sweep", args="[999]", crontab=crontab)
    gone.campaign.delete()
    assert PeriodicTask.objects.filter(name=f"policy {gone.pk}").exists()
    policies.check()
    assert set(PeriodicTask.objects.values_list("name", flat=True)) == {f"policy {kept.pk}", "another task"}
