"""Managers' and reviewers' pages in real Chromium: axe finds nothing, nothing overflows, and disputes are decided by keys."""

import itertools
import os
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect

from labeling import adjudication, campaigns, choices, gold, judgments
from labeling.models import Campaign, Comparison, Judgment, Lease, Membership
from serving.models import Adapter
from tests.labeling import make

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
HOSTILE = '"><img src=x onerror="document.title=1">'
NAMES = ("anna", HOSTILE, "نورة")
N_PAIRS = 24


@pytest.fixture
def world(live_server) -> Campaign:
    """A campaign with everything in it: versions, disputes, a decision, gold, a paused member, an open link."""
    campaign = make.campaign("cats", overlap=3, rationale="optional", gold_share=0.1, reason_tags=["clearer"])
    mia = make.person("mia", campaign, role="manager")
    versions = [Adapter.objects.create(name=f"adapter-{n}", sha256=str(n) * 64, base_sha256="b" * 64) for n in (1, 2)]
    people = [make.person(name, campaign) for name in NAMES]
    for number in range(N_PAIRS):
        comparison = make.comparison(campaign, second=f"It depends!\n\n- {HOSTILE}\n- `x = {number}`")
        for response, version in zip(comparison.responses.order_by("pk"), versions, strict=True):
            response.adapter = version
            response.save()
        for person, chance in zip(people, itertools.cycle((number % 2, number % 3 == 0, 1)), strict=False):
            _vote(comparison, person, int(chance))
    known = campaign.comparisons.latest("pk")
    gold.set_answer(known, adjudication.best_of(known, known.items.earliest("pk").response_id))
    campaigns.publish_guidelines(campaign, f"# Be kind\n\n{HOSTILE}", mia, timezone.now())
    campaigns.pause_member(Membership.objects.get(user=people[0]), timezone.now())
    return campaign


def _vote(comparison: Comparison, person: User, winner: int) -> None:
    ids = [item.response_id for item in comparison.items.all()]
    order = ids if (comparison.pk + person.pk) % 2 else ids[::-1]
    now = timezone.now()
    lease = Lease.objects.create(
        comparison=comparison, annotator=person, order=order, created_at=now, expires_at=now + timedelta(hours=1)
    )
    choice = choices.Choice("preference", order, chosen=ids[winner], strength=2, reason="It answers.", shown_ms=9_000)
    judgments.record(lease, person, uuid.uuid4(), choice, now)


@pytest.fixture(params=["desktop", "phone", "dark", "rtl"])
def page(request, browser: Browser, live_server) -> Iterator[Page]:
    """A window in which mia is logged in; a script error or anything that the policy refuses fails the test."""
    is_phone = request.param == "phone"
    context = browser.new_context(
        viewport={"width": 390 if is_phone else 1280, "height": 800},
        base_url=live_server.url,
        color_scheme="dark" if request.param == "dark" else "light",
    )
    if request.param == "rtl":
        context.add_init_script("addEventListener('DOMContentLoaded', () => document.documentElement.dir = 'rtl')")
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert not errors, errors


def _log_in(page: Page, name: str, url: str) -> None:
    client = Client()
    client.force_login(User.objects.get(username=name))
    page.context.add_cookies([{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": url}])


def _addresses(campaign: Campaign) -> Iterator[tuple[str, str]]:
    dispute = adjudication.listed(campaign, "disputed").earliest("pk")
    rows = {"adjudicate": [dispute.pk], "campaign_annotator": [User.objects.get(username=HOSTILE).pk]}
    for name in (
        "campaign_dashboard", "campaign_annotators", "campaign_annotator", "campaign_disputes", "adjudicate",
        "campaign_gold", "campaign_leaderboard", "campaign_guidelines", "campaign_settings", "campaign_members",
    ):  # fmt: skip
        yield name, reverse(name, args=[campaign.slug, *rows.get(name, [])])
    yield "guidelines_version", reverse("guidelines_version", args=[campaign.slug, 1])
    yield "my_statistics", reverse("my_statistics")


def test_it_has_pages_that_everybody_can_use(world, page, live_server, shots: Path, request) -> None:
    _log_in(page, "mia", live_server.url)
    for name, address in _addresses(world):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the screen"
        assert page.title() != "1", name
        found = Axe().run(page)
        assert found.violations_count == 0, f"{name}: {found.generate_report()}"
        if os.environ.get("SCREENSHOTS"):
            page.screenshot(path=shots / f"{name}-{request.node.callspec.id}.png", full_page=True)


@pytest.mark.parametrize("page", ["desktop"], indirect=True)
def test_it_decides_disputes_by_keys_alone(world, page, live_server) -> None:
    _log_in(page, "mia", live_server.url)
    first, second = adjudication.listed(world, "disputed")[:2]
    page.goto(reverse("adjudicate", args=["cats", first.pk]))
    page.keyboard.press("Control+1")
    page.locator("#reason").fill("1 is right")  # a digit in a sentence decides nothing
    assert not adjudication.decided().exists()
    page.locator("#reason").blur()
    page.keyboard.press("7")
    page.wait_for_url(f"**{reverse('adjudicate', args=['cats', second.pk])}")
    decision = Judgment.objects.get(purpose="adjudication")
    assert (decision.comparison, decision.strength, decision.reason) == (first, 3, "1 is right")
    assert decision.ranks[str(decision.order[1])] == 1


@pytest.mark.parametrize("page", ["desktop"], indirect=True)
def test_it_adds_a_criterion_without_leaving_the_page(world, page, live_server) -> None:
    _log_in(page, "mia", live_server.url)
    page.goto(reverse("campaign_settings", args=["cats"]))
    page.get_by_label("Question").first.fill("Is it true?")
    page.get_by_role("button", name="Add a criterion").click()
    page.keyboard.type("Is it kind?")
    page.get_by_role("button", name="Save the settings").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    world.refresh_from_db()
    assert [criterion["key"] for criterion in world.criteria] == ["is_it_true", "is_it_kind"]


@pytest.mark.parametrize("page", ["desktop"], indirect=True)
def test_it_keeps_the_figures_up_to_date_unless_somebody_is_at_them(world, page, live_server) -> None:
    _log_in(page, "mia", live_server.url)
    page.goto(reverse("campaign_dashboard", args=["cats"]))
    shown = page.locator(".tiles dd").first
    before = shown.inner_text()
    for comparison in Comparison.objects.filter(is_disputed=False)[:1]:
        Comparison.objects.filter(pk=comparison.pk).update(n_judgments=comparison.n_judgments + 1)
    page.locator("#figures a").first.focus()
    page.evaluate("htmx.trigger('#figures', 'every')")
    refresh = "htmx.ajax('GET', location.href, { source: '#figures', target: '#figures', swap: 'outerHTML' })"
    page.evaluate(refresh)
    assert shown.inner_text() == before
    page.locator("#figures a").first.blur()
    page.evaluate(refresh)
    expect(shown).not_to_have_text(before)
