"""For everybody: axe, the keyboard alone, what a screen reader is told, right to left, a phone, 400 % zoom."""

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from labeling import pairs, prompts, responses
from tests.browser import screens as on
from tests.browser.screens import Screens, press, settle, shown, wait_until_ready
from tests.labeling import make

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
ZOOMED: dict[str, Any] = {"viewport": {"width": 320, "height": 256}}  # 1280 by 1024 at 400 %
ASKING = {
    "criteria": [
        {"key": "truth", "label": "Truthful", "scale": "seven"},
        {"key": "help", "label": "Helpful", "scale": "rating"},
    ],
    "reason_tags": ["clearer", "safer"],
    "rationale": "optional",
    "allow_edit": True,
}


def _anna(**fields):
    return make.person("anna", on.campaign(**fields))


def _violations(page: Page) -> list[str]:
    found = Axe().run(page, options={"runOnly": RULES, "resultTypes": ["violations"]}).response["violations"]
    return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]


def _fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, on.PHONE], ids=["light", "dark", "phone"])
def test_it_has_nothing_for_axe_to_say(screens: Screens, options: dict[str, Any]) -> None:
    page = screens.open(_anna(**ASKING), reduced_motion="reduce", **options)
    assert _violations(page) == []
    page.get_by_role("button", name="Go to response 2").click()
    on.grade(page, "Response 2 is better").click()
    expect(page.get_by_role("region", name="Why?")).to_be_visible()
    page.keyboard.press("d")
    page.keyboard.press("f")
    assert _violations(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert _violations(page) == []
    for address in ("/", "/preferences/"):
        page.goto(address)
        expect(page.get_by_role("heading", level=1).first).to_be_attached()
        assert _violations(page) == []


def test_it_has_nothing_for_axe_to_say_of_a_ranking(screens: Screens) -> None:
    cats = make.campaign("cats", min_dwell_ms=60, group_size=3)
    [prompt] = prompts.add_prompts(cats, [{"messages": "Which is best?"}], "test")
    for text in ("A cat.", "Some small dog, perhaps?", "It depends on what you want."):
        responses.add_response(prompt, text)
    pairs.make_comparisons(prompt)
    page = screens.open(make.person("anna", cats), reduced_motion="reduce")
    page.keyboard.press("2")
    assert _violations(page) == []


def test_it_is_a_days_work_by_the_keyboard_alone(screens: Screens) -> None:
    anna = _anna(**ASKING)
    page = screens.window(None)
    page.goto("/")
    page.keyboard.type("anna")
    page.keyboard.press("Tab")
    page.keyboard.type("pass-word-123")
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Start labeling")).to_be_visible()
    _tab_to(page, "Start labeling")
    page.keyboard.press("Enter")
    wait_until_ready(page)

    page.keyboard.press("g")  # the guidelines
    expect(page.get_by_role("dialog", name="Guidelines")).to_contain_text("Prefer cats.")
    page.keyboard.press("g")
    page.keyboard.press("?")  # the keys
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("Skip; twice: without a reason")
    page.keyboard.press("?")

    page.keyboard.press("6")  # a judgment with everything
    page.keyboard.press("c")
    page.keyboard.press("5")
    page.keyboard.press("Escape")
    page.keyboard.press("r")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("Because 1 and 2 differ.")
    press(page, "Enter")
    press(page, "s", "3")  # a skip with its reason
    press(page, "f", "1", "f", "1", "Enter")  # a flag, and a judgment
    page.keyboard.press("z")  # and back
    expect(page.get_by_role("button", name="Flag (1)")).to_be_visible()
    wait_until_ready(page)
    press(page, "Enter")

    _tab_to(page, "Response 1 is much better")  # the scale by Tab and arrows
    page.keyboard.press("ArrowRight")
    expect(on.grade(page, "Response 1 is better")).to_be_focused()
    page.keyboard.press("Space")
    press(page, "Enter")
    first, skipped, flagged, tabbed = settle(page, 4)
    assert first.reason == "Because 1 and 2 differ."
    assert (first.tags, first.criteria) == (["clearer"], {"truth": -1})
    assert (skipped.verdict, skipped.skip_reason) == ("skip", "language")
    assert (flagged.strength, flagged.flags) == (3, ["unsafe"])
    assert (tabbed.verdict, tabbed.strength) == ("preference", 2)
    assert {row.annotator for row in (first, skipped, flagged, tabbed)} == {anna}


def _tab_to(page: Page, name: str) -> None:
    """Presses Tab until what has the focus is called `name`."""
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.locator(":is(a, button):focus")
        if focused.count() and name in (focused.get_attribute("aria-label") or focused.inner_text()):
            return
    raise AssertionError(f"Tab never came to {name}")


def _tree(page: Page) -> list[dict[str, Any]]:
    """What Chromium tells assistive technology."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    return [
        {
            "role": node["role"]["value"],
            "name": node.get("name", {}).get("value", ""),
            **{one["name"]: one["value"].get("value") for one in node.get("properties", [])},
        }
        for node in nodes
        if not node["ignored"]
    ]


def test_it_tells_a_screen_reader_what_is_there_and_what_happened(screens: Screens) -> None:
    page = screens.open(_anna(**ASKING))
    tree = _tree(page)
    named = {(node["role"], node["name"]) for node in tree}
    for number in "12":
        assert ("region", f"Response {number}") in named
        for degree in ("much ", "", "slightly "):
            assert ("radio", f"Response {number} is {degree}better") in named
    assert {
        ("radiogroup", "Which response is better?"),
        ("contentinfo", "Your judgment"),
        ("group", "Comparison 1"),
    } <= named
    unnamed = [
        node
        for node in tree
        if node["role"] in ("button", "radio", "link", "textbox", "checkbox", "dialog") and not node["name"]
    ]
    assert unnamed == []
    assert not any(
        key in node["name"]
        for node in tree
        if node["role"] == "radio"
        for key in "1234567"
        if "Response" not in node["name"]
    )

    on.grade(page, "Response 1 is better").focus()
    page.keyboard.press("Enter")
    [checked] = [node for node in _tree(page) if node.get("checked") == "true"]
    assert checked["name"] == "Response 1 is better"
    ratings = [node for node in _tree(page) if node["role"] == "group" and node["name"].startswith("Helpful")]
    assert [node["name"] for node in ratings] == ["Helpful · Response 1", "Helpful · Response 2"]
    press(page, "Enter")
    expect(page.get_by_role("status").filter(has_text="Saved")).to_have_count(1)
    polite = [node["name"] for node in _tree(page) if node["role"] == "status" and node.get("live") == "polite"]
    assert polite
    expect(page.locator("#pair")).to_be_focused()  # reading goes on at the next pair
    expect(page.locator("#pair")).to_have_attribute("aria-label", "Comparison 2")


def test_it_works_from_right_to_left(screens: Screens) -> None:
    cats = make.campaign("cats", min_dwell_ms=60)
    arabic = "القطط حيوانات صغيرة. " * 20
    for _ in range(3):
        make.comparison(cats, arabic, "Cats are small. " * 20)
    page = screens.open(make.person("anna", cats), locale="ar")
    expect(page.locator("html")).to_have_attribute("dir", "rtl")
    assert _fits(page)
    left, right = (page.locator(".label-pane").nth(place).bounding_box() for place in (1, 0))
    assert left is not None
    assert right is not None
    assert left["x"] < right["x"]  # the first response is where reading begins
    directions = page.evaluate(
        "[...document.querySelectorAll('.label-pane:not([hidden]) .prose')].map(p => getComputedStyle(p).direction)"
    )
    texts = shown(page)
    assert dict(zip(directions, (text.startswith("Cats") for text in texts), strict=True)) == {
        "ltr": True,
        "rtl": False,
    }
    page.keyboard.press("ArrowLeft")  # to the left is the second one
    expect(page.locator(".label-pane").nth(1)).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".label-pane").first).to_be_focused()
    page.keyboard.press("7")
    assert on.preferred(settle(page, 1)[0]) == texts[1]
    page.set_viewport_size({"width": 390, "height": 844})
    assert _fits(page)


def test_it_needs_no_sideways_scrolling_at_400_percent(screens: Screens) -> None:
    page = screens.open(_anna(**ASKING), **ZOOMED)
    assert _fits(page)
    page.get_by_role("button", name="Go to response 2").click()
    on.grade(page, "Response 2 is better").click()
    expect(page.get_by_role("region", name="Why?")).to_be_visible()
    page.keyboard.press("f")
    assert _fits(page)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert _fits(page)
    page.keyboard.press("?")
    page.keyboard.press("Enter")
    assert settle(page, 1)[0].strength == 2
    page.goto("/preferences/")
    assert _fits(page)


def test_it_has_targets_for_thumbs(screens: Screens) -> None:
    page = screens.open(_anna(), **on.PHONE)
    sizes = page.evaluate(
        "[...document.querySelectorAll('#bar .button, .label-tools .button')].filter(b => b.checkVisibility()).map(b => [b.innerText, b.offsetWidth, b.offsetHeight])"
    )
    assert [size for size in sizes if min(size[1:]) < 44] == []
    assert len(sizes) >= 12


def test_it_stands_still_for_those_who_asked_for_it(screens: Screens) -> None:
    page = screens.open(_anna(), reduced_motion="reduce")
    press(page, "1")
    longest = "Math.max(0, ...document.getAnimations().map(animation => animation.effect.getComputedTiming().duration))"
    assert page.evaluate(longest) < 1
