"""Fixtures that every part shares, and the marks that follow from where a test lies and what it asks for."""

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from django.conf import settings
from django.test import TransactionTestCase
from playwright.sync_api import Browser, sync_playwright

from tests import tables

# How long an example takes says something about the machine, which others use too, and nothing about the code.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

REPOSITORY = Path(__file__).resolve().parent.parent
ML_FOLDERS = ("tests/serving/engine/", "tests/training/ml/")
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
DATABASE_FIXTURES = {"db", "transactional_db", "live_server", "admin_user", "admin_client"}
# Who may look and which headers an answer has does not depend on the database: asked of each address, on SQLite only.
ON_ANY_BACKEND = ("tests/alignapp/test_headers.py", "tests/alignapp/test_urls.py")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Add the marks `backends`, `ml` and `slow`, leave browser tests out on request, and put the heavy tests last."""
    for item in items:
        _add_marks(item)
    if os.environ.get("SKIP_BROWSER"):
        if os.environ.get("CI"):
            raise pytest.UsageError("SKIP_BROWSER is set, but CI runs every test.")
        left_out = [item for item in items if item.get_closest_marker("browser")]
        items[:] = [item for item in items if not item.get_closest_marker("browser")]
        config.hook.pytest_deselected(items=left_out)
    yield
    items.sort(key=_heaviness)  # after pytest-django's own order, which it keeps within each kind


def pytest_collection_finish() -> None:
    """What collecting has loaded stays to the end: to look through it for garbage again and again costs a tenth."""
    gc.collect()
    gc.freeze()


def _heaviness(item: pytest.Item) -> int:
    """2: needs Chromium, whose event loop stays in this thread from then on, where asynchronous tests run theirs;
    1: needs torch; 0: neither.
    """
    if "browser" in getattr(item, "fixturenames", ()):
        return 2
    return 1 if item.get_closest_marker("ml") else 0


def _add_marks(item: pytest.Item) -> None:
    folder = item.path.relative_to(REPOSITORY).as_posix()
    fixtures = set(getattr(item, "fixturenames", ()))
    # What a page does in the browser does not depend on the database behind it, and takes the longest.
    is_on_any = "browser" in fixtures or folder in ON_ANY_BACKEND
    if (item.get_closest_marker("django_db") or DATABASE_FIXTURES & fixtures) and not is_on_any:
        item.add_marker("backends")
    if folder.startswith(ML_FOLDERS) or {"model_dir", "tiny_model_dir"} & fixtures:
        item.add_marker("ml")
    if item.get_closest_marker("ml") or item.get_closest_marker("browser") or _commits(item, fixtures):
        item.add_marker("slow")


def _commits(item: pytest.Item, fixtures: set[str]) -> bool:
    """For the threads, servers or processes beside it that look at the same rows."""
    mark = item.get_closest_marker("django_db")
    return bool(mark and mark.kwargs.get("transaction")) or bool({"transactional_db", "live_server"} & fixtures)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """pytest-django's, but for what empties the tables after a test that commits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", tables.empty)
        yield


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The real model, SmolLM2-135M-Instruct, as `make model` converts it (or the folder that MODEL names)."""
    folder = Path(settings.MODEL)
    if not (folder / "alignapp-model.json").exists():
        pytest.fail(f"There is no converted model in {folder}: run `make model` first.", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def tiny_model_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama of random weights (seed 0) with the real model's tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    # In a process of its own: a test process that asks for the folder only does not load torch.
    subprocess.run([sys.executable, "-m", "tests.models", model_dir, folder], cwd=REPOSITORY, check=True)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Real Chromium (Debian's), started once. A test opens its own contexts in it, and closes them."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("No Chromium: install it (Debian: apt-get install chromium), or set CHROMIUM or SKIP_BROWSER=1.")
    # Playwright's loop runs in this thread, beside the tests; Django cannot know that they take turns.
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)


@pytest.fixture(autouse=True)
def _no_messages_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test starts with an empty file-system broker: messages of one test never reach a worker of another."""
    yield
    for file in settings.BROKER_DIR.glob("*/*.msg"):
        file.unlink(missing_ok=True)
