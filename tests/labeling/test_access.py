"""Nobody gets at what is not theirs in labeling. Every address for everybody is in tests/test_access_matrix.py."""

import uuid

import pytest
from django.test import Client
from django.urls import reverse

from labeling.models import Judgment, Lease
from tests.labeling import make

pytestmark = pytest.mark.django_db
PAGES = {"home", "label", "password_change", "password_change_done"}


@pytest.fixture
def world():
    """A campaign with Anna, who holds a lease and has judged; Ben labels in another campaign."""
    cats, dogs = make.campaign("cats"), make.campaign("dogs")
    anna, ben = make.person("anna", cats), make.person("ben", dogs)
    judged = make.judge(make.lease(make.comparison(cats), anna))
    return {"anna": anna, "ben": ben, "lease": make.lease(make.comparison(cats), anna), "judged": judged}


def _requests(world):
    """Name, address and body of everything that somebody may ask for about Anna's campaign."""
    lease = world["lease"]
    judgment = {"lease": lease.pk, "client_key": uuid.uuid4(), "verdict": "tie", "order": lease.order}
    chat = {"messages": [uuid.uuid4(), uuid.uuid4()], "client_key": uuid.uuid4(), "verdict": "tie"}
    yield "home", reverse("home"), None
    yield "label", reverse("label", args=["cats"]), None
    yield "password_change", reverse("password_change"), None
    yield "password_change_done", reverse("password_change_done"), None
    yield "lease_claim", reverse("lease_claim", args=["cats"]), {}
    yield "import_pairs", reverse("import_pairs", args=["cats"]), {"pairs": [{}]}
    yield "lease_renew", reverse("lease_renew", args=[lease.pk]), {}
    yield "lease_release", reverse("lease_release", args=[lease.pk]), {}
    yield "judgment_create", reverse("judgment_create"), judgment
    revision = {"judgment": world["judged"].client_key, "client_key": uuid.uuid4(), "verdict": "tie", "order": [1, 2]}
    yield "judgment_revise", reverse("judgment_revise"), revision
    yield "judgment_undo", reverse("judgment_undo"), {"client_key": world["judged"].client_key}
    yield "chat_comparison", reverse("chat_comparison"), chat


def _ask(client, address, body):
    return client.get(address) if body is None else client.post(address, body, content_type="application/json")


def test_it_sends_strangers_to_the_login_page_or_answers_401(client, world):
    for name, address, body in _requests(world):
        response = _ask(client, address, body)
        if name in PAGES:
            assert (response.status_code, response.url.split("?")[0]) == (302, reverse("login")), name
        else:
            assert (response.status_code, response.json()["error"]["code"]) == (401, "login_required"), name
    _assert_nothing_changed(world)


def test_it_shows_nothing_of_a_campaign_to_an_annotator_of_another(client, world):
    client.force_login(world["ben"])
    for name, address, body in _requests(world):
        response = _ask(client, address, body)
        if name in {"home", "password_change", "password_change_done"}:
            assert "Cats" not in response.content.decode()
        elif name == "chat_comparison":
            assert response.status_code == 409  # he has not agreed that his chat is learned from
        else:
            assert response.status_code == 404, name
    _assert_nothing_changed(world)


def _assert_nothing_changed(world):
    assert Judgment.objects.count() == 1
    assert Lease.objects.get(pk=world["lease"].pk).ended_at is None


def test_it_keeps_other_peoples_leases_and_judgments_from_a_fellow_member(client, world):
    clara = make.person("clara", world["lease"].comparison.campaign)
    client.force_login(clara)
    for name, address, body in _requests(world):
        if name in {"lease_renew", "lease_release", "judgment_create", "judgment_revise", "judgment_undo"}:
            assert _ask(client, address, body).status_code == 404, name
    _assert_nothing_changed(world)


def test_it_lets_managers_import_and_annotators_not(client, world):
    cats = world["lease"].comparison.campaign
    line = {"prompt": "Why?", "responses": [{"text": "a"}, {"text": "b"}]}
    for user, status in ((world["anna"], 403), (make.person("mia", cats, role="manager"), 201)):
        client.force_login(user)
        assert _ask(client, reverse("import_pairs", args=["cats"]), {"pairs": [line]}).status_code == status


def test_it_shows_administrators_everything(client, world):
    client.force_login(make.person("root", is_staff=True))
    assert _ask(client, reverse("lease_claim", args=["cats"]), {}).status_code == 200
    assert "Dogs" in client.get(reverse("home")).content.decode()


def test_it_shuts_out_who_left_the_campaign(client, world):
    world["anna"].memberships.all().delete()
    client.force_login(world["anna"])
    response = _ask(client, reverse("lease_renew", args=[world["lease"].pk]), {})
    assert response.status_code == 404


def test_it_wants_a_csrf_token(world):
    client = Client(enforce_csrf_checks=True)
    client.force_login(world["anna"])
    for name, address, body in _requests(world):
        if body is not None:
            assert _ask(client, address, body).status_code == 403, name
    _assert_nothing_changed(world)


def test_it_keeps_the_admin_from_annotators(client, world):
    client.force_login(world["anna"])
    for model in ("campaign", "prompt", "invitation", "judgment"):
        assert client.get(reverse(f"admin:labeling_{model}_changelist")).status_code == 302
