"""Every answer carries the headers that docs/security.md lists, whatever its status."""

import re
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client

from tests.alignapp.test_urls import ADDRESSES

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN_IN = ("default-src", "frame-ancestors", "base-uri", "object-src")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def policy_of(header: str) -> dict[str, list[str]]:
    """Directive → its sources."""
    return {name: sources for name, *sources in (part.split() for part in header.split(";"))}


def _assert_strict(path: str, header: str) -> None:
    policy = policy_of(header)
    for directive in FORBIDDEN_IN:
        assert policy[directive] == ["'none'"], directive
    for directive in ("connect-src", "font-src", "form-action"):
        assert policy[directive] == ["'self'"], directive
    is_admin = path.startswith("/admin/")
    assert policy["script-src"] == (["'self'", "'unsafe-eval'"] if is_admin else ["'self'"])
    assert policy["style-src"] == (["'self'", "'unsafe-inline'"] if is_admin else ["'self'"])
    assert policy["img-src"] == (["'self'", "data:"] if is_admin else ["'self'"])


@pytest.mark.slow
@pytest.mark.django_db
@pytest.mark.parametrize("path", sorted({"/", "/login/", "/healthz", "/nothing/here/", *dict(ADDRESSES).values()}))
def test_it_sends_every_header_with_every_answer(client: Client, path: str) -> None:
    strangers = client.get(path)
    client.force_login(User.objects.create_superuser("root"))
    for response in (strangers, client.get(path), client.post(path)):
        assert {name: response.headers.get(name) for name in HEADERS} == HEADERS
        assert {"camera=()", "microphone=()", "geolocation=()"} <= set(response["Permissions-Policy"].split(", "))
        _assert_strict(path, response["Content-Security-Policy"])


@pytest.mark.django_db
def test_it_keeps_cookies_from_scripts_and_from_other_sites(client: Client, settings) -> None:
    user = User.objects.create_user("ada", password="a long enough password")
    for is_secure in (False, True):
        settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = is_secure
        client.get("/login/")
        answer = client.post("/login/", {"username": user.username, "password": "a long enough password"})
        for name in ("sessionid", "csrftoken"):
            cookie = answer.cookies[name]
            assert (cookie["samesite"], bool(cookie["secure"])) == ("Lax", is_secure)
        assert answer.cookies["sessionid"]["httponly"]


def test_it_documents_every_header_and_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    documented = set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE))
    assert documented == {*HEADERS, "Content-Security-Policy", "Permissions-Policy"}
    named = set(re.findall(r"`((?:tests|serving)/[\w/]+\.py)`", text))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
