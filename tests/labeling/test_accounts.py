from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.urls import reverse
from django.utils import timezone

from labeling import accounts
from labeling.models import Invitation
from tests.labeling import make

SOON = make.later(3600)
PASSWORD = "a-long-enough-one-7"


def _invite(role="annotator", campaigns=(), expires_at=SOON):
    invitation = Invitation(role=role, expires_at=expires_at)
    token = accounts.prepare(
        invitation, User.objects.filter(username="root").first() or make.person("root", is_superuser=True)
    )
    invitation.save()
    invitation.campaigns.set(campaigns)
    return token


@pytest.mark.django_db
def test_it_keeps_only_the_hash_of_a_token():
    token = _invite()
    assert token not in str(Invitation.objects.values().get())
    assert accounts.find(token, make.NOW) == Invitation.objects.get()
    assert accounts.find(token[:-1], make.NOW) is None


@pytest.mark.django_db
def test_it_promises_no_more_than_its_author_may():
    with pytest.raises(PermissionDenied):
        accounts.prepare(Invitation(role="administrator", expires_at=SOON), make.person(is_staff=True))


@pytest.mark.django_db
@pytest.mark.parametrize("role", ["annotator", "reviewer", "manager"])
def test_it_makes_an_account_with_its_role_in_the_campaigns(role):
    cats, _ = make.campaign("cats"), make.campaign("dogs")
    user = accounts.accept(_invite(role, [cats]), "anna", PASSWORD, make.NOW)
    assert list(user.memberships.values_list("campaign__slug", "role")) == [("cats", role)]
    assert (user.check_password(PASSWORD), user.is_staff, user.is_superuser) == (True, False, False)
    assert Invitation.objects.get().used_by == user


@pytest.mark.django_db
def test_it_joins_every_active_campaign_when_none_is_named_but_never_chats():
    make.campaign("cats"), make.campaign("chat"), make.campaign("old", status="closed")
    user = accounts.accept(_invite(), "anna", PASSWORD, make.NOW)
    assert list(user.memberships.values_list("campaign__slug", flat=True)) == ["cats"]


@pytest.mark.django_db
def test_it_makes_administrators():
    user = accounts.accept(_invite("administrator"), "anna", PASSWORD, make.NOW)
    assert (user.is_staff, user.is_superuser, user.memberships.count()) == (True, True, 0)


@pytest.mark.django_db
def test_it_takes_a_link_once_and_not_after_its_time():
    token = _invite()
    with pytest.raises(accounts.InvitationUsed):
        accounts.accept(token, "late", PASSWORD, make.later(3601))
    accounts.accept(token, "anna", PASSWORD, make.NOW)
    with pytest.raises(accounts.InvitationUsed):
        accounts.accept(token, "ben", PASSWORD, make.NOW)
    assert not User.objects.filter(username__in=["late", "ben"]).exists()


@pytest.mark.django_db(transaction=True)
def test_it_lets_one_of_many_use_a_link_at_once():
    token = _invite()

    def use(name):
        try:
            return accounts.accept(token, name, PASSWORD, make.NOW).username
        except accounts.InvitationUsed:
            return None
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as people:
        names = [name for name in people.map(use, "abcdef") if name]
    assert len(names) == 1
    assert list(User.objects.exclude(username="root").values_list("username", flat=True)) == names


def _link(**fields):
    return reverse("invitation", args=[_invite(expires_at=timezone.now() + accounts.VALID_FOR, **fields)])


@pytest.mark.django_db
def test_it_logs_the_new_person_in(client):
    link = _link(campaigns=[make.campaign("cats")])
    assert "You are invited" in client.get(link).content.decode()
    response = client.post(link, {"username": "anna", "password1": PASSWORD, "password2": PASSWORD})
    assert response.url == reverse("home")
    assert "Cats" in client.get(reverse("home")).content.decode()
    client.logout()
    assert client.get(link).status_code == 404


@pytest.mark.django_db
@pytest.mark.parametrize(("fields", "word"), [
    ({"username": "ROOT"}, "This name is taken"),
    ({"password2": "other"}, "password"),
    ({"password1": "short", "password2": "short"}, "too short"),
    ({"username": ""}, "required"),
])  # fmt: skip
def test_it_leaves_the_link_good_when_the_form_is_wrong(client, fields, word):
    link = _link()
    body = {"username": "anna", "password1": PASSWORD, "password2": PASSWORD, **fields}
    assert word in client.post(link, body).content.decode()
    assert client.post(link, {"username": "anna", "password1": PASSWORD, "password2": PASSWORD}).status_code == 302


@pytest.mark.django_db
def test_it_asks_who_is_logged_in_to_log_out_first(client):
    link = _link()
    client.force_login(make.person("anna"))
    assert client.post(link, {"username": "b", "password1": PASSWORD, "password2": PASSWORD}).status_code == 409
    assert Invitation.objects.get().used_at is None


@pytest.mark.django_db
def test_it_has_no_sign_up_and_changes_passwords(client):
    anna = make.person("anna")
    client.force_login(anna)
    body = {"old_password": "pass-word-123", "new_password1": PASSWORD, "new_password2": PASSWORD}
    assert client.post(reverse("password_change"), body).url == reverse("password_change_done")
    anna.refresh_from_db()
    assert anna.check_password(PASSWORD)
    assert client.get("/signup/").status_code == 404
