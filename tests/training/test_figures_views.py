"""A run's figures as data. Who may have them is asked in test_views.py, events in test_live.py."""

import csv
import io
import json
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from tests.training.rows import add_campaign
from training import runs
from training.models import Metric, Run

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),  # the test's client is synchronous
]
ALARM = {"signal": "grad_norm", "message": "12 times its usual size"}


@pytest.fixture
def run() -> Run:
    run = runs.create(add_campaign(), "dpo", {})
    lines: list[dict[str, Any]] = [{"step": n, "loss": 1 / n} for n in range(1, 1201)]
    lines[600] |= {"alarms": [ALARM], "phase": "=cmd()"}
    Metric.objects.bulk_create(Metric(run=run, step=line["step"], values=line) for line in lines)
    return run


def body(client: Client, name: str, run: Run) -> str:
    answer = client.get(reverse(f"admin:{name}", args=[run.pk]))
    assert answer["Content-Disposition"].startswith(f'attachment; filename="run-{run.pk}-metrics.')
    return b"".join(answer).decode("utf-8-sig")


def test_it_exports_every_line_as_it_was(admin_client: Client, run: Run) -> None:
    lines = [json.loads(line) for line in body(admin_client, "training_run_jsonl", run).splitlines()]
    assert lines == list(run.metrics.values_list("values", flat=True))


def test_it_exports_a_column_for_every_name(admin_client: Client, run: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(body(admin_client, "training_run_csv", run))))
    assert (len(rows), list(rows[0])) == (1200, ["step", "alarms", "loss", "phase"])
    assert float(rows[1199]["loss"]) == 1 / 1200
    assert json.loads(rows[600]["alarms"]) == [ALARM]
    assert rows[600]["phase"] == "'=cmd()", "no spreadsheet runs it"
    assert rows[0]["alarms"] == ""


def test_it_draws_at_most_a_thousand_points(admin_client: Client, run: Run) -> None:
    got = admin_client.get(reverse("admin:training_run_curves", args=[run.pk])).json()
    [loss] = got["charts"]
    [curve] = loss["curves"]
    assert (len(curve["steps"]) <= 1001, curve["n_points"], 601 in curve["steps"]) == (True, 1200, True)
    assert got["alarms"] == [{**ALARM, "step": 601}]


def test_it_sends_pages_to_polling_where_events_would_hold_threads(admin_client: Client, run: Run) -> None:
    assert admin_client.get(reverse("admin:training_run_events", args=[run.pk])).status_code == 204
