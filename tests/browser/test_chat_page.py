"""The chat page in Chromium, against a model server that says what the test wants: every control once."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from benchmarks.site import REPOSITORY, free_port
from tests.serving import folders
from tests.serving.scripted import TOKEN, ScriptedEngine, running

pytestmark = [pytest.mark.browser]

PASSWORD = "a long enough password"
OTHER = "adapter-900-abcdef"
PREPARE = f"""
from django.contrib.auth.models import User
from serving import adapters
from serving.models import Adapter
User.objects.create_user("ada", password={PASSWORD!r})
sha256 = adapters.base().sha256
Adapter.objects.create(name={OTHER!r}, status="ready", sha256="1" * 64, base_sha256=sha256)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedEngine]:
    scripted = ScriptedEngine()
    with running(scripted):
        yield scripted


@pytest.fixture
def engine(server: ScriptedEngine) -> ScriptedEngine:
    """The one server, as new."""
    url = server.url
    server.__dict__.update(ScriptedEngine().__dict__)
    server.url = url
    server.pieces = ["Here is **bold**", " and `code`", ":\n\n```python\nx = 1\n```\n"]
    server.scripts[OTHER] = ["Another answer, ", "word by word."]
    return server


@pytest.fixture(scope="module")
def address(server: ScriptedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web process alone, with one user and two versions."""
    tmp_path = tmp_path_factory.mktemp("web")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "alignapp-model.json").write_text(json.dumps({"sha256": folders.BASE_SHA256}))
    port = free_port()
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DJANGO_SETTINGS_MODULE", "DATABASE_URL")
    }
    environment |= {
        "VAR_DIR": str(tmp_path / "var"), "MODEL": str(tmp_path / "model"), "ENGINE_URLS": server.url,
        "ENGINE_TOKEN": TOKEN, "PORT": str(port),
    }  # fmt: skip
    for command in (["migrate", "-v0"], ["shell", "-v0", "-c", PREPARE]):
        subprocess.run([sys.executable, "manage.py", *command], cwd=REPOSITORY, env=environment, check=True)
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "alignapp.asgi:application",
        "--port",
        str(port),
        "--log-level",
        "warning",
    ]
    web = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    try:
        _wait(f"http://127.0.0.1:{port}/healthz", web)
        yield f"http://127.0.0.1:{port}"
    finally:
        web.terminate()
        web.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    pytest.fail("the web process ended")


@pytest.fixture
def page(browser: Browser, address: str, engine: ScriptedEngine) -> Iterator[Page]:
    """Logged in, on the empty page; a script error or anything that the policy refuses fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, base_url=address, locale="en")
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto("/login/?next=/chat/")
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/chat/")
    yield page
    context.close()
    assert not errors, errors


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def test_it_asks_stops_regenerates_and_walks(page: Page, engine: ScriptedEngine) -> None:
    engine.hold.clear()
    ask(page, "First question")
    article = page.locator("#thread article")
    expect(article.locator("strong")).to_have_text("bold")  # rendered while it is written
    expect(page).to_have_url(re.compile(r"/chat/[0-9a-f-]{36}/$"))
    expect(page.get_by_role("link", name="First question")).to_have_attribute("aria-current", "page")
    page.get_by_role("button", name="Stop").click()
    expect(article).to_have_attribute("data-status", "stopped")
    expect(article).to_contain_text("Stopped")
    assert engine.left.wait(10)  # the model server was told

    engine.hold.set()
    page.get_by_role("button", name="Regenerate").click()
    expect(article).to_have_attribute("data-status", "complete")
    expect(article.locator("pre .n")).to_have_text("x")  # coloured code
    expect(article).to_contain_text("2/2")
    page.get_by_role("link", name="Previous answer").click()
    expect(article).to_contain_text("1/2")
    page.wait_for_load_state()
    page.get_by_label("Good answer").click()
    expect(page.get_by_label("Good answer")).to_have_attribute("aria-pressed", "true")
    page.reload()
    expect(page.get_by_label("Good answer")).to_have_attribute("aria-pressed", "true")


