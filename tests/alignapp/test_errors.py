"""Errors are shown on pages of our own, which say nothing of their cause."""

from typing import NoReturn

import pytest
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.http import HttpRequest
from django.test import Client
from django.urls import path

from alignapp.urls import urlpatterns as site

ERRORS: dict[int, Exception] = {
    400: SuspiciousOperation("secret"),
    403: PermissionDenied("Only managers do this."),
    500: RuntimeError("secret"),
}


def fail(request: HttpRequest, status: int) -> NoReturn:
    raise ERRORS[status]


urlpatterns = [*site, path("fail/<int:status>/", fail)]


@pytest.mark.django_db
@pytest.mark.urls("tests.alignapp.test_errors")
@pytest.mark.parametrize("status", [400, 403, 500])
def test_it_shows_a_page_of_its_own(status: int) -> None:
    response = Client(raise_request_exception=False).get(f"/fail/{status}/")
    assert response.status_code == status
    assert b"Alignapp" in response.content
    assert b"secret" not in response.content


@pytest.mark.django_db
@pytest.mark.urls("tests.alignapp.test_errors")
def test_it_says_why_something_is_forbidden(client: Client) -> None:
    assert b"Only managers do this." in client.get("/fail/403/").content


@pytest.mark.django_db
def test_it_shows_a_page_for_unknown_addresses(client: Client) -> None:
    response = client.get("/no/such/page/")
    assert response.status_code == 404
    assert b"Alignapp" in response.content


@pytest.mark.django_db
def test_it_shows_a_page_when_a_form_is_out_of_date() -> None:
    response = Client(enforce_csrf_checks=True).post("/login/", {"username": "a", "password": "b"})
    assert response.status_code == 403
    assert b"Alignapp" in response.content
