"""The comparison screen in real Chromium: judging by keyboard, reasons, skips, flags, undo, two windows."""

import pytest
from playwright.sync_api import Page, expect

from labeling import preferences
from labeling.models import Campaign, Judgment
from tests.browser import screens as on
from tests.browser.screens import Screens, press, settle, shown, wait_until_ready
from tests.labeling import make

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
ASKING = {
    "criteria": [
        {"key": "truth", "label": "Truthful", "scale": "seven"},
        {"key": "style", "label": "Well written", "scale": "binary"},
        {"key": "help", "label": "Helpful", "scale": "rating"},
    ],
    "reason_tags": ["clearer", "safer"],
    "rationale": "required",
    "allow_edit": True,
}


def _anna(**fields):
    return make.person("anna", on.campaign(**fields))


def test_it_judges_by_keyboard_what_is_on_the_screen(screens: Screens) -> None:
    page = screens.open(_anna())
    pairs = [press(page, *keys) for keys in ("1", "7", "4", "0", "ss", "s1")]
    rows = settle(page, 6)
    assert [(row.verdict, row.strength, row.skip_reason) for row in rows] == [
        ("preference", 3, ""),
        ("preference", 3, ""),
        ("tie", None, ""),
        ("both_bad", None, ""),
        ("skip", None, ""),
        ("skip", None, "unsure"),
    ]
    assert on.preferred(rows[0]) == pairs[0][0]
    assert on.preferred(rows[1]) == pairs[1][1]
    assert all(row.shown_ms is not None and row.shown_ms >= 50 for row in rows)
    assert page.evaluate("performance.getEntriesByName('label:next').length") >= 4


@pytest.mark.parametrize(
    ("scale", "keys", "said"),
    [
        ("three", ("ArrowLeft", "ArrowDown", "3", "ArrowUp"), ["0", "tie", "1", "both_bad"]),
        ("binary", ("1", "ArrowRight", "2", "0"), ["0", "1", "1", "both_bad"]),
    ],
)
def test_it_judges_simple_scales_by_arrows_or_digits(screens: Screens, scale, keys, said) -> None:
    page = screens.open(_anna(scale=scale))
    pairs = [press(page, key) for key in keys]
    for row, pair, expected in zip(settle(page, 4), pairs, said, strict=True):
        assert row.strength is None
        if expected.isdigit():
            assert on.preferred(row) == pair[int(expected)]
        else:
            assert row.verdict == expected


