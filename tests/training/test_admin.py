"""Lists and forms of the admin: every page opens, and a policy's form keeps beat's table."""

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from serving.models import Adapter
from tests.training.rows import add_campaign, add_judged
from training import policies
from training.models import Policy, Run, Snapshot
from training.snapshots import freeze

pytestmark = pytest.mark.django_db
NAMES = ("training_run", "training_policy", "training_snapshot", "training_rewardmodel", "training_scoring")
BEAT = ("django_celery_beat_periodictask", "django_celery_beat_crontabschedule", "django_celery_beat_intervalschedule")


@pytest.mark.parametrize("name", [*NAMES, *BEAT])
def test_it_lists_for_administrators_only(admin_client: Client, client: Client, name: str) -> None:
    assert admin_client.get(reverse(f"admin:{name}_changelist")).status_code == 200
    assert client.get(reverse(f"admin:{name}_changelist")).status_code == 302
    client.force_login(User.objects.create_user("somebody", password="a long password", is_staff=True))
    assert client.get(reverse(f"admin:{name}_changelist")).status_code == 403


@pytest.mark.parametrize("name", ["training_policy", *BEAT])
def test_it_opens_the_form_for_administrators_only(admin_client: Client, client: Client, name: str) -> None:
    assert admin_client.get(reverse(f"admin:{name}_add")).status_code == 200
    assert client.get(reverse(f"admin:{name}_add")).status_code == 302
    client.force_login(User.objects.create_user("somebody", password="a long password", is_staff=True))
    assert client.get(reverse(f"admin:{name}_add")).status_code == 403


def test_it_lets_nobody_change_a_snapshot_or_delete_a_run(admin_client: Client) -> None:
    campaign = add_campaign()
    add_judged(campaign, 4, 1)
    snapshot = freeze(campaign)
    run = Run.objects.create(campaign=campaign, method="dpo")
    page = reverse("admin:training_snapshot_change", args=[snapshot.pk])
    content = admin_client.get(page).content.decode()
    assert snapshot.sha256 in content
    assert "Judgments retracted since" in content
    assert "4 + 1, 5" in content
    assert admin_client.post(page, {"sha256": "x"}).status_code == 403
    for name, row in (("training_snapshot", snapshot), ("training_run", run)):
        assert admin_client.post(reverse(f"admin:{name}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    assert (Snapshot.objects.count(), Run.objects.count()) == (1, 1)


def test_it_writes_no_run_by_the_admins_own_form(admin_client: Client) -> None:
    run = Run.objects.create(campaign=add_campaign(), method="dpo")
    page = reverse("admin:training_run_changelist") + f"+{run.pk}/change/"  # no <int:run_id>, but int() takes it
    assert admin_client.post(page, {"status": "succeeded", "fencing_token": 9}).status_code == 403
    assert 'name="fencing_token"' not in admin_client.get(page).content.decode()
    run.refresh_from_db()
    assert (run.status, run.fencing_token) == (Run.Status.QUEUED, 0)


def test_it_offers_to_start_a_run_to_who_may(admin_client: Client, client: Client) -> None:
    page = reverse("admin:training_run_changelist")
    assert reverse("admin:training_run_add") in admin_client.get(page).content.decode()
    user = User.objects.create_user("somebody", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_run"))
    client.force_login(user)
    assert reverse("admin:training_run_add") not in client.get(page).content.decode()


def test_it_schedules_a_policy_when_it_is_saved_and_forgets_it_when_deleted(admin_client: Client) -> None:
    night = CrontabSchedule.objects.create(minute="0", hour="3")
    data = {
        "campaign": add_campaign().pk,
        "is_enabled": "on",
        "every_n": 30,
        "crontab": night.pk,
        "method": "dpo",
        "params": "{}",
        "min_heldout_pairs": 20,
    }
    assert admin_client.post(reverse("admin:training_policy_add"), data).status_code == 302
    policy = Policy.objects.get()
    assert policy.periodic_task
    assert policy.periodic_task.crontab == night
    assert admin_client.get(reverse("admin:training_policy_change", args=[policy.pk])).status_code == 200
    admin_client.post(reverse("admin:training_policy_delete", args=[policy.pk]), {"post": "yes"})
    assert not PeriodicTask.objects.filter(task=policies.TASK).exists()
    assert not Policy.objects.exists()


def test_it_has_every_model_of_training_that_people_look_at() -> None:
    assert {Run, Policy, Snapshot} <= set(admin.site._registry)


def test_it_shows_which_runs_and_versions_learned_from_a_judgment(admin_client: Client) -> None:
    campaign = add_campaign()
    add_judged(campaign, 8)
    snapshot = freeze(campaign)
    adapter = Adapter.objects.create(name="adapter-7-c0ffee", sha256="a" * 64, base_sha256="b" * 64)
    run = Run.objects.create(campaign=campaign, snapshot=snapshot, adapter=adapter, status=Run.Status.SUCCEEDED)
    judgment = snapshot.judgments.earliest("pk")
    page = admin_client.get(reverse("admin:labeling_judgment_change", args=[judgment.pk])).content.decode()
    for name, row in (("training_snapshot", snapshot), ("training_run", run), ("serving_adapter", adapter)):
        assert reverse(f"admin:{name}_change", args=[row.pk]) in page
    assert "adapter-7-c0ffee" in page
