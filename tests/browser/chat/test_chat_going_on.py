"""A reload, a lost connection, another page in between: the answer goes on, once, as long as nobody pressed Stop."""

from collections.abc import Iterator
from itertools import count

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from serving import branches, sampling
from tests.browser.chat.talking import answers, ask, complete
from tests.serving.scripted import ScriptedEngine

pytestmark = [pytest.mark.browser]

ASKED = "/v1/chat/completions"
WHOLE = "Here is bold and on it goes."
names = count()


@pytest.fixture
def begun(page: Page, engine: ScriptedEngine) -> Iterator[Page]:
    """A page on which an answer has its first words, and gets no more until `engine.hold` is set."""
    begin(page, engine)
    yield page
    engine.hold.set()


def begin(page: Page, engine: ScriptedEngine) -> None:
    engine.hold.clear()
    ask(page, f"Tell me more, {next(names)}")
    expect(answers(page).locator("strong")).to_have_text("bold")
    engine.pieces = [" and on", " it goes."]  # to whoever asks from here on
    engine.scripts.clear()


def ask_counts(engine: ScriptedEngine) -> tuple[int, int]:
    """How many requests there were, and how many of them were to continue an answer."""
    asked = engine.paths(ASKED)
    return len(asked), sum(body.get("continue_final_message", False) for body in asked)


def test_it_goes_on_growing_after_a_reload(begun: Page, engine: ScriptedEngine) -> None:
    begun.reload()
    assert engine.left.wait(10)  # nobody was there: the model server was told
    expect(answers(begun)).to_contain_text("Here is bold and on")  # it is being written again
    expect(begun.get_by_role("button", name="Stop")).to_be_visible()
    engine.hold.set()
    complete(begun)
    expect(answers(begun)).to_contain_text(WHOLE)
    assert ask_counts(engine) == (2, 1)
    expect(answers(begun)).to_have_count(1)
    begun.reload()
    complete(begun)
    assert ask_counts(engine) == (2, 1)


def test_it_goes_on_after_some_reloads_at_once(begun: Page, engine: ScriptedEngine) -> None:
    begun.route("**/go-on/", unheard, times=1)
    with begun.expect_event("requestfailed", lambda request: request.url.endswith("/go-on/")):
        begun.reload(wait_until="commit")
    engine.asked.clear()
    engine.left.clear()
    engine.silence.clear()
    begun.reload(wait_until="commit")
    assert engine.asked.wait(10)
    begun.reload()
    assert engine.left.wait(10)
    engine.silence.set()
    engine.hold.set()
    complete(begun)
    expect(text(begun)).to_have_text(WHOLE)
    assert ask_counts(engine) == (3, 2)


def unheard(route: Route) -> None:
    """The server does it, and the page never knows."""
    route.fetch()
    route.abort()


def text(page: Page) -> Locator:
    return answers(page).locator("[data-text]")


def test_it_goes_on_when_one_comes_back_to_it(begun: Page, engine: ScriptedEngine) -> None:
    url = begun.url
    begun.get_by_role("link", name="New chat").click()
    expect(begun.get_by_role("heading", name="What would you like to ask?")).to_be_visible()
    assert engine.left.wait(10)
    assert ask_counts(engine) == (1, 0)  # nobody reads, nobody writes
    engine.hold.set()
    begun.goto(url)
    complete(begun)
    expect(answers(begun)).to_contain_text(WHOLE)
    assert ask_counts(engine) == (2, 1)


def test_it_follows_an_answer_whose_stream_did_not_come(begun: Page, engine: ScriptedEngine) -> None:
    begun.route("**/stream/", lambda route: route.abort(), times=3)
    begun.reload()
    engine.hold.set()
    complete(begun)
    expect(text(begun)).to_have_text(WHOLE)
    assert ask_counts(engine) == (2, 1)


def test_it_lets_no_question_be_edited_before_its_answer_goes_on(begun: Page, engine: ScriptedEngine) -> None:
    asked: list[Route] = []
    begun.route("**/go-on/", lambda route: asked.append(route))
    with begun.expect_request("**/go-on/"):
        begun.reload()
    begun.get_by_role("button", name="Edit the question").click()
    expect(begun.get_by_text("Wait for the answer, or stop it first.")).to_be_visible()
    expect(begun.get_by_role("textbox", name="Your question, edited")).to_have_count(0)
    asked[0].continue_()
    engine.hold.set()
    complete(begun)
    assert ask_counts(engine) == (2, 1)


