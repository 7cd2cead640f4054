"""The frame of every page in real Chromium: theme, words for failed requests, narrow screens, the keyboard."""

from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import reverse
from playwright.sync_api import Browser, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
# Resolves to what people would read, with the status and whether logging in may help.
POST = """async ([url, body]) => {
  const { postJSON } = await import("/static/js/api.js");
  try { return await postJSON(url, body); } catch (error) { return [error.message, error.status, error.needsLogin]; }
}"""
SHOW = """async (url) => {
  const { getJSON, showError } = await import("/static/js/api.js");
  try { await getJSON(url); } catch (error) { showError(error); }
}"""
REMEMBER_FIRST_THEME = """new MutationObserver((_, observer) => {
  if (!document.body) return;
  window.firstTheme = document.documentElement.dataset.theme;
  observer.disconnect();
}).observe(document, { childList: true, subtree: true })"""


@pytest.fixture
def page(browser: Browser, live_server) -> Iterator[Page]:
    """A window on the log-in page; anything that the content security policy refuses fails the test."""
    context = browser.new_context(base_url=live_server.url, color_scheme="light")
    page = context.new_page()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text) if "Security Policy" in message.text else None)
    page.goto(reverse("login"))
    yield page
    context.close()
    assert not refused


def log_in(page: Page, user) -> None:
    client = Client()
    client.force_login(user)
    page.context.add_cookies(
        [{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": page.evaluate("location.origin")}]
    )


def background(page: Page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_it_applies_a_chosen_theme_before_the_first_paint(page: Page) -> None:
    light = background(page)
    page.get_by_label("Dark").check()
    dark = background(page)
    page.add_init_script(REMEMBER_FIRST_THEME)
    page.reload()
    assert page.evaluate("window.firstTheme") == "dark"
    assert background(page) == dark != light
    expect(page.get_by_label("Dark")).to_be_checked()


def test_it_follows_the_system_again(page: Page) -> None:
    light = background(page)
    page.get_by_label("Dark").check()
    page.get_by_label("Auto").check()
    assert background(page) == light
    page.emulate_media(color_scheme="dark")
    assert background(page) != light


def test_it_says_in_words_why_a_request_failed(page: Page) -> None:
    message, status, needs_login = page.evaluate(POST, [reverse("judgment_create"), {}])
    assert (message, status, needs_login) == ("You are logged out.", 401, True)
    message, status, needs_login = page.evaluate(POST, ["/nothing/", {}])
    assert (message, status, needs_login) == ("What this page asked for is gone. Reload it and try again.", 404, False)
    page.context.set_offline(True)
    message, status, needs_login = page.evaluate(POST, [reverse("judgment_create"), {}])
    assert message.startswith("The server did not answer.")
    assert (status, needs_login) == (0, False)


def test_it_offers_a_way_back_in(page: Page) -> None:
    page.evaluate(SHOW, reverse("password_change"))
    toast = page.locator(".toast-error")
    expect(toast).to_contain_text("You are logged out")
    expect(toast.get_by_role("link")).to_have_attribute("href", f"{reverse('login')}?next=%2Flogin%2F")
    toast.get_by_role("button").click()
    expect(toast).to_have_count(0)


@pytest.mark.parametrize(("width", "height"), [(320, 640), (320, 225)], ids=["phone", "zoom-400"])
def test_it_fits_narrow_screens(page: Page, django_user_model, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    log_in(page, django_user_model.objects.create_superuser("a-rather-long-name-of-an-administrator"))
    for address in (reverse("login"), reverse("home"), reverse("password_change"), "/nothing/"):
        page.goto(address)
        assert page.url.endswith(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address


def test_it_opens_the_account_menu_by_keyboard(page: Page, django_user_model) -> None:
    log_in(page, django_user_model.objects.create_user("ada"))
    page.goto(reverse("home"))
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.get_by_role("button", name="ada").press("Enter")
    expect(page.get_by_role("link", name="Change password")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Change password")).to_be_hidden()
    page.get_by_role("button", name="ada").press("Enter")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
