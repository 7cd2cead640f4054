"""Messages carry ids; every task that the settings name exists under that name."""

from typing import Any

import pytest
from celery import current_app
from celery.signals import worker_shutting_down
from django.conf import settings
from django_celery_beat.schedulers import ModelEntry

from labeling.models import Campaign
from serving.locks import only_one
from tests.training.rows import add_campaign, add_judged
from training import policies, runs, supervisor, tasks
from training.models import Policy, Run


def test_it_has_every_task_that_the_schedule_names() -> None:
    current_app.loader.import_default_modules()
    named = {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()}
    assert named | {policies.TASK, *settings.CELERY_TASK_ROUTES} <= set(current_app.tasks)


@pytest.mark.django_db
def test_it_lets_beats_messages_expire_when_the_next_one_comes() -> None:
    for name, entry in settings.CELERY_BEAT_SCHEDULE.items():
        made = ModelEntry.from_entry(name, app=current_app, **entry)
        assert 0 < made.model.expire_seconds <= entry["schedule"]


@pytest.mark.django_db
def test_it_checks_policies_one_at_a_time() -> None:
    policy = Policy.objects.create(campaign=add_campaign(), is_enabled=True, every_n=2)
    add_judged(policy.campaign, 2)
    with only_one("policies"):
        tasks.check_policies()
    assert not Run.objects.exists()
    tasks.check_policies()
    assert Run.objects.exists()


@pytest.mark.django_db
def test_it_starts_a_run_on_schedule() -> None:
    policy = Policy.objects.create(campaign=add_campaign(), is_enabled=True, every_n=0)
    add_judged(policy.campaign, 2)
    tasks.train_on_schedule(policy.pk)
    tasks.train_on_schedule(policy.pk)
    tasks.train_on_schedule(10**6)  # deleted since
    assert Run.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("status", [Campaign.Status.PAUSED, Campaign.Status.CLOSED])
def test_it_starts_no_run_on_schedule_in_a_campaign_that_rests(status: str) -> None:
    policy = Policy.objects.create(campaign=add_campaign(status=status), is_enabled=True, every_n=0)
    add_judged(policy.campaign, 2)
    tasks.train_on_schedule(policy.pk)
    assert not Run.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("fields", [{"params": {"no such parameter": 1}}, {"method": "gone"}])
def test_it_logs_what_the_catalog_refuses_on_schedule(caplog: pytest.LogCaptureFixture, fields: dict[str, Any]) -> None:
    policy = Policy.objects.create(campaign=add_campaign(), is_enabled=True, every_n=1, **fields)
    add_judged(policy.campaign, 2)
    tasks.train_on_schedule(policy.pk)
    tasks.check_policies()
    assert not Run.objects.exists()
    assert caplog.text.count("cannot train") == 2


@pytest.mark.django_db
def test_it_takes_no_run_once_the_worker_shuts_down() -> None:
    run = runs.create(add_campaign(), "dpo", {})
    worker_shutting_down.send(sender=None)
    try:
        tasks.supervise(run.pk)
        run.refresh_from_db()
        assert run.status == Run.Status.QUEUED
    finally:
        tasks._take_runs()
    assert not supervisor._stopping.is_set()


@pytest.mark.django_db
def test_it_sweeps_and_checks_an_empty_site() -> None:
    tasks.sweep()
    tasks.check_policies()
    tasks.generate_candidates()
    assert not Run.objects.exists()
