"""A whole site on the real model, and windows on it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from benchmarks.site import Site
from tests.browser.screens import Screens

expect.set_options(timeout=20_000)  # a machine that builds beside its tests takes its time; what holds is seen at once


@pytest.fixture(scope="module")
def site(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fresh site as `make run` starts it: starter campaign, real model, nothing judged."""
    with Site(tmp_path_factory.mktemp("site"), model=model_dir) as site:
        yield site


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """A desktop window; a script error or a refused resource on any page fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, base_url=site.address, locale="en")
    page = context.new_page()
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    yield page
    context.close()
    assert not errors, errors


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: SCREENSHOTS, else a temporary folder."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def screens(browser: Browser, live_server) -> Iterator[Screens]:
    """Windows on the comparison screen, whose rows the test makes; a script error fails the test."""
    screens = Screens(browser, live_server.url)
    yield screens
    screens.close()
    assert not screens.errors, screens.errors
