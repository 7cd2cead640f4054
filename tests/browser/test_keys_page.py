"""The pages of API keys and of the API's description in Chromium."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Browser, Page, expect
from pytest_django.live_server_helper import LiveServer

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
PASSWORD = "a long enough password"


@pytest.fixture
def page(browser: Browser, live_server: LiveServer) -> Iterator[Page]:
    """Logged in; a script error or anything that the policy refuses fails the test."""
    User.objects.create_user("ada", password=PASSWORD)
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, base_url=live_server.url, locale="en", permissions=["clipboard-write"]
    )
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto("/login/?next=/keys/")
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{live_server.url}/keys/")  # the page of the log-in names it, too
    yield page
    context.close()
    assert not errors, errors


def test_it_makes_copies_uses_and_revokes_a_key(page: Page, live_server: LiveServer, shots: Path) -> None:
    page.get_by_label("Name").fill("nightly import")
    page.get_by_label("campaigns:read").check()
    page.get_by_label("imports:write").check()
    page.get_by_role("button", name="Make the key").click()
    field = page.get_by_label("Your new key")
    expect(field).to_be_visible()
    page.screenshot(path=shots / "keys.png", full_page=True)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    key = field.input_value()

    program = page.context.browser.new_context()  # type: ignore[union-attr]
    headers = {"Authorization": f"Bearer {key}"}
    assert program.request.get(f"{live_server.url}/api/campaigns/", headers=headers).status == 200
    assert program.request.get(f"{live_server.url}/api/judgments/", headers=headers).status == 403

    page.get_by_role("button", name="Revoke nightly import").click()
    expect(page.get_by_text("You have none.")).to_be_visible()
    assert program.request.get(f"{live_server.url}/api/campaigns/", headers=headers).status == 401
    program.close()


def test_it_describes_every_operation(page: Page, shots: Path) -> None:
    page.get_by_role("link", name="What the API offers").click()
    claim = page.locator("details", has_text="/api/campaigns/{slug}/leases/")
    claim.locator("summary").click()
    expect(claim.get_by_text("Scope")).to_be_visible()
    expect(claim.get_by_role("rowheader", name="lease_seconds")).to_be_visible()
    page.screenshot(path=shots / "api.png")


@pytest.mark.parametrize("address", ["/keys/", "/api/docs/"])
def test_it_fits_a_phone(page: Page, shots: Path, address: str) -> None:
    page.set_viewport_size({"width": 320, "height": 700})
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.screenshot(path=shots / f"phone{address.replace('/', '-')}.png")
