"""The chat on the smallest phone, by thumb: nothing to miss, and nothing beyond the edge."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.chat.talking import answered, answers
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.browser]

WIDTH = 320
# What is pressed, but for links in sentences and radio buttons, whose whole row can be pressed.
SMALL = """() => [...document.querySelectorAll("a, button, input:not([type=radio]), select, textarea, .picker-option")]
  .filter((e) => e.checkVisibility({ visibilityProperty: true }) && !e.closest(".prose a, .visually-hidden, .skip-link"))
  .map((e) => [e.ariaLabel || e.textContent.trim() || e.id, e.getBoundingClientRect()])
  .filter(([, { width, height }]) => width && (width < 39.5 || height < 39.5))
  .map(([name, { width, height }]) => `${name}: ${width} × ${height}`)"""


@pytest.fixture
def phone(browser: Browser, page: Page) -> Iterator[Page]:
    """The page of the same person on a phone."""
    context = browser.new_context(
        viewport={"width": WIDTH, "height": 640}, has_touch=True, is_mobile=True, base_url=page.url, locale="en",
        storage_state=page.context.storage_state(),
    )  # fmt: skip
    phone = context.new_page()
    phone.goto("/chat/")
    yield phone
    context.close()


def look(phone: Page) -> None:
    assert phone.evaluate(SMALL) == []
    assert phone.evaluate("document.documentElement.scrollWidth") <= WIDTH


def test_it_is_used_by_thumb(phone: Page, engine: ScriptedEngine) -> None:
    look(phone)
    answered(phone, f"A{'a' * 200} question")
    look(phone)
    tops = (
        answers(phone).locator("footer .button").evaluate_all("(all) => all.map((e) => e.getBoundingClientRect().top)")
    )
    assert len(tops) == 7
    assert len(set(tops)) == 1  # one line
    phone.get_by_role("button", name="Regenerate", exact=True).click()
    expect(answers(phone)).to_contain_text("2/2")
    look(phone)
    phone.get_by_role("button", name="Before and after", exact=True).click()
    expect(phone.get_by_role("dialog")).to_contain_text("current")
    look(phone)
    phone.keyboard.press("Escape")
    for name in ("Conversations", "Who answers", "Compare two versions", "Settings"):
        phone.get_by_role("button", name=name, exact=True).click()
        look(phone)
        phone.keyboard.press("Escape")
    phone.get_by_role("button", name="Export the conversation").click()
    look(phone)
    phone.keyboard.press("Escape")
    phone.get_by_role("button", name="Edit the question").click()
    look(phone)
    phone.get_by_role("button", name="Cancel").last.click()
    phone.get_by_role("button", name="Regenerate and compare").click()
    expect(phone.get_by_role("button", name="1 is better")).to_be_visible()
    look(phone)


def test_it_lets_a_thumb_dismiss_an_error(phone: Page) -> None:
    phone.route("**/chat/start/", lambda route: route.abort())
    phone.get_by_label("Your message").fill("Lost")
    phone.get_by_role("button", name="Send").click()
    expect(phone.get_by_role("button", name="Dismiss")).to_be_visible()
    look(phone)
