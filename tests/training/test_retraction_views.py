"""The manager's pages: what would be retracted, why it was, what had learned from it, and the run without it."""

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from labeling import judgments
from labeling.models import Judgment, Membership, Retraction
from serving import adapters
from serving.models import Adapter, DeploymentEvent
from tests.training.rows import add_annotator, add_campaign, add_judged
from training.models import RewardModel, Run
from training.snapshots import freeze

pytestmark = pytest.mark.django_db
WHY = "Answered at random."


@pytest.fixture
def campaign():
    return add_campaign()


@pytest.fixture
def manager(campaign):
    user = add_annotator()
    Membership.objects.create(campaign=campaign, user=user, role=Membership.Role.MANAGER)
    return user


@pytest.fixture
def page(manager) -> Client:
    client = Client()
    client.force_login(manager)
    return client


@pytest.fixture
def rows(campaign) -> list[Judgment]:
    return add_judged(campaign, 5)


@pytest.fixture
def run(campaign, rows) -> Run:
    version = Adapter.objects.create(name="adapter-1-abcdef", sha256="1" * 64, base_sha256=adapters.base().sha256)
    DeploymentEvent.objects.create(alias="current", generation=1, adapter=version)
    return Run.objects.create(
        campaign=campaign, adapter=version, snapshot=freeze(campaign), method="dpo", status=Run.Status.SUCCEEDED
    )


def start(campaign, **asked) -> str:
    return reverse("retraction_start", args=[campaign.slug], query=asked)


def test_it_shows_what_has_learned_from_a_judgment_before_it_is_retracted(page, campaign, rows, run):
    text = page.get(start(campaign, judgment=rows[0].pk)).content.decode()
    assert "adapter-1-abcdef" in text
    assert run.snapshot.sha256[:16] in text
    assert "current" in text
    assert judgments.in_force().filter(pk=rows[0].pk).exists()


def test_it_retracts_with_a_reason(page, manager, campaign, rows, run):
    answer = page.post(start(campaign, judgment=rows[0].pk), {"reason": WHY})
    made = Retraction.objects.get()
    assert answer.url == reverse("retraction_detail", args=[campaign.slug, made.pk])
    assert (made.by, made.reason, made.annotator) == (manager, WHY, rows[0].annotator)
    text = page.get(answer.url).content.decode()
    assert WHY in text
    assert "adapter-1-abcdef" in text
    listed = page.get(reverse("campaign_retractions", args=[campaign.slug])).content.decode()
    assert WHY in listed
    assert "There is nothing to retract" in page.get(start(campaign, judgment=rows[0].pk)).content.decode()


def test_it_asks_again_without_a_reason(page, campaign, rows):
    answer = page.post(start(campaign, judgment=rows[0].pk), {"reason": "  "})
    assert answer.status_code == 422
    assert "Say why" in answer.content.decode()
    assert not Retraction.objects.exists()


def test_it_retracts_all_that_a_person_said(page, campaign, rows):
    annotator = rows[0].annotator
    assert "5 judgments" in page.get(start(campaign, person=annotator.pk)).content.decode()
    page.post(start(campaign, person=annotator.pk), {"reason": WHY})
    assert not judgments.in_force().filter(annotator=annotator).exists()


def test_it_finds_nothing_of_another_campaign(page, campaign):
    [elsewhere] = add_judged(add_campaign(), 1)
    for asked in ({"judgment": elsewhere.pk}, {"person": elsewhere.annotator_id}, {"judgment": "x"}, {}):
        for method in (page.get, page.post):
            assert method(start(campaign, **asked), {"reason": WHY}).status_code == 404
    assert judgments.in_force().filter(pk=elsewhere.pk).exists()


def test_it_runs_again_for_those_who_may_train(page, manager, campaign, rows, run):
    page.post(start(campaign, judgment=rows[0].pk), {"reason": WHY})
    made = Retraction.objects.get()
    shown, again = (
        reverse(name, args=[campaign.slug, made.pk, *more])
        for name, more in (("retraction_detail", ()), ("run_again", (run.pk,)))
    )
    assert again not in page.get(shown).content.decode()
    assert page.post(again).status_code == 403
    manager.user_permissions.add(Permission.objects.get(codename="add_run"))
    assert again in page.get(shown).content.decode()
    assert page.post(again).url == shown
    assert Run.objects.get(without=made).retry_of == run
    text = page.post(again, follow=True).content.decode()
    assert "has a run already" in text
    assert f"repeats run {run.pk}" in text
    assert Run.objects.filter(without=made).count() == 1


