"""The practice round: it says so, tells the known answer after each pair, and sums up."""

import pytest
from playwright.sync_api import Page, expect

from labeling import gold
from labeling.models import Campaign, Judgment
from tests.browser import screens as on
from tests.browser.screens import Screens, press, settle, shown, wait_until_ready
from tests.labeling import make

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def anna():
    """Two pairs to practise on, of which the **first** response is known to be better, and two to judge."""
    cats = on.campaign(4, practice_pairs=2)
    for comparison in cats.comparisons.order_by("id")[:2]:
        ids = {item.response_id: 2 for item in comparison.items.all()}
        good = comparison.responses.get(text__startswith="**First**").pk
        gold.set_answer(comparison, {str(pk): 1 if pk == good else 2 for pk in ids})
    return make.person("anna", cats)


def _side(page: Page, *, is_right: bool) -> str:
    """The key that prefers the response known to be better, or the other one."""
    is_left = shown(page)[0].startswith("First")
    return "1" if is_left == is_right else "7"


def test_it_gives_feedback_and_sums_up(screens: Screens, anna) -> None:
    page = screens.open(anna)
    expect(page.get_by_text("Practice: the answer to these is known")).to_be_visible()
    page.keyboard.press(_side(page, is_right=True))
    feedback = page.locator("#feedback")
    expect(feedback).to_contain_text("Right. The known answer: ")
    before = shown(page)
    page.keyboard.press("7")  # over is over
    assert shown(page) == before
    press(page, "Enter")
    answer = "1 > 2" if shown(page)[0].startswith("First") else "2 > 1"
    page.keyboard.press(_side(page, is_right=False))
    expect(feedback).to_contain_text(f"Not quite. The known answer: {answer}.")
    page.keyboard.press("Enter")
    expect(page.get_by_text("You agreed with the known answer in 1 of 2 pairs.")).to_be_visible()
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    wait_until_ready(page)
    expect(page.get_by_text("Practice: the answer to these is known")).to_be_hidden()
    press(page, "1")
    assert [row.purpose for row in settle(page, 3)] == ["practice", "practice", "label"]
    assert Campaign.objects.get().memberships.get().practised_at is not None


def test_it_goes_on_without_feedback_when_the_network_is_gone(screens: Screens, anna) -> None:
    page = screens.open(anna)
    page.context.set_offline(True)
    before = shown(page)
    page.keyboard.press("1")
    expect(page.locator("#note")).to_contain_text("No connection")
    expect(page.locator(".label-pane .prose").first).not_to_contain_text(before[0])
    page.context.set_offline(False)
    settle(page, 1)
    assert Judgment.objects.count() == 1
