"""Who answers and how: picking a version, settings, blind comparisons, before and after."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat.conftest import BASE, OTHER
from tests.browser.chat.talking import answered, answers, ask, complete, questions
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.browser]


def test_it_asks_the_version_that_was_picked(page: Page, engine: ScriptedEngine) -> None:
    page.get_by_role("button", name="Who answers").click()
    option = page.locator(".picker-option", has_text=OTHER)
    expect(option).to_contain_text("previous")
    expect(option).to_contain_text("Learned from 212 judgments.")
    option.click()
    answered(page, "Who are you?")
    expect(page.locator("#picker")).to_be_hidden()
    assert engine.paths("/v1/chat/completions")[-1]["model"] == OTHER
    page.reload()
    expect(page.locator("#current")).to_have_text(OTHER)  # for this conversation, in this tab
    page.get_by_role("button", name="Who answers").click()
    page.get_by_label("Whatever is current").check()
    page.keyboard.press("Enter")
    answered(page, "And now?", 2)
    assert engine.paths("/v1/chat/completions")[-1]["model"] == "base"
    expect(page.get_by_text("Now answering: base")).to_be_visible()
    page.goto("/chat/")
    expect(page.locator("#current")).to_have_text("base")


def test_it_offers_what_is_published_while_it_is_open(page: Page, publish: Callable[[str], None]) -> None:
    page.clock.install()
    page.reload()
    compare = page.get_by_role("button", name="Compare two versions")
    expect(compare).to_be_disabled()
    page.get_by_role("button", name="Who answers").click()
    base = page.get_by_role("radio", name="base")
    base.check()
    publish(OTHER)
    page.clock.fast_forward(11_000)
    expect(page.locator(".picker-option", has_text=OTHER)).to_contain_text("current")
    expect(page.locator(".picker-option", has=base)).to_contain_text("previous")
    expect(page.locator(".picker-option", has=base)).not_to_contain_text("current")
    expect(base).to_be_checked()
    expect(base).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#picker")).to_be_hidden()

    expect(compare).to_have_attribute("title", "Compare two versions")
    compare.click()
    pair = page.locator("#compare option:checked")
    expect(pair).to_have_text([f"{OTHER} · current", "base"])
    page.locator("#version-one").select_option(BASE)
    page.locator("#version-two").select_option(OTHER)
    page.locator("#version-two").focus()
    publish(BASE)
    page.clock.fast_forward(11_000)
    expect(pair).to_have_text(["base · current", OTHER])  # what was chosen
    expect(page.locator("#version-two")).to_be_focused()


def test_it_keeps_what_was_picked_when_it_is_offered_no_longer(page: Page, publish: Callable[[str], None]) -> None:
    page.clock.install()
    page.reload()
    page.get_by_role("button", name="Who answers").click()
    gone = page.get_by_role("radio", name="base")
    gone.evaluate("(option) => { option.value = 'adapter-9-0a1b2c'; }")
    gone.check()
    publish(OTHER)
    page.clock.fast_forward(11_000)
    expect(page.locator(".picker-option", has_text=OTHER)).to_contain_text("current")
    expect(page.locator("#picker input:checked")).to_have_value("adapter-9-0a1b2c")


def test_it_answers_as_the_settings_say(page: Page, engine: ScriptedEngine) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Answer in French.")
    page.get_by_label("Temperature").fill("0.2")
    page.get_by_label("Seed").fill("7")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("changed", exact=True)).to_be_visible()
    answered(page, "Hello")
    asked = engine.paths("/v1/chat/completions")[-1]
    assert asked["messages"][0] == {"role": "system", "content": "Answer in French."}
    assert (asked["temperature"], asked["seed"], asked["top_p"]) == (0.2, 7, 0.95)
    page.get_by_role("button", name="Details").click()
    expect(page.locator(".facts")).to_contain_text("Answer in French.")

    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Temperature")).to_have_value("0.2")
    page.get_by_role("button", name="Reset to the defaults").click()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("changed", exact=True)).to_be_hidden()
    answered(page, "Again", 2)
    asked = engine.paths("/v1/chat/completions")[-1]
    assert asked["temperature"] == 0.7
    assert asked["messages"][0]["role"] == "user"


def test_it_keeps_the_settings_when_a_change_is_given_up(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0.2")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Temperature")).to_have_value("")


def test_it_keeps_a_long_prompt_when_the_settings_are_closed_by_accident(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    prompt = page.get_by_label("System prompt")
    prompt.fill("Be brief. " * 20)
    box = prompt.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(5, 5)
    page.mouse.up()  # a selection that ended outside
    expect(prompt).to_be_visible()
    page.mouse.click(5, 5)
    expect(prompt).to_be_hidden()
    page.get_by_role("button", name="Settings").click()
    expect(prompt).to_have_value("Be brief. " * 20)


def test_it_compares_an_answer_with_a_new_one_by_one_key(page: Page, engine: ScriptedEngine) -> None:
    answered(page, "Which is better?")
    answered(page, "And then?", 2)
    page.get_by_role("button", name="Who answers").click()
    page.locator(".picker-option", has_text=OTHER).click()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Regenerate and compare").first.click()
    expect(page.get_by_role("button", name="1 is better")).to_be_visible()
    assert OTHER not in page.locator("#thread").inner_html()
    assert questions(page) == ["Which is better?"]  # what follows waits for the choice
    ask(page, "Too early")
    expect(page.get_by_text("Choose between the two answers first.")).to_be_visible()
    page.get_by_label("Your message").fill("")
    left = answers(page).first.inner_text()
    page.keyboard.press("1")  # is the beginning of a message
    expect(page.get_by_label("Your message")).to_have_value("1")
    page.get_by_label("Your message").fill("")
    page.get_by_role("group", name="Which answer is better?").focus()
    page.keyboard.press("1")
    consent = page.get_by_role("button", name="Yes, learn from it")
    chosen = page.locator("#thread").get_by_text("your choice", exact=True)
    expect(consent.or_(chosen)).to_be_visible()
    if consent.is_visible():  # unless an earlier test agreed
        consent.click()
    expect(chosen).to_be_visible()
    expect(page.locator("#thread").get_by_title(OTHER)).to_be_visible()
    expect(page.get_by_text("Saved as a judgment").last).to_be_visible()
    expected = ["Which is better?"] if "Another answer" in left else ["Which is better?", "And then?"]
    assert questions(page) == expected  # the choice decides which branch goes on
    page.reload()
    assert questions(page) == expected
    page.get_by_role("link", name="Go on from this one").click()
    expect(page.locator("#thread .turn")).to_have_count(3 - len(expected))


def test_it_reveals_without_a_judgment(page: Page, engine: ScriptedEngine) -> None:
    answered(page, "Look only")
    page.get_by_role("button", name="Regenerate and compare").click()
    expect(page.get_by_role("group", name="Which answer is better?")).to_be_focused()  # one key is enough
    page.keyboard.press("s")
    expect(page.locator("#thread").get_by_text("Not judged.")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_it_puts_the_same_question_to_all_versions_at_once(page: Page, engine: ScriptedEngine) -> None:
    answered(page, "Before and after?")
    url, n_asked = page.url, len(engine.paths("/v1/chat/completions"))
    engine.hold.clear()
    page.get_by_role("button", name="Before and after", exact=True).click()
    columns = page.locator("[data-column]")
    expect(columns).to_have_count(2)
    expect(columns.nth(0)).to_contain_text("previous")
    expect(columns.nth(0)).to_contain_text("Another answer,")  # both at once, while both are being written
    expect(columns.nth(1)).to_contain_text("Here is bold")
    expect(columns.nth(1)).to_contain_text("current")
    engine.hold.set()
    expect(columns.nth(1).locator("pre code")).to_have_text("x = 1\n")
    asked = engine.paths("/v1/chat/completions")[n_asked:]
    assert {body["model"] for body in asked} == {"base", OTHER}
    assert len({body["seed"] for body in asked}) == 1
    page.keyboard.press("Escape")
    page.goto(url)
    complete(page)  # nothing was added


def test_it_ends_what_nobody_looks_at_any_more(page: Page, engine: ScriptedEngine) -> None:
    answered(page, "Close early")
    engine.hold.clear()
    page.get_by_role("button", name="Before and after", exact=True).click()
    expect(page.locator("[data-column]").first).to_contain_text("Another answer,")
    page.get_by_role("button", name="Close", exact=True).click()
    assert engine.left.wait(10)