def test_it_runs_nothing_of_another_campaign_again(page, manager, campaign, rows, run):
    manager.user_permissions.add(Permission.objects.get(codename="add_run"))
    page.post(start(campaign, judgment=rows[0].pk), {"reason": WHY})
    elsewhere = Run.objects.create(
        campaign=add_campaign(),
        method="dpo",
        status=Run.Status.SUCCEEDED,
        params={"start": "incumbent"},
        incumbent=run.adapter,
    )
    made = Retraction.objects.get()
    again = reverse("run_again", args=[campaign.slug, made.pk, elsewhere.pk])
    assert again not in page.get(reverse("retraction_detail", args=[campaign.slug, made.pk])).content.decode()
    assert page.post(again).status_code == 404
    assert not Run.objects.filter(retry_of=elsewhere).exists()


def test_it_takes_a_reward_model_out_of_use_for_those_who_may_change_runs(page, manager, campaign, rows, run):
    learned = Run.objects.create(
        campaign=campaign, snapshot=run.snapshot, method="reward_model", status=Run.Status.SUCCEEDED
    )
    made = RewardModel.objects.create(
        campaign=campaign, run=learned, sha256="c" * 64, base_sha256="b" * 64, is_passed=True, is_active=True
    )
    page.post(start(campaign, judgment=rows[0].pk), {"reason": WHY})
    retraction = Retraction.objects.get()
    shown = reverse("retraction_detail", args=[campaign.slug, retraction.pk])
    away = reverse("reward_model_put_away", args=[campaign.slug, retraction.pk, made.pk])
    text = page.get(shown).content.decode()
    assert "1 reward model learned from it" in text
    assert away not in text
    assert page.post(away).status_code == 403
    assert RewardModel.objects.filter(is_active=True).exists()
    manager.user_permissions.add(Permission.objects.get(codename="change_run"))
    assert away in page.get(shown).content.decode()
    text = page.post(away, follow=True).content.decode()
    assert f"Reward model {made.pk} is out of use." in text
    assert away not in text
    assert not RewardModel.objects.filter(is_active=True).exists()
    assert "was not in use" in page.post(away, follow=True).content.decode()
    elsewhere = reverse("reward_model_put_away", args=[campaign.slug, retraction.pk, made.pk + 1])
    assert page.post(elsewhere).status_code == 404


def test_it_lists_all_that_learned_page_by_page(page, manager, campaign, rows, run):
    manager.user_permissions.add(Permission.objects.get(codename="add_run"))
    snapshot = run.snapshot
    Run.objects.bulk_create(
        Run(campaign=campaign, snapshot=snapshot, method="dpo", status=Run.Status.SUCCEEDED) for _ in range(30)
    )
    before = page.get(start(campaign, judgment=rows[0].pk)).content.decode()
    assert f"?judgment={rows[0].pk}&amp;runs=2" in before
    page.post(start(campaign, judgment=rows[0].pk), {"reason": WHY})
    made = Retraction.objects.get()
    shown = reverse("retraction_detail", args=[campaign.slug, made.pk])
    oldest = reverse("run_again", args=[campaign.slug, made.pk, run.pk])
    first, second = (page.get(shown, {"runs": number}).content.decode() for number in ("1", "2"))
    assert (oldest in first, oldest in second) == (False, True)
    assert "?runs=2" in first
    assert "lineage pages of the admin" not in first


def test_it_reads_no_feedback_for_what_learned(page, campaign, rows, run):
    with CaptureQueriesContext(connection) as asked:
        assert "adapter-1-abcdef" in page.get(start(campaign, judgment=rows[0].pk)).content.decode()
    assert not any("serving_message" in query["sql"] for query in asked.captured_queries)


def test_it_is_reached_from_the_persons_page(page, campaign, rows):
    text = page.get(reverse("campaign_annotator", args=[campaign.slug, rows[0].annotator_id])).content.decode()
    assert start(campaign, judgment=rows[0].pk) in text
    assert start(campaign, person=rows[0].annotator_id) in text


@pytest.mark.parametrize(("role", "code"), [(None, 404), ("annotator", 403), ("reviewer", 403)])
def test_it_shows_nothing_to_others(role, code, page, campaign, rows, run):
    page.post(start(campaign, judgment=rows[0].pk), {"reason": WHY})
    made, user, client = Retraction.objects.get(), add_annotator(), Client()
    user.user_permissions.add(Permission.objects.get(codename="add_run"))
    addresses = [
        reverse("campaign_retractions", args=[campaign.slug]),
        start(campaign, judgment=rows[1].pk),
        reverse("retraction_detail", args=[campaign.slug, made.pk]),
    ]
    again = reverse("run_again", args=[campaign.slug, made.pk, run.pk])
    assert all("/login/" in client.get(address)["Location"] for address in addresses)
    if role:
        Membership.objects.create(campaign=campaign, user=user, role=role)
    client.force_login(user)
    assert {client.get(address).status_code for address in addresses} == {code}
    assert client.post(addresses[1], {"reason": WHY}).status_code == code
    assert client.post(again).status_code == code
    assert Retraction.objects.count() == 1
    assert not Run.objects.filter(without=made).exists()