def test_it_shows_that_it_is_about_to_go_on(begun: Page, engine: ScriptedEngine) -> None:
    asked: list[Route] = []
    begun.route("**/go-on/", lambda route: asked.append(route))
    with begun.expect_request("**/go-on/"):
        begun.reload()
    expect(answers(begun)).to_have_attribute("aria-busy", "true")
    assert text(begun).evaluate("(prose) => getComputedStyle(prose, '::after').animationName") == "wait"
    asked[0].abort()  # it goes on later, or when somebody wants it
    expect(answers(begun)).to_have_attribute("aria-busy", "false")
    expect(begun.get_by_role("button", name="Continue")).to_be_visible()


def test_it_writes_nothing_for_a_turn_that_is_gone(begun: Page, engine: ScriptedEngine) -> None:
    asked: list[Route] = []
    begun.route("**/go-on/", lambda route: asked.append(route))
    with begun.expect_request("**/go-on/"):
        begun.reload()
    begun.evaluate("document.querySelector('#thread .turn').remove()")
    requested: list[str] = []
    begun.on("request", lambda request: requested.append(request.url.rsplit("/", 2)[1]))
    with begun.expect_response("**/go-on/"):
        asked[0].continue_()
    begun.evaluate("fetch('/chat/').then((response) => response.text())")  # until whatever follows was asked for
    assert requested == ["chat"]


def test_it_begins_anew_when_there_was_no_word_yet(page: Page, engine: ScriptedEngine) -> None:
    engine.silence.clear()
    try:
        ask(page, "Slow to begin")
        assert engine.asked.wait(10)
        page.reload()
        assert engine.left.wait(10)
    finally:
        engine.silence.set()
    complete(page)
    expect(answers(page)).to_contain_text("Here is bold")
    assert ask_counts(engine) == (2, 0)


def test_it_does_not_go_on_after_a_stop(begun: Page, engine: ScriptedEngine) -> None:
    begun.keyboard.press("Escape")
    begun.reload()  # at once: the Stop gets there all the same
    engine.hold.set()
    expect(answers(begun)).to_have_attribute("data-status", "stopped")
    expect(answers(begun)).to_contain_text("Stopped")
    begun.reload()
    expect(begun.get_by_role("button", name="Continue")).to_be_visible()
    assert ask_counts(engine) == (1, 0)
    begun.get_by_role("button", name="Continue").click()
    complete(begun)
    expect(answers(begun)).to_contain_text(WHOLE)


def test_it_goes_on_in_one_tab_when_two_open_at_once(begun: Page, engine: ScriptedEngine) -> None:
    url = begun.url
    other = begun.context.new_page()
    begun.goto("about:blank")
    assert engine.left.wait(10)
    for tab in (begun, other):
        tab.evaluate("(url) => setTimeout(() => { location.href = url; })", url)
    for tab in (begun, other):
        tab.wait_for_url(url)
        expect(answers(tab)).to_have_attribute("aria-busy", "true")
    engine.hold.set()
    for tab in (begun, other):
        complete(tab)
        expect(answers(tab)).to_contain_text(WHOLE)
    assert ask_counts(engine) == (2, 1)
    other.close()


def test_it_waits_for_somebody_who_looks(begun: Page, engine: ScriptedEngine) -> None:
    url = begun.url
    begun.goto("/chat/")
    assert engine.left.wait(10)
    engine.hold.set()
    behind = begun.context.new_page()
    behind.add_init_script(
        "Object.defineProperty(document, 'hidden', { get: () => !window.isLookedAt, configurable: true })"
    )
    behind.goto(url)
    behind.wait_for_load_state("networkidle")
    assert ask_counts(engine) == (1, 0)
    behind.evaluate("window.isLookedAt = true; document.dispatchEvent(new Event('visibilitychange'))")
    complete(behind)
    assert ask_counts(engine) == (2, 1)
    behind.close()


def test_it_goes_on_with_both_sides_of_a_comparison(page: Page, engine: ScriptedEngine) -> None:
    page.get_by_role("button", name="Compare two versions").click()
    begin(page, engine)
    expect(answers(page).get_by_text("Another answer,")).to_be_visible()
    page.reload()
    expect(answers(page).get_by_text("and on")).to_have_count(2)
    engine.hold.set()
    complete(page, 2)
    expect(answers(page).get_by_text("Another answer, and on it goes.")).to_be_visible()
    assert ask_counts(engine) == (4, 2)
    expect(page.get_by_role("button", name="1 is better")).to_be_visible()


def test_it_stops_both_sides_for_good(page: Page, engine: ScriptedEngine) -> None:
    page.get_by_role("button", name="Compare two versions").click()
    begin(page, engine)
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Show which is which")).to_be_visible()
    engine.hold.set()
    page.reload()
    expect(page.get_by_role("button", name="Show which is which")).to_be_visible()
    assert ask_counts(engine) == (2, 0)


