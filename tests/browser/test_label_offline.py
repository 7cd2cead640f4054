"""Judgments without a network, without a login, too late: kept, sent once, and said so."""

from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.utils import timezone
from playwright.sync_api import Route, expect

from labeling import leases
from labeling.models import Judgment, Lease
from tests.browser import screens as on
from tests.browser.screens import Screens, press, settle, wait_until_ready
from tests.labeling import make

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


def _anna(**fields):
    return make.person("anna", on.campaign(**fields))


def test_it_keeps_judgments_over_a_lost_network_and_a_reload_and_sends_them_once(screens: Screens) -> None:
    page = screens.open(_anna())
    with page.expect_response(lambda answer: answer.url.endswith("/leases/")):  # the next two come
        press(page, "1")
    page.context.set_offline(True)
    press(page, "2")  # the next ones are in memory
    press(page, "s", "2")
    expect(page.locator("#note")).to_contain_text("No connection")
    assert Judgment.objects.count() == 1
    with pytest.raises(Exception, match="ERR_INTERNET_DISCONNECTED"):
        page.reload()
    page.context.set_offline(False)
    page.goto("/campaigns/cats/label/")
    wait_until_ready(page)
    rows = settle(page, 3)
    assert [(row.strength, row.skip_reason) for row in rows] == [(3, ""), (2, ""), (None, "too_long")]
    assert Judgment.objects.count() == 3
    page.reload()
    wait_until_ready(page)
    assert Judgment.objects.count() == 3
    assert page.evaluate("Object.keys(localStorage).filter(name => name.startsWith('judgment:')).length") == 0


def test_it_sends_once_when_only_the_answer_was_lost(screens: Screens) -> None:
    page = screens.window(_anna())
    lost: list[int] = []

    def lose_the_first_answer(route: Route) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch().status)
            route.abort("internetdisconnected")

    page.route("**/api/judgments/", lose_the_first_answer)
    screens.show(page)
    page.keyboard.press("5")
    expect(page.locator("#status")).to_contain_text("everything is saved")
    assert lost == [201]
    assert Judgment.objects.count() == 1


def test_it_takes_back_what_was_never_sent(screens: Screens) -> None:
    page = screens.open(_anna())
    page.context.set_offline(True)
    before = press(page, "3")
    expect(page.locator("#note")).to_contain_text("No connection")
    page.keyboard.press("z")
    expect(page.locator(".label-pane .prose").first).to_contain_text(before[0])
    wait_until_ready(page)
    page.context.set_offline(False)
    press(page, "6")
    assert [row.strength for row in settle(page, 1)] == [2]
    assert Judgment.objects.count() == 1


def test_it_says_when_a_judgment_came_too_late_to_count(screens: Screens) -> None:
    anna = _anna(n=4)
    page = screens.open(anna)
    page.context.set_offline(True)
    press(page, "1")
    [waiting] = [lease for lease in Lease.objects.all() if page.evaluate(_WAITING, str(lease.pk))]
    bert = make.person("bert", waiting.comparison.campaign)
    late = timezone.now() + timedelta(hours=1)
    for lease in leases.claim(waiting.comparison.campaign, bert, late, n=4):
        if lease.comparison_id == waiting.comparison_id:
            make.judge(lease, at=late)
    Lease.objects.filter(pk=waiting.pk).update(expires_at=timezone.now())
    page.context.set_offline(False)
    expect(page.locator("#status")).to_contain_text("Kept, but not counted")
    mine = Judgment.objects.get(annotator=anna)
    assert mine.is_surplus
    waiting.comparison.refresh_from_db()
    assert waiting.comparison.n_judgments == 1


_WAITING = "id => Object.values(localStorage).some(text => text.includes(id))"


def test_it_keeps_judgments_over_a_lost_login(screens: Screens) -> None:
    anna = _anna()
    page = screens.open(anna)
    Session.objects.all().delete()
    page.keyboard.press("1")
    link = page.locator("#note a")
    expect(link).to_have_attribute("href", "/login/?next=%2Fcampaigns%2Fcats%2Flabel%2F")
    on.log_in(page.context, screens.address, anna)
    page.reload()
    assert len(settle(page, 1)) == 1


def test_it_moves_on_when_a_pair_is_somebody_elses_by_now(screens: Screens) -> None:
    page = screens.window(_anna())
    page.clock.install()
    page.goto("/campaigns/cats/label/")
    expect(page.locator("#pair")).to_be_visible()
    before = on.shown(page)
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    bert = make.person("bert", on.Campaign.objects.get())
    leases.claim(on.Campaign.objects.get(), bert, timezone.now(), n=4)
    page.clock.run_for(45_000)
    expect(page.locator("#status")).to_contain_text("somebody else has it now")
    expect(page.locator("#pair")).to_be_visible()
    assert on.shown(page) != before


def test_it_takes_back_a_judgment_that_arrived_though_its_answer_was_lost(screens: Screens) -> None:
    page = screens.window(_anna())
    lost: list[int] = []

    def lose_the_answer(route: Route) -> None:
        lost.append(route.fetch().status)
        route.abort("internetdisconnected")

    page.route("**/api/judgments/", lose_the_answer, times=1)
    screens.show(page)
    press(page, "5")
    expect(page.locator("#note")).to_contain_text("No connection")
    assert lost == [201]
    page.context.set_offline(True)
    page.keyboard.press("z")
    wait_until_ready(page)
    press(page, "2")  # on second thoughts
    page.context.set_offline(False)
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#status")).to_contain_text("everything is saved")
    in_force = Judgment.objects.filter(superseded_by=None).exclude(verdict="retracted")
    assert [(row.strength, row.ranks[str(row.order[0])]) for row in in_force] == [(2, 1)]
    assert Judgment.objects.count() == 3
