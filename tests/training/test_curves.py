"""Curves: thinned without losing their look, nothing hidden, every alarm kept."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.rows import add_campaign
from training import curves, runs
from training.models import Metric


def lttb_by_hand(x: list[float], y: list[float], n: int) -> list[int]:
    """Steinarsson's algorithm with a loop for each of its sentences."""
    m, chosen = len(x), [0]
    edges = [int(1 + i * (m - 2) / (n - 2)) for i in range(n - 1)]
    for i in range(n - 2):
        bucket = range(edges[i], edges[i + 1])
        after = range(edges[i + 1], edges[i + 2]) if i + 2 < len(edges) else range(edges[i + 1], m)
        mean_x = sum(x[j] for j in after) / len(after)
        mean_y = sum(y[j] for j in after) / len(after)
        a = chosen[-1]
        areas = [abs((x[a] - mean_x) * (y[j] - y[a]) - (x[a] - x[j]) * (mean_y - y[a])) / 2 for j in bucket]
        chosen.append(bucket[int(np.argmax(areas))])
    return [*chosen, m - 1]


@given(st.integers(5, 300), st.integers(3, 60), st.integers(0, 2**32 - 1))
def test_it_thins_as_the_paper_says(m: int, n: int, seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=m)
    x = np.arange(m, dtype=float)
    kept = curves.lttb(x, y, n)
    if n >= m:
        assert kept.tolist() == list(range(m))
    else:
        assert kept.tolist() == lttb_by_hand(x.tolist(), y.tolist(), n)
        assert len(set(kept)) == n


def test_it_keeps_a_spike_that_every_tenth_point_would_miss() -> None:
    y = np.sin(np.arange(10_000) / 1000)
    y[7_777] = 40.0
    assert 7_777 in curves.lttb(np.arange(10_000.0), y, 100)


def lines(n: int) -> list[curves.Line]:
    return [{"step": i + 1, "loss": 1 / (i + 1), "tokens": 100, "seconds": 0.5} for i in range(n)]


def shown(charts: list, key: str) -> dict:
    return next(curve for each in charts for curve in each["curves"] if curve["key"] == key)


def test_it_keeps_every_step_of_an_alarm() -> None:
    given = lines(5000)
    alarm = {"signal": "grad_norm", "value": 12.0, "limit": 4.0, "action": "skip_step", "message": "12 times as large"}
    given[2345]["alarms"] = [alarm]
    curve = shown(list(curves.drawn(given, 50)), "loss")
    assert 2346 in curve["steps"]
    assert (len(curve["steps"]) <= 51, curve["n_points"]) == (True, 5000)
    assert curves.alarms(given) == [{**alarm, "step": 2346}]


def test_it_says_that_a_step_was_skipped_when_nobody_else_does() -> None:
    given: list[dict[str, Any]] = [
        {"step": 1, "is_skipped": True},
        {"step": 2, "is_skipped": True, "alarms": [{"message": "NaN"}]},
    ]
    said = curves.alarms([*given, {"step": 3, "alarms": "nonsense"}])
    assert [(alarm["step"], alarm["message"]) for alarm in said] == [(1, str(curves.NOT_FINITE)), (2, "NaN")]


def test_it_draws_what_it_has_never_heard_of_and_leaves_out_what_is_no_number() -> None:
    given: list[dict[str, Any]] = [
        {"step": 1, "loss": None, "shiny_new": 1.5, "grad_norm": 2.0, "alarms": [], "is_skipped": True, "note": "x"}
    ]
    charts = list(curves.drawn(given, 100))
    assert [each["key"] for each in charts] == ["grad_norm", "shiny_new"]
    assert charts[1]["title"] == "shiny new"


def test_it_works_out_the_tokens_a_second() -> None:
    assert shown(list(curves.drawn(lines(3), 100)), "tokens_per_s")["values"] == [200.0] * 3
    assert curves.with_rate({"step": 1, "tokens": 5, "seconds": 0}) == {"step": 1, "tokens": 5, "seconds": 0}
    assert curves.with_rate({"step": 1, "tokens": 5, "seconds": 1, "tokens_per_s": 7})["tokens_per_s"] == 7


@pytest.mark.django_db
def test_it_reads_a_run() -> None:
    run = runs.create(add_campaign(), "dpo", {})
    assert curves.of_run(run)["charts"] == []
    Metric.objects.bulk_create(Metric(run=run, step=line["step"], values=line) for line in lines(1500))
    got = curves.of_run(run, 200)
    assert (got["last_step"], got["name"], got["alarms"]) == (1500, str(run), [])
    assert len(shown(got["charts"], "loss")["steps"]) == 200


@pytest.mark.django_db
def test_it_reads_of_a_long_run_what_the_rest_cannot_stand_for() -> None:
    run = runs.create(add_campaign(), "dpo", {})
    given = [{**line, "alarms": [], "is_skipped": False} for line in lines(1001)]
    given[500]["alarms"] = [{"message": "!"}]
    given[600]["is_skipped"] = True
    given[700]["heldout_accuracy"] = 0.5
    Metric.objects.bulk_create(Metric(run=run, step=line["step"], values=line) for line in given)
    steps = [line["step"] for line in curves.read(run, 101)]
    assert steps == sorted({1, 501, 601, 701, 1001, *range(10, 1001, 10)})
    assert len(curves.read(run, 1001)) == 1001
    got = curves.of_run(run, 20)
    assert [alarm["step"] for alarm in got["alarms"]] == [501, 601]
    assert shown(got["charts"], "heldout_accuracy")["steps"] == [701]
    assert got["last_step"] == 1001
