"""Runs beside each other."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from serving.models import Adapter
from tests.training.rows import add_campaign
from training import catalog, comparison
from training.models import Evaluation, Metric, RewardModel, Run

pytestmark = pytest.mark.django_db


def add_run(n: int = 20, accuracy: float | None = None, loss: float = 0.5, **params: Any) -> Run:
    values = catalog.to_dict(catalog.parse("dpo", params))
    run = Run.objects.create(campaign=add_campaign(), method="dpo", params=values, status="succeeded", step=n)
    lines: list[dict[str, Any]] = [{"step": step, "loss": 9.0 if step <= 10 else loss} for step in range(1, n + 1)]
    lines[0]["alarms"] = [{"signal": "grad_norm", "message": "!"}]
    Metric.objects.bulk_create(Metric(run=run, step=line["step"], values=line) for line in lines)
    if accuracy is not None:
        adapter = Adapter.objects.create(name=f"adapter-{run.pk}-a", sha256=f"{run.pk:064}", base_sha256="b" * 64)
        samples = [{"prompt": "Why?", "base": "Base.", "new": f"By run {run.pk}."}]
        evidence = {"accuracy": accuracy, "samples": [*samples, {"prompt": f"Only {run.pk}?", "new": "Yes."}]}
        Evaluation.objects.create(run=run, adapter=adapter, is_passed=True, verdict="better", evidence=evidence)
    return run


def rows_of(runs: list[Run]) -> list[Run]:
    found = Run.objects.select_related("campaign", "evaluation").in_bulk([run.pk for run in runs])
    return [found[run.pk] for run in runs]


def test_it_puts_first_what_differs() -> None:
    same = add_campaign()
    runs = [add_run(beta=beta) for beta in (0.1, 0.3, 0.1)]
    Run.objects.update(campaign=same)
    rows = comparison.made_with(rows_of(runs))
    assert [(row.name, row.values) for row in rows if row.differs] == [("beta", [0.1, 0.3, 0.1])]
    assert rows[0].name == "beta"
    assert {"method", "seed", "learning_rate"} <= {row.name for row in rows}


def test_it_shows_a_parameter_that_one_run_does_not_have() -> None:
    first, second = add_run(), add_run()
    second.params = {"gamma": 2.0}
    row = next(row for row in comparison.made_with([first, second]) if row.name == "gamma")
    assert (row.values, row.differs) == ([None, 2.0], True)


def test_it_compares_what_came_of_them() -> None:
    rows = {
        row.name: row for row in comparison.results(rows_of([add_run(accuracy=0.6), add_run(accuracy=0.7, loss=0.4)]))
    }
    assert (rows["accuracy"].values, rows["accuracy"].best) == ([60.0, 70.0], 1)
    assert rows["loss"].values == pytest.approx([0.5, 0.4]), "the mean of the last ten steps"
    assert (rows["alarms"].values, rows["alarms"].best) == ([1, 1], None)
    assert "heldout_accuracy" not in rows, "nobody has it"


def test_it_reads_only_the_end_of_a_run_and_its_alarms() -> None:
    runs = rows_of([add_run(n=60), add_run(n=60)])
    with CaptureQueriesContext(connection) as asked:
        comparison.results(runs)
    read = [query["sql"] for query in asked.captured_queries if '"training_metric"' in query["sql"]]
    assert len(read) == 4
    assert all("LIMIT 10" in sql or "alarms" in sql for sql in read)


def test_it_compares_reward_models(admin_client: Client) -> None:
    runs = []
    for number, accuracy in enumerate((0.7, 0.8)):
        run = add_run()
        calibration = {"before": {"ece": 0.2}, "after": {"ece": 0.05 - number / 100, "brier": 0.2}}
        RewardModel.objects.create(
            campaign=run.campaign,
            run=run,
            sha256=str(number) * 64,
            base_sha256="b" * 64,
            figures={"temperature": 2.0, "calibration": calibration},
            is_passed=True,
            verdict=f"agrees {number}",
            evidence={"accuracy": accuracy, "low": 0.1, "high": 0.3, "n_pairs": 40, "change": {"difference": 0.01}},
        )
        runs.append(run)
    found = [Run.objects.select_related("campaign", "reward_model").get(pk=run.pk) for run in runs]
    rows = {row.name: row for row in comparison.results(found)}
    assert (rows["accuracy"].values, rows["accuracy"].best) == ([70.0, 80.0], 1)
    assert (rows["ece"].values, rows["ece"].best) == ([0.05, 0.04], 1)
    assert (rows["brier"].values, rows["temperature"].values) == ([0.2, 0.2], [2.0, 2.0])
    assert (rows["n_pairs"].values, rows["difference"].values) == ([40, 40], [1.0, 1.0])
    assert rows["verdict"].values == ["agrees 0", "agrees 1"]
    assert b"agrees 1" in compare(admin_client, runs).content


def test_it_calls_none_the_best_where_one_was_not_judged() -> None:
    rows = {row.name: row for row in comparison.results(rows_of([add_run(accuracy=0.6), add_run()]))}
    assert (rows["accuracy"].values, rows["accuracy"].best) == ([60.0, None], None)


def test_it_puts_answers_to_the_same_prompt_side_by_side() -> None:
    runs = rows_of([add_run(accuracy=0.6), add_run(), add_run(accuracy=0.7)])
    first, *others = comparison.samples(runs)
    assert (first.prompt, first.base) == ("Why?", "Base.")
    assert first.answers == [f"By run {runs[0].pk}.", None, f"By run {runs[2].pk}."]
    assert [row.answers for row in others] == [["Yes.", None, None], [None, None, "Yes."]]


def compare(client: Client, runs: list[Run], **more: Any) -> Any:
    return client.get(reverse("admin:training_run_compare"), {"run": [run.pk for run in runs]}, **more)


def test_it_shows_two_to_six_runs(admin_client: Client) -> None:
    runs = [add_run() for _number in range(7)]
    page = compare(admin_client, runs[:6])
    assert page.status_code == 200
    for run in runs[:6]:
        assert reverse("admin:training_run_curves", args=[run.pk]) in page.content.decode()
    assert b"Add to the comparison" not in page.content
    for wrong in (runs[:1], runs, []):
        answer = compare(admin_client, wrong, follow=True)
        assert b"Choose 2 to 6 runs" in answer.content
    assert admin_client.get(reverse("admin:training_run_compare"), {"run": ["x", "²", "9" * 30]}).status_code == 302


def test_it_leads_from_the_list_to_the_comparison(admin_client: Client) -> None:
    runs = [add_run(), add_run()]
    chosen = {"action": "compare", "_selected_action": [run.pk for run in runs]}
    answer = admin_client.post(reverse("admin:training_run_changelist"), chosen)
    assert answer["Location"].startswith(reverse("admin:training_run_compare"))
    assert admin_client.get(answer["Location"]).status_code == 200


@pytest.mark.parametrize("text", ["<b>bold</b>", "<script>alert(1)</script>"])
def test_it_escapes_what_a_model_wrote(admin_client: Client, text: str) -> None:
    runs = [add_run(accuracy=0.6), add_run(accuracy=0.7)]
    Evaluation.objects.update(evidence={"samples": [{"prompt": text, "base": text, "new": text}]})
    assert text.encode() not in compare(admin_client, runs).content
    page = admin_client.get(reverse("admin:training_run_change", args=[runs[0].pk]))
    assert text.encode() not in page.content


def test_it_is_for_those_who_may_view_runs() -> None:
    client = Client()
    client.force_login(User.objects.create_user("stan", is_staff=True))
    assert compare(client, [add_run(), add_run()]).status_code == 403
