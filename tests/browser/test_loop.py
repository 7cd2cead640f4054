"""The main job, as a person does it: label by keyboard, train from the admin, publish, chat with the new version."""

import json
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from benchmarks.site import PASSWORD, Site

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

N_JUDGMENTS = 12
GRADES = "12673526"  # any mix of left and right; ties would not train
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}


def shoot(page: Page, folder: Path, name: str) -> None:
    """Desktop, dark and phone; each after the colours have settled."""
    page.wait_for_timeout(500)
    page.screenshot(path=folder / f"{name}.png")
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(500)
    page.screenshot(path=folder / f"{name}-dark.png")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    page.wait_for_timeout(500)
    page.screenshot(path=folder / f"{name}-phone.png")
    page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]


def log_in(page: Page) -> None:
    page.goto("/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=2).first).to_be_visible()


def label(page: Page, n: int, folder: Path) -> None:
    page.get_by_role("link", name="Start labeling").click()
    pair = page.locator("#pair")
    for i in range(n):
        expect(pair).to_be_visible(timeout=90_000)  # faster than the model writes
        expect(page.locator("#choices button[data-key='1']")).to_be_enabled()
        if i == 2:
            shoot(page, folder, "label")
        before = page.locator("#pair").inner_text()
        page.keyboard.press(GRADES[i % len(GRADES)])
        page.wait_for_function("before => document.querySelector('#pair').innerText !== before", arg=before)
    expect(page.locator("#undo")).to_be_enabled()


def n_in_force(site: Site) -> int:
    return int(site.rows("SELECT count(*) FROM labeling_judgment WHERE verdict = 'preference'")[0][0])


def train_and_publish(page: Page, site: Site, shots: Path) -> str:
    """A run from the admin, watched and published; the name of the version that it made."""
    page.goto("/admin/")
    shoot(page, shots, "overview")
    page.get_by_role("link", name="Train", exact=True).first.click()
    page.get_by_label("Epochs").fill("1")
    shoot(page, shots, "start")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("[data-board]")).to_be_visible(timeout=180_000)  # the first step is on the page
    expect(page.locator(".al-page")).not_to_have_attribute("data-status", "failed")
    shoot(page, shots, "run")
    expect(page.get_by_role("button", name="Publish")).to_be_visible(timeout=240_000)
    page.get_by_label(re.compile("Give a reason")).fill(
        "Twelve judgments cannot pass the gate; this is the test of the loop."
    )
    page.get_by_role("button", name="Publish").click()
    expect(page.get_by_text("in chat", exact=True).first).to_be_visible(timeout=60_000)
    shoot(page, shots, "run-done")
    [(version,)] = site.rows(
        "SELECT a.name FROM serving_deployment d JOIN serving_adapter a ON a.id = d.adapter_id WHERE d.alias = 'current'"
    )
    assert version.startswith("adapter-")
    # What the judgments taught is what the engine does: the adapter's effects, as trained and as served.
    [(measured,)] = site.rows("SELECT self_test FROM serving_adapter WHERE name = ?", version)
    assert 0.8 < json.loads(measured)["slope"] < 1.2
    return str(version)


def ask(page: Page, site: Site, shots: Path, version: str) -> None:
    """One question in the chat, answered by `version`."""
    page.goto("/chat/")
    page.get_by_label("Your message").fill("Give me three short tips for a good night of sleep.")
    page.keyboard.press("Enter")
    answer = page.locator("#thread article").last
    expect(answer).to_have_attribute("data-status", "complete", timeout=90_000)
    expect(answer.get_by_title(version)).to_be_visible()
    answer.get_by_role("button", name="Details").click()
    expect(answer.get_by_text("tokens/s")).to_be_visible()
    shoot(page, shots, "chat")
    [(status, name, content)] = site.rows(
        "SELECT m.status, a.name, m.content FROM serving_message m JOIN serving_adapter a ON a.id = m.adapter_id "
        "WHERE m.role = 'assistant'"
    )
    assert (status, name) == ("complete", version)
    assert len(content.split()) > 5


def test_it_closes_the_loop_in_a_browser(page: Page, site: Site, shots: Path) -> None:
    page.goto("/")
    shoot(page, shots, "login")
    log_in(page)
    start = page.get_by_role("link", name="Start labeling")
    expect(start).to_be_visible(timeout=60_000)  # the first pair, within a minute of the address being printed
    shoot(page, shots, "home")

    label(page, N_JUDGMENTS, shots)
    deadline = time.monotonic() + 10
    while n_in_force(site) < N_JUDGMENTS and time.monotonic() < deadline:
        time.sleep(0.1)
    assert n_in_force(site) == N_JUDGMENTS

    version = train_and_publish(page, site, shots)
    ask(page, site, shots, version)
