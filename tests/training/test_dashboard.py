"""The admin's first page: figures, buttons and links for those who may see them."""

from pathlib import Path

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from pytest_django import Settings

from serving.models import Adapter
from tests.training.rows import add_campaign, add_judged
from training import dashboard, runs
from training.models import Evaluation, Policy, Run

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_model(tmp_path: Path, settings: Settings) -> None:
    settings.MODEL = str(tmp_path)  # before `make model`: the page works all the same


def test_it_sends_strangers_to_the_login(client: Client) -> None:
    assert client.get(reverse("admin:index")).status_code == 302


def test_it_shows_what_waits_and_offers_to_train(admin_client: Client) -> None:
    campaign = add_campaign(name="Manners")
    add_judged(campaign, 3)
    Policy.objects.create(campaign=campaign, is_enabled=True, every_n=40)
    content = admin_client.get(reverse("admin:index")).content.decode()
    assert "Manners" in content
    assert "<dd data-waiting>3</dd>" in content
    assert "Trains by itself after every 40 new judgments." in content
    assert f"{reverse('admin:training_run_add')}?campaign={campaign.pk}" in content
    assert "make model" in content


def test_it_shows_the_active_run_instead_of_the_button(admin_client: Client) -> None:
    run = runs.create(add_campaign(), "dpo", {})
    content = admin_client.get(reverse("admin:index")).content.decode()
    assert reverse("admin:training_run_live", args=[run.pk]) in content
    assert "?campaign=" not in content


def test_it_tells_staff_nothing_that_they_may_not_see() -> None:
    runs.create(add_campaign(name="Manners"), "dpo", {})
    user = User.objects.create_user("somebody", password="a long password", is_staff=True)
    client = Client()
    client.force_login(user)
    content = client.get(reverse("admin:index")).content.decode()
    assert "Manners" not in content
    assert reverse("admin:training_run_changelist") not in content
    user.user_permissions.add(Permission.objects.get(codename="view_run"))
    content = client.get(reverse("admin:index")).content.decode()
    assert "Manners" in content
    assert reverse("admin:training_run_changelist") in content
    assert reverse("admin:training_policy_changelist") not in content


def test_it_leads_to_reward_models_and_their_jobs(admin_client: Client) -> None:
    bar = admin_client.get(reverse("admin:training_policy_changelist")).content.decode()
    for name in ("rewardmodel", "scoring"):
        assert reverse(f"admin:training_{name}_changelist") in bar


def test_it_leads_to_every_entry_of_its_side_bar(admin_client: Client) -> None:
    content = admin_client.get(reverse("admin:index")).content.decode()
    for _title, entries in dashboard.NAVIGATION:
        for name, _label, _icon in entries:
            assert reverse(f"admin:{name.replace('.', '_').lower()}_changelist") in content


def test_it_shows_the_verdict_of_the_last_runs(admin_client: Client) -> None:
    Run.objects.create(campaign=add_campaign(), method="dpo", status=Run.Status.FAILED, error="The loss is no number.")
    assert "The loss is no number." in admin_client.get(reverse("admin:index")).content.decode()


@pytest.mark.parametrize("name", ["admin:index", "admin:training_run_changelist"])
def test_it_reads_no_evidence_for_a_list(admin_client: Client, name: str) -> None:
    run = Run.objects.create(campaign=add_campaign(), method="dpo", status=Run.Status.SUCCEEDED)
    adapter = Adapter.objects.create(name="adapter-1-a", sha256="1" * 64, base_sha256="b" * 64)
    Evaluation.objects.create(run=run, adapter=adapter, is_passed=True, verdict="better", evidence={"samples": []})
    with CaptureQueriesContext(connection) as asked:
        assert "better" in admin_client.get(reverse(name)).content.decode()
    assert not any("evidence" in query["sql"] or "figures" in query["sql"] for query in asked.captured_queries)
