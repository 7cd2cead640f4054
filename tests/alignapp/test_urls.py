"""Every address of the site is closed to strangers, unless it stands here."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from pytest_django import Settings

from alignapp.static import StaticFilesMiddleware

OPEN = {"login", "logout", "invitation", "healthz", "admin:login", "admin:logout", "admin:jsi18n"}
VALUES = {"int": "1", "slug": "x", "uuid": str(uuid.UUID(int=1)), "str": "x", "path": "x/"}


def _patterns(resolver: URLResolver, prefix: str = "", space: str = "") -> Iterator[tuple[str, str]]:
    """Name and path of every address, parameters filled in."""
    for entry in resolver.url_patterns:
        path = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from _patterns(entry, path, f"{space}{entry.namespace}:" if entry.namespace else space)
        elif isinstance(entry, URLPattern) and entry.name:
            yield f"{space}{entry.name}", "/" + re.sub(r"<(\w+):\w+>", lambda match: VALUES[match[1]], path)


ADDRESSES = sorted({item for item in _patterns(get_resolver()) if item[0] not in OPEN and "(" not in item[1]})


@pytest.mark.django_db
@pytest.mark.parametrize(("name", "path"), ADDRESSES)
def test_it_is_closed_to_strangers(client: Client, name: str, path: str) -> None:
    for method in (client.get, client.post):
        response = method(path)
        is_to_login = response.status_code == 302 and "/login/" in response["Location"]
        assert is_to_login or response.status_code in {401, 403, 404, 405}, f"{name} answered {response.status_code}"


@pytest.mark.django_db
def test_it_has_one_way_in(client: Client) -> None:
    response = client.get("/admin/training/run/", follow=True)
    assert unquote(response.redirect_chain[-1][0]) == "/login/?next=/admin/training/run/"


@pytest.mark.django_db
def test_it_describes_the_api_to_whoever_is_logged_in(client: Client) -> None:
    client.force_login(User.objects.create_user("ada"))
    response = client.get(reverse("api_schema"), {"format": "json"})
    assert response.status_code == 200
    assert reverse("judgment_create") in response.json()["paths"]


@pytest.mark.django_db
def test_it_serves_static_files_without_collectstatic(client: Client, settings: Settings) -> None:
    settings.WHITENOISE_AUTOREFRESH = False  # as the site does
    response = client.get("/static/site.css")
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/css")
    assert "Access-Control-Allow-Origin" not in response
    again = client.get("/static/site.css", headers={"if-none-match": response["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_it_serves_a_file_that_has_changed_since_the_start(tmp_path: Path, settings: Settings) -> None:
    settings.WHITENOISE_AUTOREFRESH = False
    file = tmp_path / "page.css"
    file.write_text("short")
    middleware = StaticFilesMiddleware(lambda request: HttpResponse(status=404))
    middleware.add_files(str(tmp_path), prefix="/static/")
    file.write_text("no longer short")
    response = middleware(RequestFactory().get("/static/page.css"))
    assert (response.content, response["Content-Length"]) == (b"no longer short", "15")
    part = middleware(RequestFactory().get("/static/page.css", headers={"range": "bytes=0-1"}))
    assert (part.status_code, part.content, part["Content-Length"]) == (206, b"no", "2")


@pytest.mark.django_db
def test_it_forbids_inline_code_outside_the_admin(client: Client) -> None:
    policy = client.get(reverse("login"))["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
