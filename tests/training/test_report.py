"""What the pages say of a run: rows out of whatever the evidence of its time holds."""

from typing import Any

import pytest

from training import catalog, report
from training.ml import monitor
from training.models import Evaluation, Run


def test_it_puts_stages_in_the_order_of_events() -> None:
    run = Run(timings={"training": 30.0, "snapshot": 10.0, "gate": 0.0, "unknown": 5.0})
    assert [(stage.name, stage.share) for stage in report.stages(run)] == [("snapshot", 25.0), ("training", 75.0)]
    assert report.stages(Run()) == []


def test_it_shows_first_what_differs_from_the_defaults() -> None:
    params = catalog.to_dict(catalog.parse("dpo", {"epochs": 3.0, "beta": 0.3}))
    rows = report.parameters(Run(method="dpo", params=params))
    assert [(row.name, row.value, row.default) for row in rows if row.is_changed] == [
        ("epochs", 3.0, 1.0),
        ("beta", 0.3, 0.1),
    ]
    assert [row.is_changed for row in rows] == sorted((row.is_changed for row in rows), reverse=True)
    assert not any(row.is_changed for row in report.parameters(Run(method="gone", params={"x": 1})))


def test_it_names_every_figure_of_the_machine_even_before_it_is_told() -> None:
    figures = {figure.name: figure.value for figure in report.system(Run(system={"rss_mb": 812.0}))}
    assert (figures["rss_mb"], figures["gpu_mb"]) == (812.0, None)


def test_it_has_words_for_all_that_the_monitor_does() -> None:
    assert set(report.ACTIONS) == {*monitor.ACTIONS, monitor.NOTHING, monitor.RELAX}


GUARD = {"name": "kl", "value": 0.2, "limit": 2.0, "passed": True, "words": "KL"}


@pytest.mark.parametrize(
    "evidence", [{}, {"guards": None}, {"guards": "x"}, {"guards": [3]}, {"policy": 4, "samples": 5}]
)
def test_it_leaves_out_what_is_not_there(evidence: dict[str, Any]) -> None:
    assert report.guards(Evaluation(evidence=evidence)) == []
    assert report.samples(Evaluation(evidence=evidence)) == []


def test_it_shows_refused_guards_first() -> None:
    refused = {**GUARD, "name": "length", "words": "", "passed": False, "refusal": "twice as long"}
    rows = report.guards(Evaluation(evidence={"guards": [GUARD, refused]}))
    assert [(row.words, row.is_passed, row.refusal) for row in rows] == [
        ("length", False, "twice as long"),
        ("KL", True, ""),
    ]


@pytest.mark.parametrize("place", ["samples", "policy"])
def test_it_finds_samples_wherever_the_evidence_of_its_time_has_them(place: str) -> None:
    rows = [
        {"prompt": "Why?", "base": "a", "incumbent": None, "new": "c"},
        {"prompt": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "there"}], "new": ""},
    ]
    evidence = {"samples": rows} if place == "samples" else {"policy": {"samples": rows}}
    first, second = report.samples(Evaluation(evidence=evidence))
    assert (first.prompt, first.base, first.incumbent, first.new) == ("Why?", "a", None, "c")
    assert (second.prompt, second.base, second.new) == ("Hi\n\nthere", None, "")
