"""The published description against the server: whatever the schema allows, and much that it does not, is sent."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import schemathesis
from django.contrib.auth.models import User
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from django.utils import timezone
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from labeling import gold
from labeling.models import Statistics
from serving import keys, throttles
from tests.labeling import make

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
N_EXAMPLES = 12
DOCUMENT: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
SCHEMA.app = get_wsgi_application()
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations() if isinstance(result, Ok)]
# What the parameters in paths find, so that more than 404 is seen.
KNOWN = {"slug": "cats", "username": "anna"}


@pytest.fixture
def connection_kept(db: None) -> Iterator[None]:
    """As Django's own test client does: a request does not close the connection that the test's transaction is on."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.fixture
def key(connection_kept: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A manager's key with every scope, in a campaign with one of each."""
    monkeypatch.setitem(throttles.RATES, "transfers", (10_000, 60))
    monkeypatch.setitem(throttles.RATES, "writing", (10_000, 60))
    monkeypatch.setitem(throttles.RATES, "reading", (10_000, 60))
    cats = make.campaign("cats")
    mia = make.person("mia", cats, role="manager")
    anna = make.person("anna", cats)
    make.judge(make.lease(make.comparison(cats), anna))
    known = make.comparison(cats)
    first, second = sorted(item.response_id for item in known.items.all())
    gold.set_answer(known, {str(first): 1, str(second): 2})
    make.comparison(cats)
    Statistics.objects.create(campaign=cats, data={"agreement": {}}, computed_at=make.NOW)
    expires_at = timezone.now() + timedelta(days=1)
    return keys.create(User.objects.get(pk=mia.pk), "schemathesis", list(keys.SCOPES), timezone.now(), expires_at)[1]


def _fill(case: schemathesis.Case, ids: dict[str, int]) -> None:
    """Half of the requests go to what is there."""
    for name in case.path_parameters:
        if name in KNOWN:
            case.path_parameters[name] = KNOWN[name]
        elif name == "id" and isinstance(case.path_parameters[name], int):
            case.path_parameters[name] = ids[case.path.split("/")[2]]


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_it_answers_as_described(key: str, operation: Any) -> None:
    ids = {
        "prompts": make.Prompt.objects.values_list("pk", flat=True)[0],
        "comparisons": make.Comparison.objects.values_list("pk", flat=True)[0],
        "imports": 1,
    }
    numbers = iter(range(10_000))

    @given(case=operation.as_strategy())
    @settings(
        max_examples=N_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        if next(numbers) % 2 == 0:
            _fill(case, ids)
        case.call_and_validate(headers={"Authorization": f"Bearer {key}"}, checks=CHECKS)

    ask()


def test_it_describes_every_address(db: None) -> None:
    assert len(OPERATIONS) >= 33
    for path in DOCUMENT["paths"].values():
        for method, operation in path.items():
            assert operation.get("x-scope") in keys.SCOPES, (method, operation["operationId"])
            assert operation["description"]
