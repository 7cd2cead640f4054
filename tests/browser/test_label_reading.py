"""Reading: differences, raw text, scrolling together, the prompt, and what is known of the reader's attention."""

import random

import pytest
from playwright.sync_api import Page, expect

from labeling import pairs, prompts, responses
from tests.browser import screens as on
from tests.browser.screens import Screens, press, settle, shown, wait_until_ready
from tests.labeling import make

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
DIFFERENCES = """async cases => {
  const { differences, words } = await import("/static/js/diff.js");
  return cases.map(([left, right]) => ({ ...differences(left, right), words: [words(left).length, words(right).length] }));
}"""
MATCHES = """async cases => {
  const { matches } = await import("/static/js/diff.js");
  return cases.map(([left, right]) => matches(left, right));
}"""


def _lcs(left: str, right: str) -> int:
    """Length of a longest common subsequence, by the textbook's table."""
    row = [0] * (len(right) + 1)
    for one in left:
        above = row[:]
        for at, other in enumerate(right, 1):
            row[at] = above[at - 1] + 1 if one == other else max(above[at], row[at - 1])
    return row[-1]


def _without(text: str, spans: list[list[int]]) -> list[str]:
    """The words that are not marked."""
    for start, end in reversed(spans):
        text = text[:start] + " " + text[end:]
    return text.split()


@pytest.fixture
def blank(screens: Screens) -> Page:
    page = screens.window(None)
    page.goto("/login/")
    return page


def test_it_finds_longest_common_subsequences(blank: Page) -> None:
    rng = random.Random(0)
    cases = [["".join(rng.choices("abc", k=rng.randrange(14))) for _ in "lr"] for _ in range(300)]
    for (left, right), found in zip(
        cases, blank.evaluate(MATCHES, [[list(a), list(b)] for a, b in cases]), strict=True
    ):
        assert len(found) == _lcs(left, right)
        assert all(left[i] == right[j] for i, j in found)
        assert found == sorted(found)
        assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)


def test_it_leaves_the_same_words_unmarked_on_both_sides(blank: Page) -> None:
    rng = random.Random(1)
    vocabulary = ["the", "cat", "sat", "on", "Ünïcödé", "猫", "mat", "שלום", "42"]
    cases = [[" ".join(rng.choices(vocabulary, k=rng.randrange(40))) for _ in "lr"] for _ in range(100)]
    for (left, right), found in zip(cases, blank.evaluate(DIFFERENCES, cases), strict=True):
        assert _without(left, found["left"]) == _without(right, found["right"])
        assert (not found["left"] and not found["right"]) == (left.split() == right.split())


def test_it_compares_a_hundred_thousand_characters_without_freezing(blank: Page) -> None:
    rng = random.Random(2)
    long = " ".join(str(rng.randrange(10**6)) for _ in range(15_000))
    lines = "\n".join(f"line {number} is here" for number in range(4_000))
    cases = [
        [long, long],
        [long, long[::-1]],
        [lines, lines.replace("line 7", "row 7")],
        ["a " * 50_000, "b " * 50_000],
    ]
    same, strange, lined, disjoint = blank.evaluate(DIFFERENCES, cases)
    assert (same["left"], same["right"], same["isCoarse"]) == ([], [], False)
    assert strange["isCoarse"]
    assert lined["left"]
    assert disjoint["isCoarse"]


HOSTILE = "<img src=x onerror=alert(1)> `<script>alert(2)</script>` and the cat sat on the mat."


