from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from serving import adapters
from serving.models import Adapter, Deployment, DeploymentEvent, ServedRequest
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("engine")]
Maker = Callable[[int], Adapter]
PAGE = reverse("admin:serving_deployment_changelist")


def url(action: str) -> str:
    return reverse(f"admin:serving_deployment_{action}", args=[Deployment.objects.get().pk])


def act(client: Client, action: str, **fields: object) -> str:
    """Does it as the page shows it now; what the next page says."""
    generation = adapters.deployment().generation
    response = client.post(url(action), {"reason": "Because.", "generation": generation} | fields, follow=True)
    return " ".join(str(message) for message in response.context["messages"])


def test_it_leads_a_trial_from_start_to_end(admin_client: Client, admin_user: User, good_adapter: Maker) -> None:
    canary = good_adapter(1)
    adapters.deployment()
    assert canary.name in admin_client.get(url("start_canary")).content.decode()
    assert "answers 5 % of its conversations" in act(admin_client, "start_canary", adapter=canary.pk, percent=5)
    assert "answers 12.5 %" in act(admin_client, "change_canary", percent=12.5)
    assert f"“current” is now {canary.name}." in act(admin_client, "promote_canary")
    told = DeploymentEvent.objects.filter(alias="current", generation__gt=1).order_by("generation")
    assert [(event.kind, event.share, event.actor, event.reason) for event in told] == [
        ("canary started", 0.05, admin_user, "Because."),
        ("canary share changed", 0.125, admin_user, "Because."),
        ("canary promoted", None, admin_user, "Because."),
    ]


def test_it_stops_a_trial(admin_client: Client, good_adapter: Maker) -> None:
    adapters.start_canary(good_adapter(1), 0.1)
    assert "is now base-bbbbbb" in act(admin_client, "stop_canary")
    assert "No version is on trial" in act(admin_client, "stop_canary")


@pytest.mark.parametrize("percent", ["-1", "101", "many", "nan", ""])
def test_it_asks_again_for_a_share_that_is_none(admin_client: Client, good_adapter: Maker, percent: str) -> None:
    adapters.start_canary(good_adapter(1), 0.1)
    sent = {"reason": "x", "generation": "2", "percent": percent}
    assert b"al-bad" in admin_client.post(url("change_canary"), sent).content
    assert adapters.deployment().canary_share == 0.1


def test_it_changes_only_what_the_page_showed(admin_client: Client, good_adapter: Maker) -> None:
    adapters.start_canary(good_adapter(1), 0.1)
    for action in ("stop_canary", "promote_canary", "change_canary"):
        assert "moved meanwhile" in act(admin_client, action, generation=1, percent=50)
    assert adapters.deployment().canary_share == 0.1


def test_it_publishes_without_an_engine_only_when_told_to(
    admin_client: Client, good_adapter: Maker, settings: Settings
) -> None:
    row = good_adapter(1)
    adapters.deployment()
    settings.ENGINE_URLS = [*settings.ENGINE_URLS, "http://127.0.0.1:9"]
    publish = reverse("admin:serving_adapter_publish", args=[row.pk])
    sent = {"reason": "It burns.", "generation": "1"}
    refused = admin_client.post(publish, sent, follow=True)
    assert "http://127.0.0.1:9: does not answer" in refused.content.decode()
    assert adapters.current().is_base
    admin_client.post(publish, sent | {"is_forced": "on"})
    assert adapters.current() == row


def test_it_shows_what_answers_and_how_it_does(admin_client: Client, good_adapter: Maker, settings: Settings) -> None:
    old, canary = good_adapter(1), good_adapter(2)
    adapters.publish(old)
    adapters.start_canary(canary, 0.25)
    for outcome, n in {"done": 30, "failed": 10}.items():
        for _i in range(n):
            ServedRequest.objects.create(
                request_id="x", at=timezone.now(), endpoint="page", adapter=canary, outcome=outcome, status=200,
                seconds=2.5, seconds_to_first_token=0.5, completion_tokens=84,
            )  # fmt: skip
    settings.ENGINE_URLS = [*settings.ENGINE_URLS, "http://127.0.0.1:9"]
    text = " ".join(admin_client.get(PAGE).content.decode().split())
    for words in ("25 %", "75 %", "10 (25.0 %)", "42.0", "0.50 s", "does not answer", "has all that is in use"):
        assert words in text
    part = admin_client.get(PAGE, headers={"HX-Request": "true"}).content.decode()
    assert "<html" not in part
    assert canary.name in part


def test_it_says_which_engine_lacks_what(admin_client: Client, good_adapter: Maker, engine: ScriptedEngine) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    engine.adapters.clear()
    assert f"lacks {row.name}" in admin_client.get(PAGE).content.decode()


def test_it_says_when_there_is_no_model(admin_client: Client, settings: Settings) -> None:
    settings.MODEL = "/nowhere"
    assert "make model" in admin_client.get(PAGE).content.decode()


def test_it_tells_the_history_of_a_version_on_its_page(admin_client: Client, good_adapter: Maker, ada: User) -> None:
    row = good_adapter(1)
    adapters.publish(row, actor=ada, reason="It is <b>kinder</b>.")
    text = admin_client.get(reverse("admin:serving_adapter_change", args=[row.pk])).content.decode()
    for words in ("self-test passed", "published", "It is &lt;b&gt;kinder&lt;/b&gt;.", "ada"):
        assert words in text


def test_it_shows_no_buttons_to_those_who_may_only_look(client: Client, good_adapter: Maker, eve: User) -> None:
    adapters.start_canary(good_adapter(1), 0.1)
    eve.is_staff = True
    eve.save()
    client.force_login(eve)
    assert client.get(PAGE).status_code == 403
    eve.user_permissions.add(Permission.objects.get(codename="view_deployment"))
    page = client.get(PAGE)
    assert page.status_code == 200
    assert b"promote" not in page.content
    assert client.post(url("promote_canary"), {"reason": "x", "generation": "2"}).status_code == 403
    assert adapters.current().is_base


def test_it_removes_an_alias_but_not_the_one_of_the_chat(admin_client: Client, good_adapter: Maker) -> None:
    row = good_adapter(1)
    adapters.deployment()
    adapters.publish(row, alias="beta", actor=None)
    beta = reverse("admin:serving_deployment_remove_alias", args=[Deployment.objects.get(alias="beta").pk])
    current = reverse("admin:serving_deployment_remove_alias", args=[Deployment.objects.get(alias="current").pk])
    page = admin_client.get(PAGE).content.decode()
    assert beta in page
    assert current not in page
    assert b"Remove \xe2\x80\x9cbeta\xe2\x80\x9d" in admin_client.get(beta).content
    sent = {"reason": "The test is over.", "generation": "1"}
    assert "cannot be removed" in told(admin_client, current, **sent)
    assert "moved meanwhile" in told(admin_client, beta, **sent)
    assert "The alias was removed." in told(admin_client, beta, **sent | {"generation": "2"})
    assert [found.alias for found in Deployment.objects.all()] == ["current"]
    assert b"alias removed" in admin_client.get(PAGE).content


def told(client: Client, address: str, **sent: str) -> str:
    response = client.post(address, sent, follow=True)
    return " ".join(str(message) for message in response.context["messages"])
