"""Three and four responses on one screen, ranked by keys, by mouse and by thumb."""

import pytest
from playwright.sync_api import Page, expect

from labeling import pairs, prompts, responses
from labeling.models import Campaign, Comparison, Judgment
from tests.browser import screens as on
from tests.browser.screens import Screens, press, settle, shown, wait_until_ready
from tests.labeling import make

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def _group(campaign: Campaign, n: int) -> None:
    [prompt] = prompts.add_prompts(campaign, [{"messages": f"Which of {campaign.prompts.count()}?"}], "test")
    for number in range(n):
        responses.add_response(prompt, f"Answer {'wxyz'[number]} to {prompt.pk}. " + "And more of it. " * (5 * number))
    pairs.make_comparisons(prompt)


def _anna(n: int = 4, n_groups: int = 3, **fields):
    campaign = make.campaign("cats", min_dwell_ms=60, group_size=n, **fields)
    for _ in range(n_groups):
        _group(campaign, n)
    return make.person("anna", campaign)


def _ranked(judgment: Judgment) -> dict[str, int]:
    """First sentence → rank."""
    return {on.first_sentence(judgment.comparison, pk): rank for pk, rank in judgment.ranks.items()}


def _summary(page: Page) -> str:
    return page.locator("#summary").inner_text()


def test_it_ranks_by_one_digit_each_with_ties(screens: Screens) -> None:
    page = screens.open(_anna())
    before = shown(page)
    for digit in "2133":
        page.keyboard.press(digit)
    assert _summary(page) == "B > A > C = D"
    assert shown(page) == before  # a ranking waits for its confirmation
    press(page, "Enter")
    [judgment] = settle(page, 1)
    assert [_ranked(judgment)[name] for name in before] == [2, 1, 3, 3]


def test_it_picks_by_letter_or_digit_and_changes_ranks(screens: Screens) -> None:
    page = screens.open(_anna(3))
    before = shown(page)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Rank every response first")
    for key in "c1a32":  # C first, then A last, then the one that is left
        page.keyboard.press(key)
    assert _summary(page) == "C > B > A"
    for key in "2131":  # the second response by its number; then the third one
        page.keyboard.press(key)
    assert _summary(page) == "B = C > A"
    page.keyboard.press("4")  # there is no fourth
    page.keyboard.press("d")
    assert _summary(page) == "B = C > A"
    press(page, "Enter")
    assert [_ranked(settle(page, 1)[0])[name] for name in before] == [2, 1, 1]


def test_it_moves_a_rank_where_ties_are_not_offered(screens: Screens) -> None:
    page = screens.open(_anna(3, allow_tie=False))
    for key in "122":
        page.keyboard.press(key)
    expect(page.locator("#summary")).to_have_text("Rank of B?")
    page.keyboard.press("3")
    assert _summary(page) == "A > C > B"
    page.keyboard.press("=")
    assert _summary(page) == "A > C > B"
    expect(page.get_by_role("button", name="All equal")).to_have_count(0)


def test_it_says_all_equal_or_all_bad_and_asks_for_reasons(screens: Screens) -> None:
    criteria = [
        {"key": "help", "label": "Helpful", "scale": "rating"},
        {"key": "truth", "label": "Truthful", "scale": "seven"},
    ]
    page = screens.open(_anna(3, criteria=criteria))
    page.keyboard.press("=")
    assert _summary(page) == "A = B = C"
    page.keyboard.press("k")
    for digit in "543":
        page.keyboard.press(digit)
    press(page, "Enter")
    press(page, "0", "Enter")
    equal, bad = settle(page, 2)
    assert (equal.verdict, set(equal.ranks.values())) == ("tie", {1})
    assert equal.criteria == {"help": dict(zip(map(str, equal.order), (5, 4, 3), strict=True))}
    assert (bad.verdict, bad.ranks) == ("both_bad", {})


def test_it_puts_a_ranking_back_after_an_undo(screens: Screens) -> None:
    page = screens.open(_anna(3))
    before = press(page, *"312", "Enter")
    settle(page, 1)
    page.keyboard.press("z")
    page.wait_for_function(
        "before => document.querySelector('.label-pane .prose').innerText.startsWith(before)", arg=before[0]
    )
    assert _summary(page) == "B > C > A"
    wait_until_ready(page)
    press(page, "a", "1", "Enter")
    assert [_ranked(settle(page, 1)[0])[name] for name in before] == [1, 1, 2]


def test_it_ranks_by_thumb_on_a_phone(screens: Screens) -> None:
    page = screens.open(_anna(), **on.PHONE)
    before = shown(page)
    for place, rank in enumerate((4, 3, 2, 1)):
        name = "ABCD"[place]
        page.get_by_role("button", name=f"Go to response {name}").tap()
        page.get_by_role("group", name=f"Rank of response {name}").get_by_role("radio", name=f"Rank {rank}").tap()
    assert _summary(page) == "D > C > B > A"
    sizes = page.evaluate(
        "[...document.querySelectorAll('[data-ranks]:not([hidden]) label')].map(l => [l.offsetWidth, l.offsetHeight])"
    )
    assert min(min(size) for size in sizes) >= 44
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Next").tap()
    assert [_ranked(settle(page, 1)[0])[name] for name in before] == [4, 3, 2, 1]


def test_it_compares_two_where_a_campaign_of_rankings_has_a_pair(screens: Screens) -> None:
    anna = _anna(3, n_groups=0)
    _group(Campaign.objects.get(), 2)
    campaign = Campaign.objects.get()
    pairs.add_comparisons(campaign, [tuple(campaign.prompts.get().responses.all())], Comparison.Source.IMPORT)
    page = screens.open(anna)
    page.keyboard.press("7")
    assert settle(page, 1)[0].strength == 3
