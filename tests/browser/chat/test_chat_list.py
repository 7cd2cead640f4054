"""Finding conversations and taking them along."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.chat.talking import answered

pytestmark = [pytest.mark.browser]


def test_it_finds_conversations_by_what_was_said(page: Page) -> None:
    answered(page, "Über Größe und Walnüsse")
    answered(page, "Etwas ganz anderes: Quitten", 2)
    page.goto("/chat/")
    answered(page, "Nothing of that")
    page.keyboard.press("Control+k")
    expect(page.get_by_label("Search your conversations")).to_be_focused()
    page.keyboard.type("QUITTEN größe")
    rows = page.locator("#conversations li")
    expect(rows).to_have_count(1)
    expect(rows.locator("mark")).to_have_text(["Größe", "Quitten"])
    expect(page.locator("#search-status")).to_have_text("1 conversation found.")
    page.keyboard.press("Enter")
    expect(rows.get_by_role("link")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".turn:target [data-question]")).to_have_text("Etwas ganz anderes: Quitten")
    page.keyboard.press("Control+k")
    page.keyboard.type("zzzz")
    expect(page.get_by_text("Nothing found.")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#conversations h3").first).to_have_text("Today")


def test_it_shows_more_than_one_page_of_conversations(page: Page) -> None:
    token = page.locator('meta[name="csrf-token"]').get_attribute("content")
    for i in range(51):
        page.request.post("/chat/start/", data={"content": f"Conversation {i}"}, headers={"X-CSRFToken": token or ""})
    page.reload()
    rows = page.locator("#conversations li")
    expect(rows).to_have_count(50)
    held: list[Route] = []
    consent = page.locator("#chat").get_attribute("data-consent-url")
    page.route(f"**{consent}", lambda route: held.append(route))
    with page.expect_request(f"**{consent}"):
        rows.nth(40).get_by_role("link").click()
    expect(rows.nth(40).get_by_role("link")).to_have_attribute("aria-current", "page")
    expect(rows.nth(40)).to_be_in_viewport(ratio=0.9)  # the list was scrolled to it, and nothing else went away
    expect(page.get_by_role("link", name="New chat")).to_be_in_viewport()
    held[0].continue_()
    page.unroute(f"**{consent}")
    expect(page.get_by_role("switch", name="Learn from my thumbs and choices")).to_be_in_viewport()
    expect(rows.nth(40)).to_be_in_viewport(ratio=0.9)  # nor did it when the last part of the page came
    page.get_by_role("button", name="Show more").click()
    expect(rows).not_to_have_count(50)
    days = page.locator("#conversations h3").all_inner_texts()
    assert len(days) == len(set(days))
    addresses = rows.get_by_role("link").evaluate_all("(links) => links.map((link) => link.href)")
    assert len(addresses) == len(set(addresses))


def test_it_takes_a_conversation_along(page: Page, tmp_path: Path) -> None:
    answered(page, "Take me along")
    page.get_by_role("button", name="Export the conversation").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="JSON").click()
    assert download.value.suggested_filename.startswith("chat-take-me-along-")
    download.value.save_as(tmp_path / "talk.json")
    said = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["role"] for message in said] == ["user", "assistant"]


def test_it_works_on_a_narrow_phone(page: Page) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    answered(page, "A" * 200)
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("link", name="New chat")).to_be_visible()
    page.mouse.click(160, 620)
    expect(page.get_by_role("link", name="New chat")).to_be_hidden()
    for name in ("Settings", "Before and after"):
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        page.keyboard.press("Escape")
    page.get_by_role("button", name="Who answers").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
