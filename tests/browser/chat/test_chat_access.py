"""For everybody: axe, the keyboard alone, 400 % zoom."""

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser import screens as on
from tests.browser.chat.talking import answered, answers, ask, complete
from tests.browser.test_label_access import RULES, ZOOMED
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.browser]

SAID = [
    "# Bread\n\nWith `flour`, a [link](https://example.com/) and $E = mc^2$.\n\n1. Mix\n   - fold\n\n",
    "| Name | Amount | Notes |\n|---|---:|---|\n| Flour | 500 g | " + "sift it well " * 20 + "|\n\n",
    "```python\ndef bake(minutes: int) -> None:  # " + "loud " * 40 + "\n    pass\n```\n\n> A quote.\n",
]


@pytest.fixture
def window(browser: Browser, page: Page, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Another window of the same person, with options."""
    state = page.context.storage_state()
    context = browser.new_context(
        **{**on.DESKTOP, **request.param}, base_url=page.url, storage_state=state, locale="en", reduced_motion="reduce"
    )
    window = context.new_page()
    window.goto("/chat/")
    yield window
    context.close()


def violations(page: Page) -> list[str]:
    found = Axe().run(page, options={"runOnly": RULES}).response["violations"]
    return [f"{rule['id']}: {node['target']} {node['failureSummary']}" for rule in found for node in rule["nodes"]]


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


SIGHTS: list[dict[str, Any]] = [{}, {"color_scheme": "dark"}, on.PHONE]


@pytest.mark.parametrize("window", SIGHTS, ids=["light", "dark", "phone"], indirect=True)
def test_it_has_nothing_for_axe_to_say(window: Page, engine: ScriptedEngine) -> None:
    assert violations(window) == []
    engine.pieces = SAID
    answered(window, "How do I bake bread?")
    press(window, "Details")
    assert violations(window) == []
    for name in ("Who answers", "Compare two versions", "Settings", "Before and after"):
        press(window, name)
        if name == "Before and after":
            expect(window.locator('[data-column][aria-busy="false"]')).to_have_count(2)
        assert violations(window) == [], name
        window.keyboard.press("Escape")
    press(window, "Compare two versions")
    if window.get_by_role("button", name="Conversations").is_visible():
        press(window, "Conversations")
        assert violations(window) == []
        press(window, "Conversations")
    press(window, "Edit the question")
    assert violations(window) == []
    window.keyboard.press("Escape")
    press(window, "Regenerate and compare")
    expect(window.get_by_role("button", name="1 is better")).to_be_visible()
    assert violations(window) == []
    window.get_by_role("button", name="Do not judge").click()
    expect(window.get_by_text("Not judged.")).to_be_visible()
    assert violations(window) == []
    engine.refusal = (503, "loading")
    ask(window, "And now?")
    expect(window.get_by_role("alert")).to_be_visible()
    assert violations(window) == []


def test_it_is_used_by_the_keyboard_alone(page: Page, engine: ScriptedEngine) -> None:
    """From the field backwards, what was just said is nearest."""
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.type("By hand")
    page.keyboard.press("Enter")
    complete(page)
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Details")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".facts")).to_be_visible()
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Before and after")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("current")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Before and after")).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Who answers")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Whatever is current")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_label("Your question, edited")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Edit the question")).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("To the message field")
    page.keyboard.press("Escape")


@pytest.mark.parametrize("window", [ZOOMED], ids=["400 %"], indirect=True)
def test_it_can_be_read_when_it_is_four_times_as_large(window: Page, engine: ScriptedEngine) -> None:
    engine.pieces = SAID
    answered(window, "How do I bake bread?")
    assert window.evaluate("document.documentElement.scrollWidth") <= 320
    answers(window).locator("pre").scroll_into_view_if_needed()
    box = window.locator("#composer").bounding_box()
    assert box is not None
    assert box["height"] < 140  # more than half of the window is left to read
    press(window, "Who answers")
    window.get_by_role("radio", name="base").check()
    window.keyboard.press("Enter")
    expect(window.get_by_label("Your message")).to_be_focused()