def test_it_waits_for_the_stops_of_both_sides(page: Page, engine: ScriptedEngine) -> None:
    page.get_by_role("button", name="Compare two versions").click()
    begin(page, engine)
    page.route("**/stop/", lambda route: route.abort(), times=1)
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Show which is which")).to_be_visible()
    assert ask_counts(engine) == (2, 0)


def test_it_tells_the_server_of_a_stop_before_it_leaves(begun: Page, engine: ScriptedEngine) -> None:
    """Else another tab could have the answer go on in between."""
    happened: list[str] = []
    begun.on("response", lambda response: happened.append(response.url.rsplit("/", 2)[1]))
    begun.on("requestfailed", lambda request: happened.append(request.url.rsplit("/", 2)[1]))
    begun.keyboard.press("Escape")
    expect(answers(begun)).to_have_attribute("data-status", "stopped")
    assert happened[:2] == ["stop", "stream"]
    assert ask_counts(engine) == (1, 0)


def test_it_leaves_the_stream_of_a_stop_that_gets_no_answer(begun: Page, engine: ScriptedEngine) -> None:
    asked: list[Route] = []
    begun.route("**/stop/", lambda route: asked.append(route))
    begun.keyboard.press("Escape")
    expect(begun.get_by_role("button", name="Stop")).to_be_hidden()
    assert engine.left.wait(10)
    asked[0].continue_()
    expect(answers(begun)).to_have_attribute("data-status", "stopped")
    assert ask_counts(engine) == (1, 0)


def test_it_says_that_a_stop_waits_for_the_server(begun: Page, engine: ScriptedEngine) -> None:
    begun.route("**/stop/", lambda route: route.abort())
    begun.keyboard.press("Escape")
    notice = begun.get_by_text("The answer stops as soon as it can.")
    expect(notice).to_be_visible()
    begun.unroute("**/stop/")
    expect(answers(begun)).to_have_attribute("data-status", "stopped")
    expect(notice).to_have_count(0)
    assert ask_counts(engine) == (1, 0)


CUT = """const real = window.fetch;
window.fetch = (url, options = {}) => {
  if (!String(url).includes("/stream/")) return real(url, options);
  const cut = new AbortController();
  window.cut = () => cut.abort(new TypeError("network error"));
  options.signal?.addEventListener("abort", () => cut.abort());
  return real(url, { ...options, signal: cut.signal });
};"""


def test_it_says_that_the_connection_was_lost_and_goes_on(page: Page, engine: ScriptedEngine) -> None:
    page.add_init_script(CUT)
    page.reload()
    begin(page, engine)
    page.evaluate("window.cut()")
    expect(page.get_by_text("The connection was lost.")).to_be_visible()
    engine.hold.set()
    complete(page)
    expect(answers(page)).to_contain_text("Here is bold")
    assert ask_counts(engine) == (2, 1)


def test_it_leaves_it_to_the_reader_when_something_keeps_cutting(page: Page, engine: ScriptedEngine) -> None:
    page.add_init_script(CUT)
    page.reload()
    begin(page, engine)
    for n_parts in range(1, branches.GOES_ON_TIMES + 1):
        page.evaluate("window.cut()")
        expect(text(page)).to_have_text("Here is bold" + " and on" * n_parts)
    page.evaluate("window.cut()")
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Continue")).to_be_visible()
    n_parts = branches.GOES_ON_TIMES + 1
    assert ask_counts(engine) == (n_parts, n_parts - 1)
    allowed = sampling.DEFAULTS["max_tokens"]
    assert [body["max_tokens"] for body in engine.paths(ASKED)] == [allowed - i for i in range(n_parts)]
    engine.hold.set()
    page.get_by_role("button", name="Continue").click()
    complete(page)


def test_it_tells_the_server_of_a_stop_once_the_connection_is_back(begun: Page, engine: ScriptedEngine) -> None:
    begun.route("**/stop/", lambda route: route.abort(), times=2)
    begun.keyboard.press("Escape")
    expect(answers(begun)).to_have_attribute("data-status", "stopped")
    engine.hold.set()
    begun.reload()
    expect(begun.get_by_role("button", name="Continue")).to_be_visible()
    assert ask_counts(engine) == (1, 0)


def test_it_notices_a_connection_that_went_silent(page: Page, engine: ScriptedEngine) -> None:
    page.clock.install()
    page.reload()
    begin(page, engine)
    page.clock.fast_forward(36_000)
    expect(page.get_by_text("The connection was lost.")).to_be_visible()
    engine.hold.set()
    page.clock.resume()
    complete(page)
    assert ask_counts(engine) == (2, 1)