def test_it_keeps_drafts_names_and_nothing_that_is_deleted(page: Page) -> None:
    page.get_by_label("Your message").press_sequentially("Half a th")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("ought")
    page.reload()
    expect(page.get_by_label("Your message")).to_have_value("Half a th\nought")
    page.keyboard.press("Control+A")
    ask(page, "Now whole")
    expect(page.locator("article[data-status=complete]")).to_be_visible()
    expect(page.get_by_label("Your message")).to_have_value("")

    page.get_by_role("button", name="Rename “Now whole”").click()
    page.get_by_label("Name of the conversation").fill("Renamed")
    page.keyboard.press("Enter")
    expect(page.locator("#chat-title")).to_have_text("Renamed")
    page.reload()
    page.get_by_role("button", name="Delete “Renamed”").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("heading", name="What would you like to ask?")).to_be_visible()
    expect(page.get_by_role("link", name="Renamed")).to_have_count(0)


def test_it_compares_two_versions_blindly_and_saves_the_choice(page: Page, engine: ScriptedEngine) -> None:
    engine.adapters[OTHER] = "/resident"
    page.get_by_role("button", name="Compare two versions").click()
    ask(page, "Which is better?")
    better = page.get_by_role("button", name="2 is better")
    expect(better).to_be_visible()
    assert OTHER not in page.locator("#thread").inner_html()
    better.focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Yes, learn from it").click()
    expect(page.locator("#thread").get_by_text("your choice")).to_be_visible()
    expect(page.locator("#thread").get_by_text(OTHER)).to_be_visible()
    expect(page.locator("#thread").get_by_text("Saved as a judgment")).to_be_visible()
    page.reload()
    expect(page.locator("#thread").get_by_text("your choice")).to_be_visible()


def test_it_learns_from_thumbs_once_the_person_agrees(page: Page) -> None:
    switch = page.get_by_role("switch", name="Learn from my thumbs and choices")
    expect(switch).to_be_visible()
    if switch.get_attribute("aria-checked") == "true":  # agreed to in an earlier test
        switch.click()
        expect(switch).to_have_attribute("aria-checked", "false")
    ask(page, f"Is this {time.monotonic()} good?")
    good, bad = page.get_by_label("Good answer"), page.get_by_label("Bad answer")
    good.click()
    expect(page.get_by_role("dialog")).to_contain_text("you can withdraw this at any time")
    page.keyboard.press("Escape")  # is a no
    expect(good).to_have_attribute("aria-pressed", "true")
    assert _judged(page) == []

    switch.click()
    expect(switch).to_have_attribute("aria-checked", "true")
    with page.expect_response("**/api/chat/ratings/"):
        bad.click()
    assert _judged(page) == ["bad"]
    with page.expect_response("**/api/chat/ratings/"):
        good.click()
    assert _judged(page) == ["good"]
    with page.expect_response("**/api/chat/ratings/"):
        good.click()  # pressed again: taken back
    assert _judged(page) == []
    expect(good).to_have_attribute("aria-pressed", "false")

    with page.expect_response("**/api/chat/ratings/"):
        good.click()
    switch.click()
    expect(switch).to_have_attribute("aria-checked", "false")
    expect(page.get_by_text("Taken back: 1")).to_be_visible()
    assert _judged(page) == []


def _judged(page: Page) -> list[str]:
    """Verdicts in force on single answers, newest first."""
    listed = page.request.get("/api/judgments/?campaign=chat").json()["results"]
    return [judgment["verdict"] for judgment in listed if len(judgment["order"]) == 1]


def test_it_says_that_the_model_server_is_starting(page: Page, engine: ScriptedEngine) -> None:
    engine.refusal = (503, "loading")
    ask(page, "Anybody there?")
    expect(page.get_by_role("alert")).to_contain_text("The model server is starting")
    engine.refusal = None
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator("article[data-status=complete]")).to_be_visible()


def test_it_fits_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    ask(page, "A" * 200)
    expect(page.locator("article[data-status=complete]")).to_be_visible()
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("link", name="New chat")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
