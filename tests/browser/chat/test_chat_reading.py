"""Reading along: what grows does not jump, and what goes wrong on the way is said and put right."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chat.talking import answered, answers, ask, complete
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.browser]

LONG = [f"Paragraph number {i}.\n\n" for i in range(60)]


def top(page: Page) -> float:
    return float(page.evaluate("document.scrollingElement.scrollTop"))


def is_at_end(page: Page) -> bool:
    return bool(
        page.evaluate(
            "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight < 30)(document.scrollingElement)"
        )
    )


CLIPBOARD = (
    "navigator.clipboard.writeText = (text) => { document.body.dataset.copied = text; return Promise.resolve(); }"
)


def test_it_shows_code_with_its_language_and_copies_it(page: Page) -> None:
    answered(page, "Show code")
    expect(page.locator("pre")).to_have_attribute("data-language", "python")
    page.evaluate(CLIPBOARD)
    page.get_by_role("button", name="Copy the code").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    expect(page.locator("body")).to_have_attribute("data-copied", "x = 1\n")
    page.get_by_role("button", name="Copy the answer").click()
    expect(page.locator("body")).to_have_attribute("data-copied", re.compile(r"^Here is \*\*bold\*\*"))


GROW = """async () => {
  const { show } = await import("/static/js/chat_prose.js");
  const prose = document.createElement("div");
  prose.className = "prose";
  document.body.append(prose);
  show(prose, "<p>One</p><pre data-language='python'><code>x = 1</code></pre>");
  const [first, pre] = prose.children;
  getSelection().selectAllChildren(first);
  pre.querySelector("button").focus();
  show(prose, "<p>One</p><pre data-language='python'><code>x = 1\\ny = 2</code></pre><p>Two</p>");
  show(prose, "<p>One</p><pre data-language='python'><code>x = 1\\ny = 2</code></pre><p>Two <b>and</b></p>");
  const kept = first === prose.children[0] && pre === prose.children[1];
  return [kept, getSelection().toString(), document.activeElement === pre.querySelector("button"), prose.innerText,
          prose.querySelectorAll("button").length];
}"""


def test_it_touches_only_what_grows(page: Page) -> None:
    """What is selected, focused or scrolled in an answer stays so while more of it comes."""
    kept, selected, is_focused, text, n_buttons = page.evaluate(GROW)
    assert kept
    assert selected == "One"
    assert is_focused
    assert n_buttons == 1
    assert text.split("\n")[-1] == "Two and"


def test_it_stays_where_the_reader_is(page: Page, engine: ScriptedEngine) -> None:
    engine.pieces = LONG
    answered(page, "Long")
    assert is_at_end(page)
    page.mouse.move(640, 300)
    page.mouse.wheel(0, -900)
    expect(page.get_by_role("button", name="To the newest")).to_be_visible()
    page.get_by_role("button", name="To the newest").click()
    expect(page.get_by_role("button", name="To the newest")).to_be_hidden()
    assert is_at_end(page)


def test_it_does_not_pull_a_reader_down_while_it_writes(page: Page, engine: ScriptedEngine) -> None:
    engine.pieces = LONG
    answered(page, "Long")
    engine.hold.clear()
    ask(page, "Longer")
    expect(answers(page)).to_have_count(2)
    expect(answers(page).last).to_contain_text("Paragraph number 0.")
    page.mouse.move(640, 300)
    page.mouse.wheel(0, -400)
    expect(page.get_by_role("button", name="To the newest")).to_be_visible()
    before = top(page)
    engine.hold.set()
    complete(page, 2)
    assert top(page) == before


def test_it_sends_once_however_often_one_clicks(page: Page, engine: ScriptedEngine) -> None:
    page.get_by_label("Your message").fill("Once")
    page.get_by_role("button", name="Send").dblclick()
    complete(page)
    assert len(engine.paths("/v1/chat/completions")) == 1


def test_it_does_not_take_a_second_click_on_send_for_stop(page: Page, engine: ScriptedEngine) -> None:
    engine.hold.clear()
    page.evaluate(
        """new MutationObserver((_changes, observer) => {
          observer.disconnect();
          document.getElementById("stop").click();
        }).observe(document.getElementById("stop"), { attributeFilter: ["hidden"] })"""
    )
    page.get_by_label("Your message").fill("Twice")
    page.get_by_role("button", name="Send").click()
    expect(answers(page).locator("strong")).to_have_text("bold")
    engine.hold.set()
    complete(page)


def test_it_stops_an_answer_before_its_stream_began(page: Page) -> None:
    page.route("**/stream/", lambda _route: None)  # never arrives
    ask(page, "Never mind")
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(answers(page)).to_have_attribute("data-status", "stopped")


def test_it_finds_the_question_again_when_the_answer_to_sending_it_was_lost(page: Page, engine: ScriptedEngine) -> None:
    """The server has it; the browser never heard so."""

    def lose(route) -> None:
        route.fetch()
        route.abort()

    page.route("**/chat/start/", lose, times=1)
    ask(page, "Lost?")
    expect(page.get_by_text("The server did not answer")).to_be_visible()
    expect(page.get_by_label("Your message")).to_have_value("Lost?")
    page.keyboard.press("Enter")
    complete(page)
    expect(page.locator("#conversations").get_by_role("link", name="Lost?")).to_have_count(1)


def test_it_warns_before_the_context_is_full_and_says_when_it_is(page: Page, engine: ScriptedEngine) -> None:
    engine.pieces = ["word "] * 1_400
    engine.context = 1_600
    answered(page, "Much")
    expect(page.locator("#gauge")).to_have_attribute("aria-label", "88 percent of what the model can read is used")
    expect(page.get_by_text("nearly filled what the model can read")).to_be_visible()
    ask(page, "More")
    expect(page.get_by_role("alert")).to_contain_text("longer than the model can read. Edit an earlier question")


def test_it_works_over_plain_http(page: Page) -> None:
    """As in a first trial in an office, where browsers hold back what they keep for https."""
    page.add_init_script("delete Crypto.prototype.randomUUID")
    page.reload()
    answered(page, "Hello")
    page.get_by_role("button", name="Edit the question").click()
    page.get_by_label("Your question, edited").fill("Hello again")
    page.keyboard.press("Enter")
    expect(page.locator("[data-question]")).to_have_text("Hello again")
    complete(page)


def test_it_gives_code_and_tables_the_whole_width(page: Page, engine: ScriptedEngine) -> None:
    cells = " | ".join(["a column with several words in it"] * 8)
    engine.pieces = ["Words " * 60, f"\n\n| {cells} |\n|{'---|' * 8}\n| {cells} |\n", "\n```\nx\n```\n"]
    page.set_viewport_size({"width": 1600, "height": 800})
    answered(page, "Wide")
    widths = [page.locator(f"#thread {part}").bounding_box() for part in (".prose > p", "table", "pre", ".answer")]
    text, table, code, whole = [box["width"] for box in widths if box]
    assert text < table == code == whole


def test_it_wraps_what_is_too_much_to_be_rendered(page: Page, engine: ScriptedEngine) -> None:
    engine.pieces = ["> " * 150 + "deep " * 400]
    answered(page, "Deep")
    plain = page.locator("#thread pre")
    expect(plain).to_contain_text("> > >")
    assert plain.evaluate("(pre) => pre.scrollWidth <= pre.clientWidth")


def test_it_scrolls_code_without_a_mouse(page: Page, engine: ScriptedEngine) -> None:
    engine.pieces = ["```\nshort\n```\n\n", "```\n" + "long " * 60 + "\n```\n"]
    answered(page, "Long lines")
    codes = page.locator("#thread pre > code")
    assert codes.evaluate_all("(all) => all.map((code) => code.tabIndex)") == [0, 0]
    codes.last.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.activeElement.scrollLeft > 0")


def test_it_scrolls_code_that_a_narrower_window_cuts_off(page: Page, engine: ScriptedEngine) -> None:
    engine.pieces = ["```\n" + "word " * 12 + "\n```\n"]
    answered(page, "A line that fits")
    page.set_viewport_size({"width": 320, "height": 800})
    code = answers(page).locator("pre > code")
    code.focus()
    expect(code).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.activeElement.scrollLeft > 0")


def test_it_shows_that_it_still_writes(page: Page, engine: ScriptedEngine) -> None:
    """Also while what there is so far cannot be seen, as the sign of a heading."""
    engine.pieces = ["# ", "Heading"]
    engine.hold.clear()
    ask(page, "Slowly")
    expect(answers(page)).to_have_attribute("aria-busy", "true")
    expect(answers(page).locator(".waiting")).to_have_count(0)
    mark = "getComputedStyle(document.querySelector('#thread .prose'), '::after').content"
    assert page.evaluate(mark) == '""'
    engine.hold.set()
    complete(page)
    assert page.evaluate(mark) == "none"


def test_it_forgets_what_went_wrong_once_it_is_tried_again(page: Page) -> None:
    page.route("**/chat/start/", lambda route: route.abort(), times=1)
    ask(page, "Not yet")
    expect(page.get_by_text("The server did not answer")).to_be_visible()
    page.keyboard.press("Enter")
    complete(page)
    expect(page.get_by_text("The server did not answer")).to_have_count(0)


def test_it_leads_to_the_message_field_by_one_key(page: Page) -> None:
    answered(page, "Once")
    page.reload()
    expect(page.get_by_label("Your message")).not_to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_label("Your message")).to_have_value("/")


def test_it_goes_on_writing_while_one_jumps_about_the_page(page: Page, engine: ScriptedEngine) -> None:
    engine.hold.clear()
    ask(page, "Jump")
    expect(answers(page).locator("strong")).to_have_text("bold")
    page.evaluate("location.hash = '#main'")
    engine.hold.set()
    complete(page)
    expect(answers(page).locator("pre")).to_be_visible()
