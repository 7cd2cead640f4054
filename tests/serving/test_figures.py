from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from serving import adapters, figures
from serving.figures import Figures
from serving.models import Adapter, ServedRequest

pytestmark = pytest.mark.django_db
NOW = timezone.now()


def log(adapter: Adapter, outcome: str, at: datetime = NOW, **measured: Any) -> None:
    ServedRequest.objects.create(
        request_id="x",
        at=at,
        endpoint="page",
        adapter=adapter,
        outcome=outcome,
        status=200,
        **{"seconds": 1.0} | measured,
    )


def test_it_counts_how_requests_of_the_last_hour_ended(
    adapter: Callable[[int], Adapter], django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    first, second = adapter(1), adapter(2)
    for outcome, n in {"done": 3, "failed": 1, "refused": 5, "cancelled": 2}.items():
        for _i in range(n):
            log(first, outcome)
    log(first, "failed", NOW - timedelta(minutes=61))
    log(second, "done")
    with django_assert_num_queries(2):
        found = figures.last_hour([first, second], NOW)
    assert found[first.pk] == Figures(n=11, n_failed=1, n_refused=5, n_cancelled=2)
    assert found[first.pk].failed_percent == 25
    assert found[second.pk].failed_percent == 0
    assert figures.last_hour([adapters.base()], NOW) == {}


def test_it_measures_the_writing_without_the_wait(adapter: Callable[[int], Adapter]) -> None:
    row = adapter(1)
    log(row, "done", seconds=3.0, seconds_to_first_token=1.0, completion_tokens=20)
    log(row, "done", seconds=5.0, seconds_to_first_token=3.0, completion_tokens=60)
    log(row, "cancelled", seconds=1.0, seconds_to_first_token=0.5, completion_tokens=10)
    log(row, "failed", seconds=100.0, completion_tokens=0)
    found = figures.last_hour([row], NOW)[row.pk]
    assert found.tokens_per_second == pytest.approx(90 / 4.5)
    assert found.seconds_to_first_token == 1.0
