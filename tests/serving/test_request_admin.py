from collections.abc import Callable

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from serving import keys, requests
from serving.client import EngineDown, Usage
from serving.models import Adapter, ApiKey, ServedRequest
from serving.requests import Served

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("base_model")]
LOG = "admin:serving_servedrequest_changelist"


@pytest.fixture
def key(ada: User) -> ApiKey:
    return keys.create(ada, "nightly", ["chat"], timezone.now())[0]


@pytest.fixture
def log(adapter: Callable[[int], Adapter], key: ApiKey, ada: User) -> list[ServedRequest]:
    """One that went well, by key, and one that failed, by page."""
    done = Served("chat.completions", adapter(1), "current", person_id=ada.pk, key_id=key.pk, usage=Usage(30, 12))
    done.note_token()
    done.note_done()
    failed = Served("page", adapter(2), person_id=ada.pk)
    failed.note_failure(EngineDown("no answer"))
    return [requests.record(served) for served in (done, failed)]


def shown(client: Client, **filters: str | int) -> list[ServedRequest]:
    response = client.get(reverse(LOG), filters)
    assert response.status_code == 200
    return list(response.context["cl"].result_list)


def test_it_shows_the_request_log(admin_client: Client, log: list[ServedRequest]) -> None:
    page = admin_client.get(reverse(LOG)).content.decode()
    for words in ("30 + 12", "nightly", "failed", str(log[0].adapter), "ada"):
        assert words.lower() in page.lower()
    detail = admin_client.get(reverse("admin:serving_servedrequest_change", args=[log[1].pk]))
    assert b"no answer" in detail.content


def test_it_filters_the_log_by_version_key_and_outcome(
    admin_client: Client, log: list[ServedRequest], key: ApiKey
) -> None:
    done, failed = log
    assert shown(admin_client, outcome__exact="failed") == [failed]
    assert shown(admin_client, adapter__id__exact=done.adapter.pk) == [done]
    assert shown(admin_client, key__id__exact=key.pk) == [done]
    assert shown(admin_client, q=failed.request_id) == [failed]


def test_it_lets_nobody_change_the_log(admin_client: Client, log: list[ServedRequest]) -> None:
    for action, args in (("add", []), ("change", [log[0].pk]), ("delete", [log[0].pk])):
        url = reverse(f"admin:serving_servedrequest_{action}", args=args)
        assert admin_client.post(url, {"post": "yes"}).status_code == 403


def test_it_gives_a_key_limits_of_its_own(admin_client: Client, log: list[ServedRequest], key: ApiKey) -> None:
    url = reverse("admin:serving_apikey_change", args=[key.pk])
    page = admin_client.get(url).content.decode()
    assert "1 requests, 42 tokens" in page
    assert "Empty: as the site has it" in page
    sent = {"requests_per_minute": "10", "tokens_per_minute": "", "max_concurrent": "0", "name": "changed"}
    assert admin_client.post(url, sent).status_code == 302
    key.refresh_from_db()
    assert (key.requests_per_minute, key.tokens_per_minute, key.max_concurrent) == (10, None, 0)
    assert key.name == "nightly"
    assert LogEntry.objects.get().object_id == str(key.pk)
