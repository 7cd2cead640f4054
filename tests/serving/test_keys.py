"""API keys: what is stored, who gets in by them, and their page."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from serving import adapters, keys, requests
from serving.client import Usage
from serving.models import ApiKey

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada", password="pass-word-123")


def test_it_stores_a_hash_and_never_the_key(ada: User) -> None:
    key, text = keys.create(ada, "import", ["imports:write"], NOW)
    row = ApiKey.objects.values().get(pk=key.pk)
    assert row["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert text.startswith(row["prefix"])
    assert text not in map(str, row.values())
    assert len(text) - len(row["prefix"]) >= 256 / 6  # base64 characters that nobody can look up


def test_it_makes_every_key_anew(ada: User) -> None:
    assert len({keys.create(ada, "same", ["chat"], NOW)[1] for _ in range(20)}) == 20


@pytest.mark.parametrize(("name", "scopes", "expires_at", "why"), [
    ("", ["chat"], None, "name"),
    ("  ", ["chat"], None, "name"),
    ("x" * 81, ["chat"], None, "name"),
    ("import", [], None, "labels:read"),
    ("import", ["everything"], None, "labels:read"),
    ("import", ["chat"], NOW, "future"),
])  # fmt: skip
def test_it_refuses_keys_that_make_no_sense(
    ada: User, name: str, scopes: list[str], expires_at: datetime | None, why: str
) -> None:
    with pytest.raises(keys.Refused, match=why):
        keys.create(ada, name, scopes, NOW, expires_at)
    assert not ApiKey.objects.exists()


def test_it_bounds_how_many_work_at_a_time(ada: User) -> None:
    made = [keys.create(ada, "many", ["chat"], NOW)[0] for _ in range(keys.MAX_KEYS)]
    with pytest.raises(keys.Refused, match="Revoke one"):
        keys.create(ada, "many", ["chat"], NOW)
    keys.revoke(made[0], NOW)
    keys.create(ada, "many", ["chat"], NOW)


def test_it_finds_keys_in_force_only(ada: User) -> None:
    key, text = keys.create(ada, "import", ["chat"], NOW, NOW + timedelta(days=1))
    assert keys.find(text, NOW) == key
    assert keys.find(text[:-1], NOW) is None
    assert keys.find(key.sha256, NOW) is None
    assert keys.find(text, NOW + timedelta(days=1)) is None
    ada.is_active = False
    ada.save()
    assert keys.find(text, NOW) is None
    User.objects.update(is_active=True)
    assert keys.revoke(key, NOW)
    assert not keys.revoke(key, NOW)
    assert keys.find(text, NOW) is None


def test_it_notes_its_use_once_a_minute(ada: User) -> None:
    text = keys.create(ada, "import", ["chat"], NOW)[1]
    noted = []
    for seconds in (0, 30, 59, 60, 90, 121):
        keys.find(text, NOW + timedelta(seconds=seconds))
        noted.append(ApiKey.objects.get().last_used_at)
    assert noted == [NOW + timedelta(seconds=seconds) for seconds in (0, 0, 0, 60, 60, 121)]


def test_it_replaces_a_key_by_one_like_it(ada: User) -> None:
    old, old_text = keys.create(ada, "import", ["chat", "labels:read"], NOW, NOW + timedelta(days=90))
    later = NOW + timedelta(days=80)
    new, text = keys.rotate(old, later)
    assert (new.name, new.scopes, new.expires_at) == ("import", old.scopes, later + timedelta(days=90))
    assert keys.find(old_text, later) is None
    assert keys.find(text, later) == new
    with pytest.raises(keys.Refused, match="revoked already"):
        keys.rotate(old, later)
    assert keys.in_force(ada, later).count() == 1


# --- the page ---------------------------------------------------------------------------------------------------------
def _make(client: Client) -> str:
    body = {"name": "nightly", "scopes": ["labels:read", "exports:read"], "days": "30"}
    return client.post(reverse("api_keys"), body).content.decode()


def test_it_shows_a_new_key_once(client: Client, ada: User) -> None:
    client.force_login(ada)
    page = _make(client)
    key = ApiKey.objects.get()
    shown = page.split('value="align_')[1].split('"')[0]
    assert keys.find(f"align_{shown}", key.created_at) == key
    assert key.scopes == ["exports:read", "labels:read"]
    assert key.expires_at == key.created_at + timedelta(days=30)
    again = client.get(reverse("api_keys"))
    assert shown not in again.content.decode()
    assert key.prefix in again.content.decode()
    assert "no-store" in again["Cache-Control"]


@pytest.mark.parametrize("prefix", ["", "/align"])
def test_it_says_where_programs_find_the_models(client: Client, ada: User, prefix: str) -> None:
    client.force_login(ada)
    page = client.get(reverse("api_keys"), SCRIPT_NAME=prefix).content.decode()
    assert f"<code>http://testserver{prefix}/v1</code>" in page


def test_it_says_what_is_missing_in_the_form(client: Client, ada: User) -> None:
    client.force_login(ada)
    page = client.post(reverse("api_keys"), {"name": "x", "days": "30"}).content.decode()
    assert "This field is required" in page
    assert not ApiKey.objects.exists()


def test_it_replaces_and_revokes_on_the_page(client: Client, ada: User) -> None:
    client.force_login(ada)
    _make(client)
    old = ApiKey.objects.get()
    page = client.post(reverse("api_key_rotate", args=[old.pk])).content.decode()
    new = ApiKey.objects.exclude(pk=old.pk).get()
    assert 'value="align_' in page
    assert client.post(reverse("api_key_revoke", args=[new.pk])).status_code == 302
    assert not keys.in_force(ada, new.created_at).exists()
    assert client.post(reverse("api_key_rotate", args=[new.pk])).status_code == 302  # nothing to replace any more
    assert ApiKey.objects.count() == 2


def test_it_keeps_other_peoples_keys_away(client: Client, ada: User) -> None:
    key = keys.create(ada, "hers", ["chat"], NOW)[0]
    client.force_login(User.objects.create_user("ben", is_staff=True))
    assert "hers" not in client.get(reverse("api_keys")).content.decode()
    for name in ("api_key_rotate", "api_key_revoke"):
        assert client.post(reverse(name, args=[key.pk])).status_code == 404
    assert keys.in_force(ada, NOW).count() == 1


def test_it_sends_strangers_to_the_login_page(client: Client, ada: User) -> None:
    key = keys.create(ada, "hers", ["chat"], NOW)[0]
    for address in (
        reverse("api_keys"),
        reverse("api_key_rotate", args=[key.pk]),
        reverse("api_key_revoke", args=[key.pk]),
    ):
        assert client.post(address).status_code == 302
    assert keys.in_force(ada, NOW).count() == 1


def test_it_wants_a_csrf_token(ada: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(ada)
    body = {"name": "nightly", "scopes": ["labels:read"], "days": "30"}
    assert client.post(reverse("api_keys"), body).status_code == 403
    assert not ApiKey.objects.exists()


def test_it_shows_administrators_who_has_keys(client: Client, ada: User) -> None:
    keys.create(ada, "hers", ["chat"], NOW)
    client.force_login(User.objects.create_superuser("root"))
    page = client.get(reverse("admin:serving_apikey_changelist")).content.decode()
    assert "hers" in page
    assert client.get(reverse("admin:serving_apikey_add")).status_code == 403


def test_it_keeps_the_limits_of_a_key_that_is_replaced(ada: User) -> None:
    key, _text = keys.create(ada, "import", ["chat"], NOW)
    keys.set_limits(key, requests=5, tokens=0, concurrent=None)
    key.refresh_from_db()
    made, _text = keys.rotate(key, NOW)
    made.refresh_from_db()
    assert (made.requests_per_minute, made.tokens_per_minute, made.max_concurrent) == (5, 0, None)


def test_it_asks_the_database_only_about_what_looks_like_a_key(
    ada: User, django_assert_num_queries: Callable[[int], AbstractContextManager[None]]
) -> None:
    _key, text = keys.create(ada, "import", ["chat"], NOW)
    for shown, n_queries in ((text, 1), (f"{keys.MARK}unknown", 1), ("sk-else", 0), ("", 0)):
        with django_assert_num_queries(n_queries):
            assert (keys.look_up(shown, NOW) is not None) == (shown == text)


def test_it_shows_limits_and_todays_use_on_the_page(client: Client, ada: User, engine: object) -> None:
    key, _text = keys.create(ada, "program", ["chat"], timezone.now())
    keys.set_limits(key, requests=1_234, tokens=0, concurrent=3)
    for at in (timezone.now(), timezone.now() - timedelta(days=2)):
        served = requests.Served("completions", adapters.base(), key_id=key.pk, at=at, usage=Usage(1_000, 500))
        requests.record(served)
    client.force_login(ada)
    page = " ".join(client.get(reverse("api_keys")).content.decode().split())
    assert (
        "Today 1 request to models, 1,500 tokens. At most 1,234 requests a minute. At most 3 answered at once." in page
    )
