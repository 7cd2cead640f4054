"""Editing, walking and continuing: nothing is overwritten, and the address says where one is."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat.talking import answered, answers, ask, complete, questions
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.browser]


def test_it_edits_the_last_question_and_walks_between_both(page: Page, engine: ScriptedEngine) -> None:
    answered(page, "First")
    answered(page, "Secnod", 2)
    page.get_by_label("Your message").press("ArrowUp")
    field = page.get_by_label("Your question, edited")
    expect(field).to_have_value("Secnod")
    field.fill("Second")
    page.keyboard.press("Enter")
    expect(page.locator("[data-question]").last).to_have_text("Second")
    complete(page, 2)
    assert questions(page) == ["First", "Second"]
    assert [body["messages"][-1]["content"] for body in engine.paths("/v1/chat/completions")][-1] == "Second"
    expect(page.get_by_label("Versions of this question")).to_contain_text("2/2")

    page.keyboard.press("Alt+Shift+ArrowUp")
    expect(page.get_by_label("Versions of this question")).to_contain_text("1/2")
    assert questions(page) == ["First", "Secnod"]
    expect(page).to_have_url(re.compile(r"\?at=[0-9a-f-]{36}#turn-"))
    page.reload()
    assert questions(page) == ["First", "Secnod"]
    page.get_by_role("link", name="Next question").click()
    expect(page.get_by_label("Versions of this question")).to_contain_text("2/2")
    expect(page.get_by_role("link", name="Previous question")).to_be_focused()  # the way on is closed here
    page.go_back()
    expect(page.get_by_label("Versions of this question")).to_contain_text("1/2")


def test_it_asks_on_from_the_branch_that_is_shown(page: Page, engine: ScriptedEngine) -> None:
    answered(page, "First")
    page.get_by_role("button", name="Edit the question").click()
    page.get_by_label("Your question, edited").fill("First, edited")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator("[data-question]")).to_have_text("First, edited")
    complete(page)
    page.get_by_role("link", name="Previous question").click()
    expect(page.locator("[data-question]")).to_have_text("First")
    answered(page, "And then?", 2)
    last = engine.paths("/v1/chat/completions")[-1]
    assert [turn["content"] for turn in last["messages"] if turn["role"] == "user"] == ["First", "And then?"]
    page.reload()
    assert questions(page) == ["First", "And then?"]
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Edit the question").first.click()
    page.keyboard.press("Escape")
    assert questions(page) == ["First", "And then?"]
    expect(page.get_by_role("button", name="Edit the question").first).to_be_focused()


def test_it_continues_an_answer_that_was_stopped(page: Page, engine: ScriptedEngine) -> None:
    engine.hold.clear()
    ask(page, "Count")
    expect(answers(page).locator("strong")).to_have_text("bold")
    page.keyboard.press("Escape")
    expect(answers(page)).to_have_attribute("data-status", "stopped")
    engine.hold.set()
    engine.pieces = [" and on it goes."]
    page.get_by_role("button", name="Continue").click()
    complete(page)
    expect(answers(page)).to_contain_text("Here is bold and on it goes.")
    expect(answers(page)).to_have_count(1)
    expect(page.get_by_role("button", name="Continue")).to_have_count(0)
    assert engine.paths("/v1/chat/completions")[-1]["continue_final_message"] is True
    page.reload()
    expect(answers(page)).to_contain_text("Here is bold and on it goes.")


def test_it_walks_between_answers_by_keyboard(page: Page) -> None:
    answered(page, "Which?")
    page.get_by_role("button", name="Regenerate", exact=True).click()
    place = page.get_by_label("Other answers to this question")
    expect(place).to_contain_text("2/2")
    page.get_by_label("Your message").focus()
    page.keyboard.press("Alt+ArrowUp")
    expect(place).to_contain_text("1/2")
    page.keyboard.press("Alt+ArrowDown")
    expect(place).to_contain_text("2/2")
    page.keyboard.press("Alt+ArrowDown")  # there is no other
    expect(place).to_contain_text("2/2")


def test_it_tells_another_tab_that_the_conversation_went_on(page: Page) -> None:
    answered(page, "One")
    other = page.context.new_page()
    other.goto(page.url)
    answered(page, "Two", 2)
    expect(other.locator("#elsewhere")).to_contain_text("went on in another tab")
    answered(other, "Instead of two", 2)  # from the branch that this tab shows: nothing is lost
    assert questions(other) == ["One", "Instead of two"]
    other.reload()
    expect(other.get_by_label("Versions of this question")).to_contain_text("2/2")
    other.close()
