"""A web process of its own for the chat's tests, and a model server that says what a test wants."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

from benchmarks.site import REPOSITORY, free_port
from tests.serving import folders
from tests.serving.scripted import TOKEN, ScriptedEngine, running

PASSWORD = "a long enough password"
OTHER = "adapter-900-abcdef"
BASE = f"base-{folders.BASE_SHA256[:6]}"
PREPARE = f"""
from django.contrib.auth.models import User
from serving import adapters
from serving.models import Adapter, Deployment
User.objects.create_user("ada", password={PASSWORD!r})
sha256 = adapters.base().sha256
ready = {{"status": "ready", "base_sha256": sha256}}
other = Adapter.objects.create(
    name={OTHER!r}, sha256="1" * 64, notes="Learned from 212 judgments.\\nPassed the gate.", **ready
)
adapters.deployment()
Deployment.objects.update(previous=other)
"""
ALONE = f"""
from serving.models import Adapter, Deployment
Deployment.objects.update(previous=None)
Adapter.objects.filter(name={OTHER!r}).update(status="rejected")
"""
PUBLISH = """
from serving.models import Adapter, Deployment
Adapter.objects.filter(name={0!r}).update(status="ready")
Deployment.objects.update(previous=Deployment.objects.get().adapter, adapter=Adapter.objects.get(name={0!r}))
"""


@pytest.fixture(scope="session")
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
    server.adapters[OTHER] = "/resident"
    server.scripts[OTHER] = ["Another answer, ", "word by word."]
    return server


@pytest.fixture(scope="session")
def environment(server: ScriptedEngine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a site with one user and two versions."""
    tmp_path = tmp_path_factory.mktemp("web")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "alignapp-model.json").write_text(json.dumps({"sha256": folders.BASE_SHA256}))
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DJANGO_SETTINGS_MODULE", "DATABASE_URL")
    }
    environment |= {
        "VAR_DIR": str(tmp_path / "var"), "MODEL": str(tmp_path / "model"), "ENGINE_URLS": server.url,
        "ENGINE_TOKEN": TOKEN, "PORT": str(free_port()),
    }  # fmt: skip
    manage(environment, "migrate", "-v0")
    manage(environment, "shell", "-v0", "-c", PREPARE)
    return environment


def manage(environment: dict[str, str], *command: str) -> None:
    subprocess.run([sys.executable, "manage.py", *command], cwd=REPOSITORY, env=environment, check=True)


@pytest.fixture
def shell(environment: dict[str, str]) -> Callable[[str], None]:
    """Runs a program on the site's database."""
    return lambda program: manage(environment, "shell", "-v0", "-c", program)


@pytest.fixture
def publish(shell: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """The base is all there is, until the test publishes a version by its name."""
    shell(ALONE)
    yield lambda name: shell(PUBLISH.format(name))
    shell(PUBLISH.format(OTHER) + PUBLISH.format(BASE))  # as it was prepared


@pytest.fixture(scope="session")
def address(environment: dict[str, str]) -> Iterator[str]:
    """A web process alone."""
    port = environment["PORT"]
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "alignapp.asgi:application",
        "--port",
        port,
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


def is_error(message: ConsoleMessage) -> bool:
    """What a test broke off itself (route.abort) is none, nor that it is too late for something (409)."""
    return message.type == "error" and not any(known in message.text for known in ("net::ERR_FAILED", "409 (Conflict)"))


@pytest.fixture
def page(browser: Browser, address: str, engine: ScriptedEngine) -> Iterator[Page]:
    """Logged in, on the empty page; a script error or anything that the policy refuses fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, base_url=address, locale="en")
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
    page.goto("/login/?next=/chat/")
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/chat/")
    yield page
    context.close()
    assert not errors, errors