def test_it_marks_differences_and_shows_raw_text_without_touching_what_is_hostile(screens: Screens) -> None:
    cats = make.campaign("cats", min_dwell_ms=60)
    make.comparison(cats, f"# Title\n\n{HOSTILE}", f"# Title\n\n{HOSTILE.replace('cat', 'dog')}")
    page = screens.open(make.person("anna", cats))
    before = page.locator("#panes").inner_html()
    page.keyboard.press("d")
    expect(page.locator("#status")).to_contain_text("1 words only in response 1, 1 only in response 2")
    expect(page.get_by_role("button", name="Differences")).to_have_attribute("aria-pressed", "true")
    marked = "[...CSS.highlights.get('difference')].map(range => range.startContainer.data.slice(range.startOffset, range.endOffset))"
    assert sorted(page.evaluate(marked)) == ["cat", "dog"]
    assert page.locator("#panes").inner_html() == before
    page.keyboard.press("m")
    expect(page.locator(".label-pane .prose").first).to_contain_text("# Title")
    assert sorted(page.evaluate(marked)) == ["cat", "dog"]
    assert page.locator("#panes :is(img, script, h1)").count() == 0
    page.reload()
    wait_until_ready(page)
    expect(page.locator(".label-pane .prose").first).to_contain_text("# Title")  # remembered
    page.keyboard.press("m")
    page.keyboard.press("d")
    page.keyboard.press("d")
    expect(page.locator("#status")).to_contain_text("no longer marked")
    assert not page.evaluate("CSS.highlights.has('difference')")


def test_it_scrolls_apart_or_together_and_knows_what_was_read(screens: Screens) -> None:
    page = screens.open(make.person("anna", on.campaign()))
    tops = "[...document.querySelectorAll('.label-pane:not([hidden])')].map(pane => Math.round(pane.scrollTop))"
    page.keyboard.press("ArrowDown")
    page.wait_for_function(f"() => ({tops})[0] > 0")
    assert page.evaluate(tops)[1] == 0
    page.keyboard.press("l")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".label-pane").nth(1)).to_be_focused()
    page.locator(".label-pane").nth(1).evaluate("pane => { pane.scrollTop = pane.scrollHeight; }")
    share = "pane => (pane.scrollTop + pane.clientHeight) / pane.scrollHeight"
    page.wait_for_function(
        "() => { const pane = document.querySelector('.label-pane'); return pane.scrollTop + pane.clientHeight >= pane.scrollHeight - 2; }"
    )
    assert page.locator(".label-pane").first.evaluate(share) > 0.99
    press(page, "6")
    press(page, "2")
    read, glanced = settle(page, 2)
    assert read.attention["scrolled"] == [1, 1]
    assert read.attention["switches"] == 1
    assert len(read.attention["panes"]) == 2
    assert sum(read.attention["panes"]) <= (read.shown_ms or 0) + 2
    assert glanced.attention["scrolled"][1] < 1


def test_it_shows_the_last_turn_and_the_thread_on_request(screens: Screens) -> None:
    cats = make.campaign("cats", min_dwell_ms=60)
    turns = [("user", "First question?"), ("assistant", "First *answer*."), ("user", "Second question?")]
    [prompt] = prompts.add_prompts(cats, [{"messages": [{"role": r, "content": c} for r, c in turns]}], "test")
    for text in ("One.", "Two."):
        responses.add_response(prompt, text)
    pairs.make_comparisons(prompt)
    page = screens.open(make.person("anna", cats))
    expect(page.get_by_text("Second question?").last).to_be_visible()
    expect(page.get_by_text("First question?")).to_be_hidden()
    page.keyboard.press("t")
    expect(page.get_by_text("First question?")).to_be_visible()
    expect(page.locator(".label-turn-assistant em")).to_have_text("answer")
    page.keyboard.press("t")
    expect(page.get_by_role("button", name="Show 2 earlier turns")).to_be_visible()
    page.keyboard.press("p")
    expect(page.locator("#prompt")).not_to_have_attribute("open", "")
    expect(page.locator("#excerpt")).to_have_text("Second question?")


def test_it_wants_every_response_seen_where_they_are_stacked(screens: Screens) -> None:
    page = screens.open(make.person("anna", on.campaign()), **on.PHONE)
    page.locator("[data-action='right']").tap()
    expect(page.locator("#status")).to_contain_text("Look at every response first")
    switch = page.get_by_role("button", name="Go to response 2")
    switch.tap()
    expect(switch).to_have_attribute("aria-current", "true")
    before = shown(page)
    page.locator("[data-action='right']").tap()
    [judgment] = settle(page, 1)
    assert on.preferred(judgment) == before[1]
    assert judgment.attention["switches"] >= 1