def test_it_scrolls_by_arrows_once_somebody_went_into_a_response(screens: Screens) -> None:
    page = screens.open(_anna(scale="three"))
    before = shown(page)
    pane = page.locator(".label-pane").first
    while not pane.evaluate("pane => pane === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("() => document.querySelector('.label-pane').scrollTop > 0")
    assert shown(page) == before
    page.locator(".label-pane").nth(1).click()  # by mouse nobody means to scroll with arrows
    page.evaluate("document.activeElement.blur()")
    press(page, "ArrowDown")
    assert settle(page, 1)[0].verdict == "tie"


def test_it_ignores_keys_that_are_not_meant_for_it(screens: Screens) -> None:
    page = screens.open(_anna())
    before = shown(page)
    for key in ("Control+1", "Alt+1", "Meta+1", "8", "Control+s", "Control+z", "Escape"):
        page.keyboard.press(key)
    for detail in ("repeat: true", "isComposing: true", "keyCode: 229"):
        event = f"new KeyboardEvent('keydown', {{key: '1', code: 'Digit1', bubbles: true, {detail}}})"
        page.evaluate(f"document.body.dispatchEvent({event})")
    for key, name in (("?", "Keys"), ("g", "Guidelines"), ("x", "A break")):
        page.keyboard.press(key)
        expect(page.get_by_role("dialog", name=name)).to_be_visible()
        page.keyboard.press("1")
        page.keyboard.press("s")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog", name=name)).to_be_hidden()
    page.keyboard.press("s")
    page.keyboard.press("9")  # an open row has the digits for itself
    page.keyboard.press("Escape")
    expect(page.locator("#skip-row")).to_be_hidden()
    page.wait_for_timeout(150)
    assert shown(page) == before
    assert not Judgment.objects.exists()


def test_it_ignores_keys_before_a_pair_could_be_read(screens: Screens) -> None:
    page = screens.open(_anna(min_dwell_ms=1_200), is_ready=False)
    expect(page.locator("#pair")).to_be_visible()
    page.keyboard.press("1")
    page.locator("[data-action='left']").dispatch_event("click")
    wait_until_ready(page)
    assert not Judgment.objects.exists()
    press(page, "3")
    assert settle(page, 1)[0].strength == 1


def test_it_asks_for_reasons_after_the_choice_and_never_in_its_way(screens: Screens) -> None:
    page = screens.open(_anna(**ASKING))
    reasons = page.get_by_role("region", name="Why?")
    pair = shown(page)
    page.keyboard.press("2")
    expect(reasons).to_be_visible()
    page.keyboard.press("6")  # changed my mind
    expect(on.grade(page, "Response 2 is better")).to_have_attribute("aria-checked", "true")
    page.keyboard.press("c")
    for digit in "13":  # truth: response 1 much better; style has two answers only, so 3 is none
        page.keyboard.press(digit)
    page.keyboard.press("2")
    page.keyboard.press("5")
    page.keyboard.press("Escape")
    page.get_by_text("clearer").click()
    expect(on.grade(page, "Response 2 is better")).to_have_attribute("aria-checked", "true")
    press(page, "Enter")
    press(page, "2", "2")  # the same choice again confirms
    first, second = settle(page, 2)
    assert on.preferred(first) == pair[1]
    assert first.criteria == {"truth": 3, "style": -1, "help": {str(first.order[0]): 5}}
    assert first.tags == ["clearer"]
    assert (second.criteria, second.tags, second.reason) == ({}, [], "")


def test_it_insists_on_a_rationale_only_where_one_is_required(screens: Screens) -> None:
    page = screens.open(_anna(rationale="required"))
    press(page, "6", "Enter")
    page.keyboard.press("7")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Please write why")
    expect(page.get_by_label("Why, in your words")).to_be_focused()
    page.keyboard.type("It is right, s1 and all.")
    press(page, "Enter")
    weak, strong = settle(page, 2)
    assert (weak.reason, strong.reason) == ("", "It is right, s1 and all.")


def test_it_improves_the_chosen_response(screens: Screens) -> None:
    page = screens.open(_anna(allow_edit=True))
    page.keyboard.press("e")
    expect(page.locator("#status")).to_contain_text("Choose the response to improve first")
    pair = shown(page)
    page.keyboard.press("5")
    page.keyboard.press("e")
    editor = page.get_by_role("textbox", name="Improve response 2")
    expect(editor).to_be_focused()
    page.keyboard.type("<b>1</b> Better: ")
    page.keyboard.press("Escape")
    expect(page.locator(".label-pane").nth(1)).to_contain_text("<b>1</b> Better:")
    expect(page.locator(".label-pane").nth(1).get_by_text("Improved by you")).to_be_visible()
    press(page, "Enter")
    press(page, "5", "e", "Control+Enter")  # opened, and left as it was
    first, second = settle(page, 2)
    assert first.edit is not None
    assert second.edit is None
    assert first.edit.text.startswith("<b>1</b> Better: ")
    assert first.edit.edited_from is not None
    assert on.first_sentence(first.comparison, first.edit.edited_from.pk) == pair[1]


def test_it_flags_at_any_time_and_sends_flags_with_a_skip_too(screens: Screens) -> None:
    page = screens.open(_anna())
    for key in ("f", "1", "3", "f"):
        page.keyboard.press(key)
    expect(page.get_by_role("button", name="Flag (2)")).to_be_visible()
    press(page, "7")
    press(page, "f", "2", "Escape", "s", "s")
    page.keyboard.press("f")
    expect(page.get_by_role("button", name="Private data")).to_have_attribute("aria-pressed", "false")
    first, second = settle(page, 2)
    assert first.flags == ["broken_prompt", "unsafe"]
    assert (second.verdict, second.flags) == ("skip", ["private_data"])


def test_it_undoes_the_whole_session_and_after_a_reload(screens: Screens) -> None:
    page = screens.open(_anna(reason_tags=["clearer"]))
    page.keyboard.press("1")
    page.get_by_text("clearer").click()
    first = press(page, "Enter")
    second = press(page, "6", "Enter")
    settle(page, 2)
    expect(page.locator("#status")).to_contain_text("Saved. Z takes it back")
    for expected in (second, first):
        page.keyboard.press("z")
        expect(page.locator(".label-pane .prose").first).to_contain_text(expected[0])
        wait_until_ready(page)
    expect(page.get_by_label("clearer")).to_be_checked()  # what was said is still there
    expect(page.get_by_role("radio", name="Response 1 is much better")).to_have_attribute("aria-checked", "true")
    press(page, "Enter")
    settle(page, 1)
    page.reload()
    wait_until_ready(page)
    page.keyboard.press("Backspace")
    expect(page.locator(".label-pane .prose").first).to_contain_text(first[0])
    expect(page.locator("#undo")).to_be_disabled()
    page.keyboard.press("z")
    expect(page.locator("#status")).to_contain_text("nothing to undo")


def test_it_does_by_the_keys_that_somebody_chose(screens: Screens) -> None:
    anna = _anna()
    page = screens.window(anna)
    page.goto("/preferences/")
    field = page.get_by_label("Response 1 is much better")
    field.focus()
    page.keyboard.press("q")
    expect(field).to_have_value("q")
    page.get_by_label("A screen down").focus()
    page.keyboard.press("ArrowRight")  # taken
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was saved yet")
    page.get_by_label("A screen down").press("Space")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    assert preferences.preferences_of(anna).keys == {"much_left": "q"}

    page.goto("/campaigns/cats/label/")
    wait_until_ready(page)
    expect(page.get_by_role("radio", name="Response 1 is much better")).to_contain_text("Q")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog").get_by_role("row", name="Response 1 is much better")).to_contain_text("Q")
    page.keyboard.press("?")
    page.keyboard.press("1")  # means nothing now
    press(page, "q")
    assert settle(page, 1)[0].strength == 3


def test_it_understands_keyboards_of_other_scripts(screens: Screens) -> None:
    page = screens.open(_anna())
    page.evaluate("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'п', code: 'KeyG', bubbles: true}))")
    expect(page.get_by_role("dialog", name="Guidelines")).to_be_visible()
    page.keyboard.press("Escape")
    before = shown(page)
    page.evaluate(
        "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '&', code: 'Digit1', bubbles: true}))"
    )
    page.wait_for_function(
        "before => document.querySelector('.label-pane .prose').innerText.indexOf(before)", arg=before[0]
    )
    assert on.preferred(settle(page, 1)[0]) == before[0]


def test_it_judges_nothing_twice_in_two_windows(screens: Screens) -> None:
    anna = _anna(n=3)
    one = screens.open(anna)
    other = screens.page(one.context)
    other.goto("/campaigns/cats/label/")
    wait_until_ready(other)
    pair = shown(one)
    assert shown(other) == pair  # they share the person's leases
    press(one, "1")
    expect(other.locator("#status")).to_contain_text("You judged that pair in another tab")
    wait_until_ready(other)
    assert shown(other) != pair
    other.close()  # lets go of nothing that the first window still shows
    press(one, "2")
    one.keyboard.press("3")
    rows = settle(one, 3)
    assert len({row.comparison_id for row in rows}) == 3


def test_it_proposes_a_break_and_counts_the_sitting(screens: Screens) -> None:
    page = screens.window(_anna())
    page.clock.install()
    page.goto("/campaigns/cats/label/")
    expect(page.locator("#pair")).to_be_visible()
    page.clock.run_for(1_000)
    page.keyboard.press("1")
    expect(page.locator("[data-counts]").first).to_be_attached()
    for _ in range(11):
        page.clock.fast_forward("03:00")
        page.keyboard.press("Shift")
    notice = page.get_by_role("status").filter(has_text="A short break")
    expect(notice).to_be_visible()
    page.get_by_role("button", name="In a while").click()
    expect(notice).to_be_hidden()
    for _ in range(4):
        page.clock.fast_forward("03:00")
        page.keyboard.press("Shift")
    expect(notice).to_be_visible()
    page.get_by_role("button", name="Take a break").click()
    pause = page.get_by_role("dialog", name="A break")
    expect(pause).to_contain_text("This time: 1, a median of")
    page.get_by_role("button", name="Go on").click()
    expect(notice).to_be_hidden()
    page.clock.fast_forward("06:00")  # a rest, whatever the clock says
    page.keyboard.press("Shift")
    expect(notice).to_be_hidden()


def test_it_says_when_all_is_done_and_shows_what_comes_then(screens: Screens) -> None:
    page: Page = screens.open(_anna(n=2))
    press(page, "6")
    page.keyboard.press("6")
    expect(page.get_by_role("heading", name="The model is writing the next responses")).to_be_visible()
    Campaign.objects.get().prompts.update(candidates_state="done")
    expect(page.get_by_role("heading", name="That was the last one")).to_be_visible()
    page.keyboard.press("Enter")
    page.keyboard.press("1")
    expect(page.get_by_role("heading", name="That was the last one")).to_be_visible()
    assert len(settle(page, 2)) == 2
