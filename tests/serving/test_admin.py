from collections.abc import Callable

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from serving import adapters, tasks
from serving.models import Adapter, Deployment, DeploymentEvent
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("engine")]
Maker = Callable[[int], Adapter]
LISTS = ["serving_adapter", "serving_deployment", "serving_deploymentevent"]


def publish_url(row: Adapter) -> str:
    return reverse("admin:serving_adapter_publish", args=[row.pk])


def roll_back_url() -> str:
    return reverse("admin:serving_deployment_roll_back", args=[Deployment.objects.get().pk])


def said(response: object) -> str:
    return " ".join(str(message) for message in response.context["messages"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", LISTS)
def test_it_shows_lists_and_rows_to_administrators_only(
    admin_client: Client, client: Client, eve: User, good_adapter: Maker, model: str
) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    object_id = {"serving_adapter": row, "serving_deployment": Deployment.objects.get()}.get(
        model, DeploymentEvent.objects.all()[0]
    )
    for url in (reverse(f"admin:{model}_changelist"), reverse(f"admin:{model}_change", args=[object_id.pk])):
        response = admin_client.get(url)
        assert response.status_code == 200
        assert row.name.encode() in response.content
        client.force_login(eve)
        assert client.get(url).status_code == 302


@pytest.mark.parametrize("model", LISTS)
def test_it_lets_nobody_edit_rows_by_hand(admin_client: Client, good_adapter: Maker, model: str) -> None:
    adapters.publish(good_adapter(1))
    assert admin_client.get(reverse(f"admin:{model}_add")).status_code == 403
    row = apps.get_model("serving", model.removeprefix("serving_"))._default_manager.all()[0]
    assert admin_client.post(reverse(f"admin:{model}_change", args=[row.pk]), {}).status_code == 403
    assert admin_client.post(reverse(f"admin:{model}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403


def test_it_publishes_after_a_reason(admin_client: Client, admin_user: User, good_adapter: Maker) -> None:
    row = good_adapter(1)
    assert b"Reason" in admin_client.get(publish_url(row)).content
    assert b"Give a reason" in admin_client.post(publish_url(row), {"reason": " "}).content
    assert adapters.current().is_base
    response = admin_client.post(publish_url(row), {"reason": "It is kinder.", "generation": "1"}, follow=True)
    assert row.name in said(response)
    event = DeploymentEvent.objects.get(generation=2)
    assert (event.adapter, event.actor, event.reason) == (row, admin_user, "It is kinder.")


def test_it_publishes_under_another_alias_that_it_showed(
    admin_client: Client, admin_user: User, good_adapter: Maker
) -> None:
    row = good_adapter(1)
    page = admin_client.get(publish_url(row)).content.decode()
    assert "In use: current. Another name makes a new alias." in page
    assert 'name="shown" value="current"' in page
    sent = {"alias": "beta", "reason": "For the testers.", "generation": "1"}
    asked_again = admin_client.post(publish_url(row), sent | {"shown": "current"})
    page = asked_again.content.decode()
    assert "There is no alias “beta” yet." in page
    assert 'name="shown" value="beta"' in page
    assert "For the testers." in page
    assert not Deployment.objects.filter(alias="beta").exists()
    assert f"“beta” is now {row.name}." in said(
        admin_client.post(publish_url(row), sent | {"shown": "beta"}, follow=True)
    )
    assert adapters.resolve("beta").adapter == row
    assert adapters.current().is_base
    event = DeploymentEvent.objects.get(alias="beta", generation=2)
    assert (event.actor, event.reason) == (admin_user, "For the testers.")


def test_it_publishes_under_an_alias_only_what_it_showed(admin_client: Client, good_adapter: Maker) -> None:
    rows = [good_adapter(seed) for seed in (1, 2)]
    adapters.publish(rows[0], alias="beta")
    sent = {"alias": "beta", "reason": "It is kinder.", "shown": "beta"}
    page = admin_client.post(publish_url(rows[1]), sent | {"shown": "current", "generation": "1"}).content.decode()
    assert "Who asks “beta” is answered by it from now on." in page
    assert 'name="generation" value="2"' in page
    assert f"Answering now: {rows[0]}" in page
    stale = admin_client.post(publish_url(rows[1]), sent | {"generation": "1"}, follow=True)
    assert "moved meanwhile" in said(stale)
    admin_client.post(publish_url(rows[1]), sent | {"generation": "2"})
    assert adapters.resolve("beta").adapter == rows[1]


@pytest.mark.parametrize(
    ("alias", "why"),
    [("Be ta", "lower-case letters"), ("base", "a name of versions"), ("adapter-7", "a name of versions")],
)
def test_it_says_which_names_no_alias_can_have(admin_client: Client, good_adapter: Maker, alias: str, why: str) -> None:
    row = good_adapter(1)
    sent = {"alias": alias, "reason": "x", "generation": "1", "shown": "current"}
    page = admin_client.post(publish_url(row), sent).content.decode()
    assert why in page
    assert 'name="shown" value="current"' in page
    assert [found.alias for found in Deployment.objects.all()] == ["current"]
    assert adapters.current().is_base


def test_it_rolls_back_after_a_reason(admin_client: Client, good_adapter: Maker) -> None:
    adapters.publish(good_adapter(1))
    page = admin_client.get(roll_back_url())
    assert b'name="generation" value="2"' in page.content
    admin_client.post(roll_back_url(), {"reason": "It rambles.", "generation": "2"})
    assert adapters.current().is_base


@pytest.mark.parametrize("stale", [{"generation": "2"}, {"generation": "two"}, {}])
def test_it_rolls_back_only_what_the_page_showed(
    admin_client: Client, good_adapter: Maker, stale: dict[str, str]
) -> None:
    adapters.publish(good_adapter(1))
    adapters.publish(good_adapter(2))
    response = admin_client.post(roll_back_url(), {"reason": "It rambles.", **stale}, follow=True)
    assert "moved meanwhile" in said(response)
    assert adapters.deployment().generation == 3


def test_it_says_why_nothing_was_published(
    admin_client: Client, good_adapter: Maker, engine: ScriptedEngine, settings: Settings
) -> None:
    engine.scale = 0
    row = good_adapter(1)
    sent = {"reason": "x", "generation": "1"}
    assert "does not do" in said(admin_client.post(publish_url(row), sent, follow=True))
    adapters.deployment()
    assert "only one version" in said(admin_client.post(roll_back_url(), sent, follow=True))
    engine.scale = 1
    other = good_adapter(2)
    settings.ENGINE_URLS = ["http://127.0.0.1:9"]
    assert "starting" in said(admin_client.post(publish_url(other), sent, follow=True))


def test_it_is_closed_to_everybody_else(client: Client, eve: User, good_adapter: Maker) -> None:
    row = good_adapter(1)
    adapters.deployment()
    eve.is_staff = True  # may enter the admin, but was given no permission
    eve.save()
    for url in (publish_url(row), roll_back_url()):
        client.logout()
        assert client.post(url, {"reason": "x"}).status_code == 302
        client.force_login(eve)
        assert client.post(url, {"reason": "x"}).status_code == 403
    assert adapters.current().is_base


def test_it_reconciles_in_a_task(good_adapter: Maker, engine: ScriptedEngine) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    engine.adapters.clear()
    tasks.reconcile()
    assert row.name in engine.adapters
