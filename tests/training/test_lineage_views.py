"""The lineage as pages: from each link of the chain to all others."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from labeling.models import Comparison, Judgment, Response
from serving.models import Adapter, DeploymentEvent
from tests.training.rows import add_campaign, add_judged
from training.models import RewardModel, Run, Snapshot
from training.snapshots import freeze

pytestmark = pytest.mark.django_db
PERMISSIONS = {"judgment": "view_judgment", "snapshot": "view_snapshot", "run": "view_run", "version": "view_adapter"}


@pytest.fixture
def chain() -> dict[str, Any]:
    campaign = add_campaign()
    judgment = add_judged(campaign, 5)[0]
    snapshot = freeze(campaign)
    version = Adapter.objects.create(name="adapter-1-abcdef", sha256="1" * 64, base_sha256="b" * 64)
    run = Run.objects.create(campaign=campaign, method="dpo", status="succeeded", adapter=version, snapshot=snapshot)
    DeploymentEvent.objects.create(alias="candidate", generation=1, adapter=version)
    return {"judgment": judgment, "snapshot": snapshot, "run": run, "version": version}


def address(kind: str, row: Any) -> str:
    return reverse("admin:training_lineage", args=[kind, row.pk])


def client_of(*permissions: str) -> Client:
    user = User.objects.create_user("somebody", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.mark.parametrize("kind", PERMISSIONS)
def test_it_leads_from_each_link_to_all_others(admin_client: Client, chain: dict[str, Any], kind: str) -> None:
    page = admin_client.get(address(kind, chain[kind]))
    content = page.content.decode()
    for name, row in chain.items():
        assert address(name, row) in content, name
    assert content.count("al-here") == 1
    assert "<strong>candidate</strong>" in content
    assert "1 response" not in content, "nobody judged what it wrote"


@pytest.mark.parametrize(("kind", "permission"), PERMISSIONS.items())
def test_it_asks_for_the_right_to_see_the_row(chain: dict[str, Any], kind: str, permission: str) -> None:
    others = {*PERMISSIONS.values()} - {permission}
    assert client_of(*others).get(address(kind, chain[kind])).status_code == 403


def test_it_names_no_annotator_to_who_may_not_view_judgments(chain: dict[str, Any]) -> None:
    client = client_of("view_run", "view_snapshot")
    content = client.get(address("snapshot", chain["snapshot"])).content.decode()
    assert chain["judgment"].annotator.username not in content
    assert address("judgment", chain["judgment"]) not in content


def test_it_knows_no_kind_and_no_row_that_is_none(admin_client: Client, chain: dict[str, Any]) -> None:
    assert admin_client.get(address("magic", chain["run"])).status_code == 404
    assert admin_client.get(address("run", Run(pk=10**6))).status_code == 404


def test_it_turns_pages(admin_client: Client) -> None:
    campaign = add_campaign()
    add_judged(campaign, 30)
    snapshot = freeze(campaign)
    oldest, newest = Judgment.objects.earliest("pk"), Judgment.objects.latest("pk")
    first = admin_client.get(address("snapshot", snapshot)).content.decode()
    second = admin_client.get(address("snapshot", snapshot), {"judgments": "2"}).content.decode()
    assert (address("judgment", newest) in first, address("judgment", oldest) in first) == (True, False)
    assert (address("judgment", newest) in second, address("judgment", oldest) in second) == (False, True)
    assert admin_client.get(address("snapshot", snapshot), {"judgments": "x"}).status_code == 200


def test_it_turns_the_pages_of_feedback_by_themselves(admin_client: Client, chain: dict[str, Any]) -> None:
    said = add_judged(add_campaign(), 30)
    Response.objects.filter(items__comparison__judgments__in=said).update(adapter=chain["version"])
    first, second = (
        admin_client.get(address("version", chain["version"]), {"feedback": number}).content.decode()
        for number in ("1", "2")
    )
    assert [address("judgment", row) in first for row in said].count(True) == 25
    assert [address("judgment", row) in second for row in said].count(True) == 5
    for page in (first, second):
        assert address("judgment", chain["judgment"]) in page, "what it learned from stays on its first page"
    assert "?feedback=2" in first


def test_it_leads_from_what_is_said_in_chat_to_the_version_that_answered(
    admin_client: Client, chain: dict[str, Any]
) -> None:
    [said] = add_judged(add_campaign(), 1)
    Response.objects.filter(items__comparison=said.comparison).update(adapter=chain["version"], source="chat")
    Comparison.objects.filter(pk=said.comparison_id).update(source="chat")
    page = admin_client.get(address("judgment", said)).content.decode()
    assert address("version", chain["version"]) in page
    assert "from chat" in page
    assert "from chat" in admin_client.get(address("version", chain["version"])).content.decode()


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        ("admin:labeling_judgment_change", "judgment"),
        ("admin:training_snapshot_change", "snapshot"),
        ("admin:training_run_change", "run"),
        ("admin:serving_adapter_change", "version"),
    ],
)
def test_it_is_reached_from_every_rows_own_page(
    admin_client: Client, chain: dict[str, Any], page: str, kind: str
) -> None:
    content = admin_client.get(reverse(page, args=[chain[kind].pk])).content.decode()
    assert address(kind, chain[kind]) in content


@pytest.mark.parametrize("kind", ["judgment", "snapshot", "run"])
def test_it_shows_the_reward_models_that_learned(admin_client: Client, chain: dict[str, Any], kind: str) -> None:
    run = chain["run"]
    assert "Reward models" not in admin_client.get(address(kind, chain[kind])).content.decode().split('"al-chain"')[1]
    made = RewardModel.objects.create(
        campaign=run.campaign, run=run, sha256="c" * 64, base_sha256="b" * 64, is_passed=True, is_active=True
    )
    content = admin_client.get(address(kind, chain[kind])).content.decode().split('"al-chain"')[1]
    assert reverse("admin:training_rewardmodel_change", args=[made.pk]) in content
    assert "in use" in content


def test_it_shows_a_run_that_has_nothing_yet(admin_client: Client) -> None:
    run = Run.objects.create(campaign=add_campaign(), method="dpo")
    assert admin_client.get(address("run", run)).status_code == 200
    assert not Snapshot.objects.exists()
