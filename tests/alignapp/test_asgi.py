"""The web process's handler: whose views it may run in a thread, and what it hands them."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import iscoroutinefunction  # knows those of classes, too
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.test import override_settings
from django.urls import URLPattern, URLResolver, get_resolver
from pytest_django import Settings

from alignapp import processes
from alignapp.asgi import Handler, application
from benchmarks.site import OF_TESTS, REPOSITORY, free_port
from serving.openai.asgi import URLS as FOR_PROGRAMS

n_built = 0


def counting(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """A middleware."""
    global n_built
    n_built += 1
    return get_response


def views(resolver: URLResolver) -> Iterator[Callable[..., Any]]:
    for entry in resolver.url_patterns:
        if isinstance(entry, URLPattern):
            yield entry.callback
        elif getattr(entry.urlconf_name, "__name__", "") != FOR_PROGRAMS:
            yield from views(entry)


async def asked(path: str, prefix: str) -> dict[str, str]:
    """The headers of the answer."""
    sent: list[dict[str, Any]] = []
    coming = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not coming:
            await asyncio.Event().wait()  # it stays
        return coming.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": path, "root_path": prefix, "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }  # fmt: skip
    await application(scope, receive, send)
    return {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}


def test_it_has_synchronous_views_only() -> None:
    """Under the handler another kind would cost an event loop for each request."""
    found = list(views(get_resolver()))
    assert len(found) > 100
    assert [view for view in found if iscoroutinefunction(view)] == []


def test_it_knows_an_asynchronous_view() -> None:
    assert any(iscoroutinefunction(view) for view in views(get_resolver(FOR_PROGRAMS)))


def test_it_builds_its_middleware_once(settings: Settings) -> None:
    settings.MIDDLEWARE = [f"{__name__}.counting"]
    before = n_built
    Handler()
    assert n_built == before + 1


@pytest.mark.django_db(transaction=True)
async def test_it_makes_links_below_the_prefix_of_the_request() -> None:
    assert (await asked("/align/chat/", "/align"))["location"] == "/align/login/?next=/align/chat/"
    assert (await asked("/chat/", ""))["location"] == "/login/?next=/chat/"


@pytest.fixture
def below_a_prefix(tmp_path: Path) -> dict[str, str]:
    """The environment of a site with PATH_PREFIX."""
    given = {key: value for key, value in os.environ.items() if key not in OF_TESTS}
    return given | {"VAR_DIR": str(tmp_path), "DATABASE_URL": f"sqlite:///{tmp_path}/db", "PATH_PREFIX": "align"}


@pytest.fixture
def site_below_a_prefix(below_a_prefix: dict[str, str]) -> Iterator[httpx.Client]:
    """Its web process, as its proxy sees it."""
    port = free_port()
    with override_settings(PORT=port, FORCE_SCRIPT_NAME="/align"):
        process = subprocess.Popen(processes.web().command, cwd=REPOSITORY, env=below_a_prefix)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=10)) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_it_lies_below_a_prefix(site_below_a_prefix: httpx.Client) -> None:
    at = site_below_a_prefix.get
    assert at("/chat/").headers["Location"] == "/align/login/?next=/align/chat/"
    links = re.findall(r'(?:href|src|action)="(/[^"]*)"', at("/login/").text)
    assert len(links) > 2
    for link in links:
        assert link.startswith("/align/")
        assert at(link.removeprefix("/align")).status_code == 200
    assert at("/v1/models").status_code == 401


@pytest.mark.slow
def test_it_tells_programs_its_prefix(below_a_prefix: dict[str, str]) -> None:
    command = [sys.executable, "manage.py", "spectacular", "--format", "openapi-json"]
    schema = subprocess.run(command, cwd=REPOSITORY, env=below_a_prefix, check=True, capture_output=True).stdout
    assert json.loads(schema)["servers"] == [{"url": "/align"}]
