"""Who gets what at every address: each pattern of the site, asked by each kind of person, by GET and by POST.

A new address makes a test fail until it stands in tests/access.py: whoever adds one decides there who may use it.
"""

import logging
from collections.abc import Iterator

import pytest
from django.contrib import admin
from django.db import transaction
from django.http.response import HttpResponseBase
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from tests import access
from tests.access import ACTIONS, ADMIN, MATRIX, PEOPLE, UNNAMED, World


@pytest.fixture
def world(db: None, settings, tmp_path) -> World:
    settings.MODEL = str(access.described_model(tmp_path))
    return access.make_world()


@pytest.fixture
def clients(world: World) -> dict[str, Client]:
    """One browser per person, logged in once."""
    made = {name: Client(raise_request_exception=False) for name in PEOPLE}
    for name, person in world.people.items():
        made[name].force_login(person)
    return made


def _patterns(resolver: URLResolver, prefix: str = "", space: str = "") -> Iterator[tuple[str, str]]:
    """Name (empty where there is none) and route of every address."""
    for entry in resolver.url_patterns:
        route = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            yield from _patterns(entry, route, f"{space}{entry.namespace}:" if entry.namespace else space)
        elif isinstance(entry, URLPattern):
            yield (f"{space}{entry.name}" if entry.name else ""), route


ADDRESSES = list(_patterns(get_resolver()))


def _said(answer: HttpResponseBase) -> str:
    """The status, or L when the answer leads to the login page."""
    is_to_login = answer.status_code == 302 and "/login/" in answer["Location"]
    return "L" if is_to_login else str(answer.status_code)


def _ask(client: Client, method: str, address: str, body: object = None) -> str:
    """What they are told; whatever it changed is taken back."""
    with transaction.atomic():
        if method == "get":
            answer = client.get(address)
        else:
            answer = getattr(client, method)(address, body or {}, content_type="application/json")
        transaction.set_rollback(True)
    return _said(answer)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand refusals are what is wanted here, and nothing to read in a failure's report."""
    caplog.set_level(logging.CRITICAL, logger="django.request")


def test_it_knows_every_address() -> None:
    standard = {f"admin:{model.replace('.', '_')}_{action}" for model in ADMIN for action in ACTIONS}
    named = {name for name, _ in ADDRESSES if name}
    assert named - standard - MATRIX.keys() == set(), "Decide in tests/access.py who may use these."
    assert MATRIX.keys() - named == set(), "These are gone: take them out of tests/access.py."
    assert {route for name, route in ADDRESSES if not name and not route.endswith("<path:object_id>/")} == UNNAMED


def test_it_knows_every_model_of_the_admin() -> None:
    assert {model._meta.label_lower for model in admin.site._registry} == ADMIN.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRIX)
def test_it_gives_everybody_what_is_theirs(name: str, world: World, clients: dict[str, Client]) -> None:
    row = MATRIX[name]
    address = reverse(name, args=row.args(world))
    for method, wanted in {"get": row.get, "post": row.post, **row.others}.items():
        body = row.body(world) if method == "post" else None
        told = {person: _ask(clients[person], method, address, body) for person in PEOPLE}
        assert told == access.told(wanted), f"{method.upper()} {name}"


@pytest.mark.slow
def test_it_knows_every_method_of_the_api(world: World, clients: dict[str, Client]) -> None:
    for name, row in MATRIX.items():
        address = reverse(name, args=row.args(world))
        for method in {"put", "patch", "delete"} - row.others.keys() if address.startswith("/api/") else ():
            assert _ask(clients["root"], method, address) in {"404", "405"}, f"{method.upper()} {name}"


@pytest.mark.slow
@pytest.mark.parametrize("model", ADMIN)
def test_it_opens_the_admin_to_administrators_only(model: str, world: World, clients: dict[str, Client]) -> None:
    """Staff without permissions see nothing; what even the superuser may not do is told by ADMIN."""
    for action in ACTIONS:
        name = f"admin:{model.replace('.', '_')}_{action}"
        needs_row = action in {"history", "delete", "change"}
        address = reverse(name, args=[world.rows[model].pk] if needs_row else [])
        for method in ("get", "post"):
            for person in ("anonymous", "manager"):
                assert _ask(clients[person], method, address) == "L", (person, method, name)
            assert _ask(clients["staff"], method, address) in {"403", "405"}, (method, name)
        if action in {"add", "delete"}:
            assert _ask(clients["root"], "get", address) == ("200" if action in ADMIN[model] else "403"), name
        else:
            assert _ask(clients["root"], "get", address) == "200", name
        if action == "change" and "change" not in ADMIN[model]:
            assert _ask(clients["root"], "post", address) in {"403", "405"}, name
