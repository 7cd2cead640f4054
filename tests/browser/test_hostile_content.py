"""Nothing that a model, an import or a person writes runs, loads, covers or clobbers anything, on any page that shows it.

Each page is looked at twice: with the content security policy, where not even an attempt may be refused, and with the
policy ignored, where the sanitiser stands alone.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from playwright.sync_api import Browser

from serving.rendering import to_html
from tests.browser import hostile
from tests.browser.attacks import ATTACKS, HOST, HUGE
from tests.browser.hostile import LAST, window
from tests.serving import folders
from tests.serving.test_rendering import Inspector

with_and_without_policy = pytest.mark.parametrize("has_policy", [True, False], ids=["policy", "sanitiser alone"])
FRAME = [".brand", ".account"]
LABEL = [
    *FRAME,
    "#prompt > summary",
    "#bar [data-verdict=preference]",
    "#skip",
    "[data-open=guidelines]",
]
CHAT = [*FRAME, "#content", "#send", "#chat-list > a", "#conversations a"]
PAINTS_OUTSIDE = """() => [...document.querySelectorAll(".prose")]
  .filter((element) => getComputedStyle(element).overflowY === "visible").map((element) => element.outerHTML.slice(0, 80))"""
MAX_RATIO = 40  # characters of HTML per character of text


@pytest.fixture
def root(transactional_db: None, settings: Any, tmp_path: Path) -> User:
    """An administrator of a site whose base model is known."""
    (tmp_path / "alignapp-model.json").write_text(json.dumps({"sha256": folders.BASE_SHA256}))
    settings.MODEL = str(tmp_path)
    return User.objects.create_superuser("root", password="a long enough password")


@pytest.mark.parametrize("name", ATTACKS)
def test_it_leaves_nothing_active_in_any_surrounding(name: str) -> None:
    attack = ATTACKS[name]
    for text in (
        attack,
        f"Hello *there* {attack}\n\n{attack} and more",
        f"> - {attack}",
        f"# {attack}",
        f"`` {attack}",
    ):
        assert Inspector(to_html(text)).problems == []


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HUGE)
def test_it_shows_a_huge_text_whole_and_not_much_larger(name: str) -> None:
    html = to_html(HUGE[name])
    assert len(html) < MAX_RATIO * len(HUGE[name])
    assert Inspector(html).problems == []


@pytest.mark.browser
@with_and_without_policy
def test_it_keeps_the_comparison_screen_safe(browser: Browser, live_server, root: User, has_policy: bool) -> None:
    campaign = hostile.campaign()
    hostile.comparison(campaign)
    path = reverse("label", args=[campaign.slug])
    with window(browser, live_server.url, root, has_policy=has_policy) as seen:
        page = seen.open(path)
        page.wait_for_function(
            "(words) => document.querySelector('#pair').textContent.split(words).length > 3", arg=LAST
        )
        page.wait_for_timeout(300)
        assert page.locator("#pair .prose").count() >= len(ATTACKS) + 3
        assert seen.findings(path, LABEL) == []
        for pane in page.locator("#pair .label-pane:not([hidden])").all():
            assert LAST in pane.inner_text()  # an attack that ends our elements would have left it outside
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(PAINTS_OUTSIDE) == []
        page.locator("[data-open=guidelines]").click()
        page.wait_for_timeout(150)
        assert LAST in page.locator("#guidelines .prose").inner_text()
        assert seen.findings(path, ["#guidelines [data-close]"]) == []


@pytest.mark.browser
@with_and_without_policy
def test_it_keeps_the_chat_page_safe(browser: Browser, live_server, root: User, has_policy: bool) -> None:
    path = reverse("conversation", args=[hostile.conversation(root).pk])
    with window(browser, live_server.url, root, has_policy=has_policy) as seen:
        page = seen.open(path, LAST)
        assert page.locator("#thread .turn").count() == len(ATTACKS) + 1
        assert seen.findings(path, CHAT) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator("#thread [data-copy]").last.click()
        page.wait_for_timeout(150)
        assert seen.findings(path, CHAT) == []


@pytest.mark.browser
@with_and_without_policy
def test_it_keeps_every_page_of_a_campaign_safe(
    browser: Browser, live_server, client: Client, root: User, has_policy: bool
) -> None:
    campaign = hostile.everything(root)["campaign"]
    client.force_login(root)
    paths = [path for name in _campaign_pages() if _is_page(client, path := reverse(name, args=[campaign.slug]))]
    assert len(paths) > 8
    with window(browser, live_server.url, root, has_policy=has_policy) as seen:
        seen.open(reverse("home"), LAST)
        assert seen.findings(reverse("home"), FRAME) == []
        for path in paths:
            seen.open(path)
            assert seen.findings(path, FRAME) == [], path


def _is_page(client: Client, path: str) -> bool:
    """Neither a file nor an address for forms only."""
    answer = client.get(path)
    return answer.status_code == 200 and "Content-Disposition" not in answer.headers


def _campaign_pages() -> list[str]:
    """Names of the pages that need a campaign's slug alone; those of the API answer with JSON, which no page runs."""
    found, resolvers = [], [("", get_resolver())]
    while resolvers:
        prefix, resolver = resolvers.pop()
        for entry in resolver.url_patterns:
            path = prefix + str(entry.pattern)
            if isinstance(entry, URLResolver):
                resolvers.append((path, entry))
            elif isinstance(entry, URLPattern) and path.startswith("campaigns/") and path.count("<") == 1:
                found.append(str(entry.name))
    return found


@pytest.mark.browser
@with_and_without_policy
def test_it_keeps_the_admin_safe(browser: Browser, live_server, root: User, has_policy: bool) -> None:
    rows = hostile.everything(root)
    paths = [reverse("admin:index")]
    for model, row in rows.items():
        app = row._meta.app_label
        paths.append(reverse(f"admin:{app}_{model}_changelist"))
        if model != "invitation":  # only deleted, never changed
            paths.append(reverse(f"admin:{app}_{model}_change", args=[row.pk]))
    with window(browser, live_server.url, root, has_policy=has_policy) as seen:
        for path in paths:
            seen.open(path)
            assert seen.findings(path, []) == [], path


@pytest.mark.browser
def test_it_would_notice(browser: Browser, live_server, root: User) -> None:
    """The same texts, not sanitised and without a policy, do all that the window looks for."""
    with window(browser, live_server.url, None, has_policy=False) as seen:
        page = seen.open(reverse("login"))
        page.evaluate("(html) => document.write(html)", "\n".join(f"<div class=prose>{a}</div>" for a in _raw()))
        page.wait_for_timeout(500)
        found = " ".join(seen.findings("/login/", [".brand"]))
    for sign in ("code ran", f"asked for https://{HOST}/", "two #", "clobbered", "out of reach", "<iframe", "p style"):
        assert sign in found, found


def _raw() -> list[str]:
    """Attacks that need no Markdown, and leave those after them alone."""
    names = (
        "script", "onerror", "svg onload", "iframe srcdoc", "raw image", "overlay", "background", "id of ours",
        "our configuration", "name of a method", "form with fields", "nested names",
    )  # fmt: skip
    return [ATTACKS[name] for name in (*names, "id of ours")]
