"""The admin's page of deployments in real Chromium: everybody can use it, and a trial is led with it from start to end."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.urls import reverse
from playwright.sync_api import Browser, Page, expect

from serving import adapters
from serving.models import Adapter, Deployment
from tests.browser.screens import log_in
from tests.serving.conftest import adapter, base_model, engine, good_adapter

__all__ = ["adapter", "base_model", "engine", "good_adapter"]  # fixtures
pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
PAGE = reverse("admin:serving_deployment_changelist")
OPTIONS: list[dict[str, Any]] = [
    {"viewport": {"width": 1280, "height": 800}},
    {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
]


@pytest.fixture
def versions(good_adapter: Callable[[int], Adapter], admin_user: User) -> list[Adapter]:
    """Two that were published one after the other, and one that was not."""
    rows = [good_adapter(seed) for seed in range(3)]
    adapters.publish(rows[0], actor=admin_user, reason="It is kinder.")
    adapters.publish(rows[1], actor=admin_user, reason="It answers in whole sentences.")
    return rows


@pytest.fixture
def window(browser: Browser, live_server: Any, admin_user: User) -> Iterator[Callable[..., Page]]:
    """Opens windows of the administrator; a script error or refused resource fails the test."""
    opened, errors = [], []

    def open_page(**options: Any) -> Page:
        context = browser.new_context(base_url=live_server.url, locale="en", **options)
        context.set_default_timeout(30_000)
        opened.append(context)
        log_in(context, live_server.url, admin_user)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert not errors, errors


@pytest.mark.parametrize("options", OPTIONS, ids=["desktop", "phone", "dark"])
def test_it_has_pages_that_everybody_can_use(
    versions: list[Adapter], window: Callable[..., Page], shots: Path, request: Any, options: dict[str, Any]
) -> None:
    adapters.start_canary(versions[2], 0.25, reason="Is it better at recipes?")
    page, row = window(**options), Deployment.objects.get()
    change = reverse("admin:serving_deployment_change_canary", args=[row.pk])
    start = reverse("admin:serving_deployment_start_canary", args=[row.pk])
    publish = reverse("admin:serving_adapter_publish", args=[versions[2].pk])
    for name, address in (("deployments", PAGE), ("change", change), ("start", start), ("publish", publish)):
        page.goto(address)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the screen"
        found = Axe().run(page, context=".al-page")  # around it is django-unfold's frame
        assert found.violations_count == 0, f"{name}: {found.generate_report()}"
        if os.environ.get("SCREENSHOTS"):
            page.screenshot(path=shots / f"{name}-{request.node.callspec.id}.png", full_page=True)


def give_reason(page: Page, button: str, reason: str = "Because.") -> None:
    page.get_by_label("Reason").fill(reason)
    page.get_by_role("button", name=button).click()


def test_it_leads_a_trial_and_goes_back(versions: list[Adapter], window: Callable[..., Page]) -> None:
    before, now, tried = versions
    page = window(**OPTIONS[0])
    page.goto(PAGE)
    page.get_by_role("link", name="Try out a version…").click()
    page.get_by_label("Version", exact=True).select_option(label=tried.name)
    page.get_by_label("Share of conversations").fill("10")
    give_reason(page, "Try out")
    expect(page.get_by_text(f"{tried.name} answers 10 % of its conversations")).to_be_visible()
    page.get_by_role("link", name="Promote…").click()
    give_reason(page, "Promote", "It is better at recipes.")
    expect(page.get_by_role("heading", name=f"current → {tried.name}")).to_be_visible()
    expect(page.get_by_text("It is better at recipes.")).to_be_visible()
    page.get_by_role("link", name=f"Roll back to {now.name}…").click()
    give_reason(page, "Roll back")
    expect(page.get_by_role("heading", name=f"current → {now.name}")).to_be_visible()
    assert adapters.current() == now
    assert before.events.exists()


def test_it_makes_an_alias_and_removes_it(versions: list[Adapter], window: Callable[..., Page]) -> None:
    page = window(**OPTIONS[0])
    page.goto(reverse("admin:serving_adapter_publish", args=[versions[2].pk]))
    page.get_by_label("Alias").fill("beta")
    give_reason(page, "Publish", "For the testers.")
    expect(page.get_by_text("There is no alias “beta” yet.")).to_be_visible()
    expect(page.get_by_label("Reason")).to_have_value("For the testers.")
    page.get_by_role("button", name=f"Publish {versions[2].name} as “beta”").click()
    expect(page.get_by_text(f"“beta” is now {versions[2].name}.")).to_be_visible()
    page.goto(PAGE)
    expect(page.get_by_role("heading", name=f"current → {versions[1].name}")).to_be_visible()
    page.get_by_role("link", name="Remove…").click()
    give_reason(page, "Remove “beta”")
    expect(page.get_by_text("The alias was removed.")).to_be_visible()
    expect(page.get_by_role("heading", name="beta →")).to_have_count(0)


def test_it_shows_what_others_do(versions: list[Adapter], window: Callable[..., Page]) -> None:
    """It asks again by itself: nobody has to reload it."""
    page = window(**OPTIONS[0])
    page.clock.install()
    page.goto(PAGE)
    expect(page.get_by_role("heading", name=f"current → {versions[1].name}")).to_be_visible()
    adapters.rollback(reason="Somebody else was faster.")
    page.clock.run_for(16_000)
    expect(page.get_by_role("heading", name=f"current → {versions[0].name}")).to_be_visible()
