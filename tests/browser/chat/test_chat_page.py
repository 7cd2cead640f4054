"""The chat page in Chromium: every control once."""

import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.chat.conftest import OTHER
from tests.browser.chat.talking import ask, complete
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.browser]

FREEZE = """
from django.utils import timezone
from labeling.models import Judgment
Judgment.objects.update(frozen_at={})
"""


def test_it_asks_stops_regenerates_and_walks(page: Page, engine: ScriptedEngine) -> None:
    engine.hold.clear()
    ask(page, "First question")
    article = page.locator("#thread article")
    expect(article.locator("strong")).to_have_text("bold")  # rendered while it is written
    expect(page).to_have_url(re.compile(r"/chat/[0-9a-f-]{36}/$"))
    expect(page.get_by_role("link", name="First question")).to_have_attribute("aria-current", "page")
    page.get_by_role("button", name="Stop").click()
    expect(article).to_have_attribute("data-status", "stopped")
    expect(article).to_contain_text("Stopped")
    assert engine.left.wait(10)  # the model server was told

    engine.hold.set()
    page.get_by_role("button", name="Regenerate").click()
    expect(article).to_have_attribute("data-status", "complete")
    expect(article.locator("pre .n")).to_have_text("x")  # coloured code
    expect(article).to_contain_text("2/2")
    page.get_by_role("link", name="Previous answer").click()
    expect(article).to_contain_text("1/2")
    page.wait_for_load_state()
    expect(page.get_by_role("button", name="Copy the answer")).to_be_visible()
    expect(page.get_by_label("Good answer")).to_have_count(0)  # of a part


def test_it_keeps_drafts_names_and_nothing_that_is_deleted(page: Page) -> None:
    page.get_by_label("Your message").press_sequentially("Half a th")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("ought")
    page.reload()
    expect(page.get_by_label("Your message")).to_have_value("Half a th\nought")
    page.keyboard.press("Control+A")
    ask(page, "Now whole")
    expect(page.locator("article[data-status=complete]")).to_be_visible()
    expect(page.get_by_label("Your message")).to_have_value("")

    page.get_by_role("button", name="Rename “Now whole”").click()
    page.get_by_label("Name of the conversation").fill("Renamed")
    page.keyboard.press("Enter")
    expect(page.locator("#chat-title")).to_have_text("Renamed")
    page.reload()
    page.get_by_role("button", name="Delete “Renamed”").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("heading", name="What would you like to ask?")).to_be_visible()
    expect(page.get_by_role("link", name="Renamed")).to_have_count(0)


def test_it_compares_two_versions_blindly_and_saves_the_choice(page: Page, engine: ScriptedEngine) -> None:
    page.get_by_role("button", name="Compare two versions").click()
    ask(page, "Which is better?")
    expect(page.get_by_role("button", name="2 is better")).to_be_visible()
    assert OTHER not in page.locator("#thread").inner_html()
    page.keyboard.press("2")
    page.get_by_role("button", name="Yes, learn from it").click()
    expect(page.locator("#thread").get_by_text("your choice")).to_be_visible()
    expect(page.locator("#thread").get_by_title(OTHER)).to_be_visible()
    expect(page.locator("#thread").get_by_text("Saved as a judgment")).to_be_visible()
    page.reload()
    expect(page.locator("#thread").get_by_text("your choice")).to_be_visible()


def test_it_learns_from_thumbs_once_the_person_agrees(page: Page) -> None:
    switch = page.get_by_role("switch", name="Learn from my thumbs and choices")
    expect(switch).to_be_visible()
    if switch.get_attribute("aria-checked") == "true":  # agreed to in an earlier test
        switch.click()
        expect(switch).to_have_attribute("aria-checked", "false")
    ask(page, f"Is this {time.monotonic()} good?")
    good, bad = page.get_by_label("Good answer"), page.get_by_label("Bad answer")
    good.click()
    expect(page.get_by_role("dialog")).to_contain_text("you can withdraw this at any time")
    page.keyboard.press("Escape")  # is a no
    expect(good).to_have_attribute("aria-pressed", "true")
    assert _judged(page) == []
    page.reload()
    expect(good).to_have_attribute("aria-pressed", "true")

    switch.click()
    expect(switch).to_have_attribute("aria-checked", "true")
    with page.expect_response("**/api/chat/ratings/"):
        bad.click()
    assert _judged(page) == ["bad"]
    with page.expect_response("**/api/chat/ratings/"):
        good.click()
    assert _judged(page) == ["good"]
    with page.expect_response("**/api/chat/ratings/"):
        good.click()  # pressed again: taken back
    assert _judged(page) == []
    expect(good).to_have_attribute("aria-pressed", "false")

    with page.expect_response("**/api/chat/ratings/"):
        good.click()
    switch.click()
    expect(switch).to_have_attribute("aria-checked", "false")
    expect(page.get_by_text("Taken back: 1")).to_be_visible()
    assert _judged(page) == []


def test_it_takes_a_thumb_back_when_the_answer_goes_on(page: Page, engine: ScriptedEngine) -> None:
    good = rated_when_cut(page, engine)
    assert _judged(page) == ["good"]
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("button", name="Continue")).to_have_count(0)
    complete(page)
    assert _judged(page) == []
    expect(good).to_have_attribute("aria-pressed", "false")


def test_it_goes_on_with_an_answer_that_was_learned_from(
    page: Page, engine: ScriptedEngine, shell: Callable[[str], None]
) -> None:
    rated_when_cut(page, engine)
    shell(FREEZE.format("timezone.now()"))
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("button", name="Continue")).to_have_count(0)
    complete(page)
    expect(page.locator(".toast-error")).to_have_count(0)
    assert _judged(page) == ["good"]  # of the part
    shell(FREEZE.format(None))
    page.get_by_role("switch", name="Learn from my thumbs and choices").click()
    expect(page.get_by_text("Taken back:")).to_be_visible()


def rated_when_cut(page: Page, engine: ScriptedEngine) -> Locator:
    """The pressed thumb of an answer that was cut at the length limit; continued, it comes to its end."""
    switch = page.get_by_role("switch", name="Learn from my thumbs and choices")
    expect(switch).to_be_visible()
    if switch.get_attribute("aria-checked") == "false":
        switch.click()
        expect(switch).to_have_attribute("aria-checked", "true")
    engine.finish_reason = "length"
    ask(page, f"Is this {time.monotonic()} good so far?")
    good = page.get_by_label("Good answer")
    with page.expect_response("**/api/chat/ratings/"):
        good.click()
    engine.finish_reason = "stop"
    return good


def _judged(page: Page) -> list[str]:
    """Verdicts in force on single answers, newest first."""
    listed = page.request.get("/api/judgments/?campaign=chat").json()["results"]
    return [judgment["verdict"] for judgment in listed if len(judgment["order"]) == 1]


def test_it_says_that_the_model_server_is_starting(page: Page, engine: ScriptedEngine) -> None:
    engine.refusal = (503, "loading")
    ask(page, "Anybody there?")
    expect(page.get_by_role("alert")).to_contain_text("The model server is starting")
    engine.refusal = None
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator("article[data-status=complete]")).to_be_visible()


def test_it_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    ask(page, "A" * 200)
    expect(page.locator("article[data-status=complete]")).to_be_visible()
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("link", name="New chat")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
