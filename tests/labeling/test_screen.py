"""The comparison screen in real Chromium, with a keyboard, a thumb, and a bad connection."""

from collections.abc import Callable, Iterator

import pytest
from django.contrib.sessions.models import Session
from django.test import Client
from playwright.sync_api import BrowserContext, Page, expect

from labeling import judgments
from labeling.models import Campaign, Judgment
from tests.labeling import make

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
OTHER = "One scrolls down to it, since it comes below, and reads it as well. " * 30
LONG = "This answer is long enough to fill more than one screen of a phone. " * 30


@pytest.fixture
def anna(browser):
    cats = make.campaign("cats", min_dwell_ms=100, guidelines="Prefer *cats*.")
    for number in range(8):
        make.comparison(cats, f"**First** answer {number}.\n\n{LONG}", f"A second one, {number} `code`.\n\n{OTHER}")
    return make.person("anna", cats)


def _log_in(context: BrowserContext, address: str, user) -> None:
    client = Client()
    client.force_login(user)
    context.add_cookies([{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": address}])


@pytest.fixture
def opened(browser, live_server, anna) -> Iterator[Callable[..., Page]]:
    contexts: list[BrowserContext] = []

    def open_screen(*, is_ready: bool = True, **window) -> Page:
        context = browser.new_context(base_url=live_server.url, **(window or DESKTOP))
        contexts.append(context)
        _log_in(context, live_server.url, anna)
        page = context.new_page()
        page.goto("/campaigns/cats/label/")
        expect(page.locator("#pair")).to_be_visible()
        if is_ready:
            _wait_until_ready(page)
        return page

    yield open_screen
    for context in contexts:
        context.close()


def _wait_until_ready(page: Page) -> None:
    expect(page.locator("#pair")).to_be_visible()
    expect(page.locator("#bar [data-key='1']")).to_have_attribute("aria-disabled", "false")


def _shown(page: Page) -> list[str]:
    return [text.split(".")[0] for text in page.locator("#pair .label-pane .prose").all_inner_texts()]


def _press(page: Page, key: str) -> list[str]:
    """Presses a key that judges, and waits for the next pair; returns the first sentences of what was judged."""
    before = _shown(page)
    page.keyboard.press(key)
    page.wait_for_function(
        "before => document.querySelector('.label-pane .prose').innerText.indexOf(before)", arg=before[0]
    )
    _wait_until_ready(page)
    return before


def _settle(page: Page, n: int) -> list[Judgment]:
    """Waits until `n` judgments are in force; returns them, oldest first."""
    for _ in range(100):
        rows = list(judgments.in_force().order_by("id"))
        if len(rows) == n:
            return rows
        page.wait_for_timeout(50)
    raise AssertionError(f"{len(rows)} judgments, not {n}")


def _preferred(judgment: Judgment) -> str:
    chosen = next(pk for pk, rank in judgment.ranks.items() if rank == 1)
    return judgment.comparison.responses.get(pk=chosen).text.replace("*", "").replace("`", "").split(".")[0]


def test_it_judges_by_keyboard_what_is_on_the_screen(opened):
    page = opened()
    shown = [_press(page, key) for key in ("1", "7", "4", "0", "s")]
    rows = _settle(page, 5)
    assert [(row.verdict, row.strength) for row in rows] == [
        ("preference", 3),
        ("preference", 3),
        ("tie", None),
        ("both_bad", None),
        ("skip", None),
    ]
    assert _preferred(rows[0]) == shown[0][0]
    assert _preferred(rows[1]) == shown[1][1]
    assert all(row.shown_ms is not None and row.shown_ms >= 90 for row in rows)


def test_it_ignores_keys_that_are_not_meant_for_it(opened):
    page = opened()
    before = _shown(page)
    for key in ("Control+1", "Alt+1", "Meta+1", "8", "Control+s"):
        page.keyboard.press(key)
    repeated = "new KeyboardEvent('keydown', {key: '1', code: 'Digit1', repeat: true, bubbles: true})"
    composing = "new KeyboardEvent('keydown', {key: '1', code: 'Digit1', isComposing: true, bubbles: true})"
    for event in (repeated, composing):
        page.evaluate(f"document.body.dispatchEvent({event})")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("1")
    page.keyboard.press("?")
    page.keyboard.press("g")
    expect(page.get_by_role("dialog", name="Guidelines")).to_contain_text("Prefer cats.")
    page.keyboard.press("1")
    page.keyboard.press("Escape")
    page.wait_for_timeout(200)
    assert _shown(page) == before
    assert not Judgment.objects.exists()


def test_it_ignores_keys_before_a_pair_could_be_read(opened):
    Campaign.objects.update(min_dwell_ms=1_500)
    page = opened(is_ready=False)
    page.keyboard.press("1")
    page.locator("[data-key='2']").dispatch_event("click")
    _wait_until_ready(page)
    assert not Judgment.objects.exists()
    _press(page, "3")
    assert _settle(page, 1)[0].strength == 1


def test_it_undoes_after_a_reload_and_judges_again(opened):
    page = opened()
    first, second = _press(page, "1"), _press(page, "2")
    _settle(page, 2)
    page.reload()
    _wait_until_ready(page)
    for expected in (second, first):
        page.keyboard.press("z")
        expect(page.locator("#pair .label-pane .prose").first).to_contain_text(expected[0])
        _wait_until_ready(page)
        assert _shown(page) == expected
    expect(page.locator("#undo")).to_be_disabled()
    _press(page, "7")
    [judgment] = _settle(page, 1)
    assert _preferred(judgment) == first[1]


def test_it_keeps_judgments_without_a_network_and_sends_them_once(opened):
    page = opened()
    _press(page, "1")
    _settle(page, 1)
    page.context.set_offline(True)
    page.keyboard.press("2")
    expect(page.locator("#note")).to_contain_text("No connection")
    assert Judgment.objects.count() == 1
    page.context.set_offline(False)
    _settle(page, 2)
    expect(page.locator("#note")).to_be_hidden()
    page.reload()
    _wait_until_ready(page)
    assert [row.strength for row in _settle(page, 2)] == [3, 2]


def test_it_keeps_judgments_over_a_lost_login(opened, live_server, anna):
    page = opened()
    Session.objects.all().delete()
    page.keyboard.press("1")
    link = page.locator("#note a")
    expect(link).to_have_attribute("href", "/login/?next=%2Fcampaigns%2Fcats%2Flabel%2F")
    _log_in(page.context, live_server.url, anna)
    page.reload()
    assert len(_settle(page, 1)) == 1


def test_it_says_when_all_is_done_and_shows_what_comes_then(opened, anna):
    page = opened()
    for _ in range(7):
        _press(page, "6")
    page.keyboard.press("6")
    expect(page.get_by_role("heading", name="The model is writing the next responses")).to_be_visible()
    campaign = anna.memberships.get().campaign
    campaign.prompts.update(candidates_state="done")
    expect(page.get_by_role("heading", name="That was the last one")).to_be_visible(timeout=10_000)
    assert len(_settle(page, 8)) == 8


def test_it_fits_a_phone_and_wants_both_responses_seen(opened):
    page = opened(**PHONE)
    page.locator("[data-key='6']").tap()
    expect(page.locator("#status")).to_contain_text("Look at both responses first")
    page.get_by_role("button", name="Go to response 2").tap()
    expect(page.get_by_role("button", name="Go to response 2")).to_have_attribute("aria-current", "true")
    page.locator("[data-key='6']").tap()
    assert _settle(page, 1)[0].strength == 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    sizes = page.evaluate("[...document.querySelectorAll('#bar .button')].map(b => [b.offsetWidth, b.offsetHeight])")
    assert all(width >= 44 and height >= 44 for width, height in sizes)


def test_it_names_every_button_for_screen_readers(opened):
    page = opened()
    scale = page.get_by_role("group", name="Which response is better?")
    for name in ("Response 1 is much better", "Tie", "Response 2 is slightly better"):
        expect(scale.get_by_role("button", name=name)).to_have_count(1)
    for name in ("Response 1", "Response 2"):
        expect(page.get_by_role("region", name=name)).to_have_count(1)
