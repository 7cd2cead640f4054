"""Reward models in the admin: their figures, which one is used, and who may say so."""

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from serving import adapters
from tests.training.rows import add_campaign
from training.models import RewardModel, Run, Scoring

pytestmark = pytest.mark.django_db
FIGURES = {
    "temperature": 2.5,
    "calibration": {
        "before": {"ece": 0.21},
        "after": {"ece": 0.03, "brier": 0.19, "nll": 0.56, "n": 90},
        "by_length": [
            {"from": 0, "to": 200, "n": 40, "accuracy": 0.7},
            {"from": 200, "to": 500, "n": 0},
            {"from": 1000, "to": None, "n": 50, "accuracy": 0.8},
        ],
    },
    "ties": {"observed": 0.1, "predicted": 0.12},
}


@pytest.fixture
def pair_of_them() -> list[RewardModel]:
    campaign = add_campaign()
    return [
        RewardModel.objects.create(
            campaign=campaign,
            run=Run.objects.create(campaign=campaign, method="reward_model", status=Run.Status.SUCCEEDED),
            sha256=letter * 64,
            base_sha256=adapters.base().sha256,
            figures=FIGURES,
            is_passed=True,
            verdict="agrees with people on 75.0% of 90 held-out pairs",
            is_active=letter == "1",
        )
        for letter in "12"
    ]


def use(client: Client, row: RewardModel, reason: str = "") -> int:
    return client.post(reverse("admin:training_rewardmodel_use", args=[row.pk]), {"reason": reason}).status_code


def in_use() -> set[str]:
    return {row.sha256[0] for row in RewardModel.objects.filter(is_active=True)}


def test_it_shows_what_a_reward_model_is_worth(admin_client: Client, pair_of_them: list[RewardModel]) -> None:
    page = admin_client.get(reverse("admin:training_rewardmodel_change", args=[pair_of_them[0].pk])).content.decode()
    for text in ("21.0% → 3.0% (T = 2.50)", "0.190, 0.560", "0–200: 70.0% (40); 1000+: 80.0% (50)", "10.0%, 12.0%"):
        assert text in page
    assert reverse("admin:training_run_change", args=[pair_of_them[0].run_id]) in page
    listed = admin_client.get(reverse("admin:training_rewardmodel_changelist")).content.decode()
    assert "agrees with people on 75.0%" in listed


def test_it_shows_one_without_figures(admin_client: Client, pair_of_them: list[RewardModel]) -> None:
    RewardModel.objects.update(figures={"calibration": [], "ties": None})
    page = reverse("admin:training_rewardmodel_change", args=[pair_of_them[0].pk])
    assert admin_client.get(page).status_code == 200


def test_it_uses_one_at_a_time(admin_client: Client, pair_of_them: list[RewardModel]) -> None:
    page = reverse("admin:training_rewardmodel_use", args=[pair_of_them[1].pk])
    assert page in admin_client.get(reverse("admin:training_rewardmodel_changelist")).content.decode()
    assert admin_client.get(page).status_code == 200
    assert in_use() == {"1"}
    assert use(admin_client, pair_of_them[1]) == 302
    assert in_use() == {"2"}
    assert LogEntry.objects.get().get_edited_object() == pair_of_them[1]


def test_it_asks_why_one_that_did_not_pass_is_used(admin_client: Client, pair_of_them: list[RewardModel]) -> None:
    RewardModel.objects.update(is_passed=False)
    assert use(admin_client, pair_of_them[1], " ") == 200
    assert in_use() == {"1"}
    assert use(admin_client, pair_of_them[1], "The check had no pairs.") == 302
    assert in_use() == {"2"}
    assert "The check had no pairs." in LogEntry.objects.get().get_change_message()


def test_it_uses_none_that_reads_another_base(admin_client: Client, pair_of_them: list[RewardModel]) -> None:
    RewardModel.objects.update(base_sha256="e" * 64)
    page = reverse("admin:training_rewardmodel_use", args=[pair_of_them[1].pk])
    assert "reads another base" in admin_client.post(page, {"reason": "I want it."}, follow=True).content.decode()
    assert in_use() == {"1"}
    assert not LogEntry.objects.exists()


def test_it_lets_only_those_who_may_change_runs_act(client: Client, pair_of_them: list[RewardModel]) -> None:
    assert use(client, pair_of_them[1]) == 302  # to the login page
    somebody = User.objects.create_user("somebody", password="a long password", is_staff=True)
    somebody.user_permissions.add(Permission.objects.get(codename="view_rewardmodel"))
    client.force_login(somebody)
    use(client, pair_of_them[1])
    assert in_use() == {"1"}
    somebody.user_permissions.add(Permission.objects.get(codename="change_run"))
    use(client, pair_of_them[1])
    assert in_use() == {"2"}


def test_it_lets_nobody_change_or_delete_one(admin_client: Client, pair_of_them: list[RewardModel]) -> None:
    row = pair_of_them[0]
    for what in ("change", "delete"):
        page = reverse(f"admin:training_rewardmodel_{what}", args=[row.pk])
        assert admin_client.post(page, {"post": "yes", "is_active": ""}).status_code == 403
    assert in_use() == {"1"}


def test_it_asks_a_scoring_to_stop(admin_client: Client, pair_of_them: list[RewardModel]) -> None:
    running = Scoring.objects.create(reward_model=pair_of_them[0])
    ended = Scoring.objects.create(reward_model=pair_of_them[0], status=Scoring.Status.SUCCEEDED)
    data = {"action": "cancel", "_selected_action": [running.pk, ended.pk]}
    assert admin_client.post(reverse("admin:training_scoring_changelist"), data).status_code == 302
    assert [row.is_cancel_requested for row in (Scoring.objects.get(pk=running.pk), Scoring.objects.get(pk=ended.pk))] == [
        True, False,
    ]  # fmt: skip


def test_it_stands_on_the_pages_of_its_run(admin_client: Client, pair_of_them: list[RewardModel]) -> None:
    used, other = pair_of_them
    RewardModel.objects.update(evidence={"accuracy": 0.75, "low": 0.15, "high": 0.34, "n_pairs": 90, "n_prompts": 80})
    page = admin_client.get(reverse("admin:training_run_change", args=[used.run_id])).content.decode()
    for text in (used.verdict, "75.0 %", "65.0 % … 84.0 %", "0.03", "0.21 before its temperature", "2.5", "in use"):
        assert text in page
    assert reverse("admin:training_rewardmodel_change", args=[used.pk]) in page
    assert "not used" in admin_client.get(reverse("admin:training_run_change", args=[other.run_id])).content.decode()
    for name in ("admin:training_run_changelist", "admin:index"):
        assert used.verdict in admin_client.get(reverse(name)).content.decode()
    lineage = reverse("admin:training_lineage", args=["run", used.run_id])
    assert used.verdict in admin_client.get(lineage).content.decode()


def test_it_is_linked_for_those_who_may_look_at_it(client: Client, pair_of_them: list[RewardModel]) -> None:
    user = User.objects.create_user("stan", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_run"))
    client.force_login(user)
    page = client.get(reverse("admin:training_run_change", args=[pair_of_them[0].run_id])).content.decode()
    assert pair_of_them[0].verdict in page
    assert reverse("admin:training_rewardmodel_change", args=[pair_of_them[0].pk]) not in page
