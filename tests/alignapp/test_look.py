"""The design system keeps its promises: contrast, tokens, a strict content security policy, pages that always render."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.template import loader
from django.test import Client, RequestFactory
from django.urls import reverse
from django.views import defaults

ROOT = Path(settings.BASE_DIR)
SITE_CSS = (ROOT / "static/site.css").read_text()
PAGE_CSS = {name: (ROOT / "static" / name).read_text() for name in ("label.css", "chat.css", "dashboard.css")}
GUIDE = (ROOT / "docs/design-system.md").read_text()
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
# Pages of ours: no fragment (named with _), and not the admin's, which extend django-unfold.
PAGES = [
    path
    for path in TEMPLATES
    if not path.name.startswith("_") and path.parent.name not in {"admin", "training"} and path.name != "base.html"
]

COLOURS = {
    name: {"light": light, "dark": dark}
    for name, light, dark in re.findall(r"(--[\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", SITE_CSS)
}
SURFACES = ["--bg", "--surface", "--raised", "--fill"]
READABLE = [
    *product(["--text", "--muted", "--accent-text", "--bad-text"], SURFACES),
    *product(["--code-keyword", "--code-string", "--code-number", "--code-name", "--code-comment"], ["--fill"]),
    *((f"--{meaning}-text", f"--{meaning}-fill") for meaning in ("ok", "warn", "bad", "accent")),
    *((f"--{meaning}-text", "--surface") for meaning in ("ok", "warn")),
    *product(["--on-accent"], ["--accent-solid", "--accent-solid-hover", "--bad-solid"]),
    *product(["--text"], ["--selected", "--fill-strong", "--accent-fill"]),
]
VISIBLE = [
    *product(["--line-strong", "--focus", "--accent", "--bad-line"], ["--bg", "--surface", "--raised"]),
    *product(["--ok-line", "--warn-line"], ["--surface", "--raised"]),
    *product(["--focus"], ["--fill", "--fill-strong", "--accent-fill"]),
    ("--accent", "--fill-strong"),
]


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour #rrggbb (WCAG 2.2)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def stylesheet_names(text: str) -> set[str]:
    return set(re.findall(r"(--[\w-]+):", text))


def test_it_computes_contrast_as_wcag_does() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("text", "background"), READABLE)
def test_it_keeps_text_readable(text: str, background: str, theme: str) -> None:
    assert contrast(COLOURS[text][theme], COLOURS[background][theme]) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("edge", "background"), VISIBLE)
def test_it_keeps_edges_and_focus_visible(edge: str, background: str, theme: str) -> None:
    assert contrast(COLOURS[edge][theme], COLOURS[background][theme]) >= 3


def test_it_uses_only_tokens_that_exist() -> None:
    for text in [SITE_CSS, *PAGE_CSS.values()]:
        assert set(re.findall(r"var\((--[\w-]+)", text)) <= stylesheet_names(SITE_CSS) | stylesheet_names(text)


def test_it_leaves_colours_to_the_tokens() -> None:
    rules = SITE_CSS.split("@layer elements", 1)[1]
    for text in [rules, *PAGE_CSS.values()]:
        assert not re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[;, )])", text)


def test_it_documents_every_token() -> None:
    assert [name for name in sorted(stylesheet_names(SITE_CSS)) if f"`{name}`" not in GUIDE] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT / "templates").as_posix())
def test_it_gives_every_page_the_frame_and_a_title(path: Path) -> None:
    text = path.read_text()
    assert re.match(r'\{% extends "(base|door)\.html" %\}', text)
    assert path.name == "door.html" or re.search(r"\{% block title %\}.*\S.*\{% endblock %\}", text)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.relative_to(ROOT / "templates").as_posix())
def test_it_has_no_inline_script_or_style(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son[a-z]+=|javascript:", text)


def assert_is_page(response: Any, status: int, title: str) -> None:
    page = response.content.decode()
    assert response.status_code == status
    assert f"<title>{title} · Alignapp</title>" in page
    assert 'href="#main"' in page


def test_it_renders_a_missing_page_without_database(client: Client) -> None:
    assert_is_page(client.get("/nothing/here/"), 404, "There is no such page")


def test_it_renders_errors_without_database_or_user(rf: RequestFactory) -> None:
    request = rf.get("/")
    assert_is_page(defaults.server_error(request), 500, "Something broke on our side")
    page = loader.get_template("400.html").render()
    assert "<title>The request was not understood · Alignapp</title>" in page
    for name in ("403.html", "403_csrf.html"):
        assert loader.get_template(name).render().count("<h1>") == 1


def test_it_explains_a_stale_form() -> None:
    client = Client(enforce_csrf_checks=True)
    assert_is_page(client.post(reverse("login"), {"username": "ada"}), 403, "The page was open too long")


def test_it_renders_the_login_page(client: Client) -> None:
    response = client.get(reverse("login"), {"next": reverse("chat")})
    assert_is_page(response, 200, "Log in")
    assert "You need an invitation from an administrator" in response.content.decode()


@pytest.mark.django_db
def test_it_says_what_is_wrong_with_a_login(client: Client) -> None:
    response = client.post(reverse("login"), {"username": "ada", "password": "wrong"})
    assert 'class="notice notice-error" role="alert"' in response.content.decode()


@pytest.mark.django_db
def test_it_explains_a_lockout(client: Client) -> None:
    for _ in range(settings.AXES_FAILURE_LIMIT):
        response = client.post(reverse("login"), {"username": "ada", "password": "wrong"})
    assert_is_page(response, 429, "Too many attempts")
    assert "Wait 15 minutes" in response.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize("is_staff", [True, False])
def test_it_links_to_the_admin_for_staff_only(client: Client, is_staff: bool) -> None:
    client.force_login(get_user_model().objects.create_user("ada", password="x", is_staff=is_staff))
    page = client.get(reverse("password_change")).content.decode()
    assert (f'href="{reverse("admin:index")}"' in page) is is_staff
    assert f'action="{reverse("logout")}"' in page


@pytest.mark.django_db
def test_it_changes_a_password(client: Client) -> None:
    client.force_login(get_user_model().objects.create_user("ada", password="an old password"))
    new = "correct horse battery"
    fields = {"old_password": "an old password", "new_password1": new, "new_password2": new}
    response = client.post(reverse("password_change"), fields, follow=True)
    assert_is_page(response, 200, "Password changed")


def test_it_asks_for_a_login_before_a_password_change(client: Client) -> None:
    assert client.get(reverse("password_change"))["Location"] == f"{reverse('login')}?next={reverse('password_change')}"
