"""The gate's figures against hand-computed ones, and its rule."""

import hashlib
from itertools import product
from typing import Any

import numpy as np
import pytest
from django.db.models import ProtectedError
from django.template.loader import render_to_string
from hypothesis import given
from hypothesis import strategies as st

from tests.training.evaluations import add_adapter, add_run, write_evaluation
from tests.training.rows import (
    POLICY,
    add_campaign,
    add_comparison,
    add_judged,
    add_prompt,
    judge,
)
from training import attempts, gates
from training.gates import BrokenEvaluation, Score, compare, describe, is_passed
from training.models import Policy
from training.rules import Rules
from training.snapshots import is_heldout

MARGINS = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.integers(0, 9)), min_size=1, max_size=40)


def score(rows: list[tuple[float, float, int]]) -> Score:
    return compare(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), [str(r[2]) for r in rows])


def test_it_counts_margins_above_zero_and_half_of_those_at_zero() -> None:
    found = score([(1.0, 0.0, 0), (0.5, -1.0, 1), (0.0, 2.0, 2), (-0.1, 0.0, 3)])
    assert found.accuracy == (1 + 1 + 0.5 + 0) / 4
    assert found.incumbent_accuracy == (0.5 + 0 + 1 + 0.5) / 4
    assert found.difference == found.accuracy - found.incumbent_accuracy


@given(MARGINS)
def test_it_finds_the_base_right_half_of_the_time(rows: list[tuple[float, float, int]]) -> None:
    assert score([(new, 0.0, prompt) for new, _old, prompt in rows]).incumbent_accuracy == 0.5


@given(MARGINS)
def test_it_puts_the_interval_around_the_difference_and_mirrors_it(rows: list[tuple[float, float, int]]) -> None:
    there, back = score(rows), score([(old, new, prompt) for new, old, prompt in rows])
    assert there.low is not None
    assert there.high is not None
    assert back.low is not None
    assert there.difference is not None
    assert -1 <= there.low <= there.high <= 1
    assert back.low == pytest.approx(-there.high)
    if there.n_prompts == 1:
        assert there.low == pytest.approx(there.difference)


def test_it_takes_the_interval_of_all_resamples_of_prompts() -> None:
    """Three prompts have 27 resamples, each as likely: their percentiles are known exactly."""
    rows = [(1.0, -1.0, 0), (1.0, -1.0, 0), (1.0, 1.0, 1), (-1.0, 1.0, 2)]
    gains, sizes = np.array([2.0, 0.0, -1.0]), np.array([2, 1, 1])
    all_resamples = [gains[list(i)].sum() / sizes[list(i)].sum() for i in product(range(3), repeat=3)]
    low, high = np.percentile(np.repeat(all_resamples, 1000), [2.5, 97.5])
    found = score(rows)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_it_covers_like_a_normal_one_of_many_prompts() -> None:
    rng = np.random.default_rng(0)
    margins = np.where(rng.random(900) < 0.7, 1.0, -1.0)
    found = compare(margins, np.zeros(900), [str(i) for i in range(900)])
    right = (margins > 0).astype(float)
    half = 1.96 * right.std(ddof=1) / 30
    assert found.low == pytest.approx(right.mean() - 0.5 - half, abs=0.004)
    assert found.high == pytest.approx(right.mean() - 0.5 + half, abs=0.004)


def test_it_widens_the_interval_for_pairs_of_one_prompt() -> None:
    rng = np.random.default_rng(1)
    prompts = np.repeat(rng.random(40) < 0.7, 5)
    margins = np.where(prompts, 1.0, -1.0)
    apart = compare(margins, np.zeros(200), [str(i) for i in range(200)])
    together = compare(margins, np.zeros(200), [str(i // 5) for i in range(200)])
    assert apart.difference == together.difference
    assert _width(together) > 1.5 * _width(apart)


def _width(found: Score) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_it_gives_the_same_interval_every_time() -> None:
    rows = [(1.0, 0.0, i) for i in range(9)] + [(-1.0, 0.5, 9)]
    assert score(rows) == score(rows)


@pytest.mark.parametrize(
    ("figures", "verdict", "passes"),
    [
        ((412, 0.041, 0.006, 0.075), "better by 4.1 points, 95 % 0.6 to 7.5, 412 held-out pairs", True),
        ((412, -0.03, -0.05, -0.01), "worse by 3.0 points, 95 % −5.0 to −1.0, 412 held-out pairs", False),
        ((50, 0.02, -0.04, 0.08), "no clear difference: +2.0 points, 95 % −4.0 to 8.0, 50 held-out pairs", False),
        ((50, 0.01, 0.0, 0.03), "no clear difference: +1.0 points, 95 % 0.0 to 3.0, 50 held-out pairs", False),
        ((50, 0.0, 0.0, 0.0), "no difference, 50 held-out pairs", False),
        ((3, 0.5, 0.5, 0.5), "not enough judgments to tell: 3 held-out pairs, at least 20 wanted", False),
    ],
)
def test_it_says_the_verdict_in_words(figures: tuple[int, float, float, float], verdict: str, passes: bool) -> None:
    n, difference, low, high = figures
    found = Score(n, n, 0.5 + difference, 0.5, difference, low, high)
    assert describe(found, 20) == verdict
    assert is_passed(found, 20) is passes


@pytest.mark.parametrize(
    ("figures", "verdict", "passes"),
    [
        (
            (0.01, -0.01, 0.03),
            "not worse by 2.0 points or more: +1.0 points, 95 % −1.0 to 3.0, 50 held-out pairs",
            True,
        ),
        ((0.01, 0.0, 0.03), "not worse by 2.0 points or more: +1.0 points, 95 % 0.0 to 3.0, 50 held-out pairs", True),
        ((0.03, 0.01, 0.05), "better by 3.0 points, 95 % 1.0 to 5.0, 50 held-out pairs", True),
        ((0.0, -0.02, 0.02), "no clear difference: +0.0 points, 95 % −2.0 to 2.0, 50 held-out pairs", False),
        ((-0.01, -0.015, -0.001), "worse by 1.0 points, 95 % −1.5 to −0.1, 50 held-out pairs", False),
        ((0.0, 0.0, 0.0), "no difference, 50 held-out pairs", False),
    ],
)
def test_it_asks_for_no_worse_where_the_campaign_allows_a_loss(
    figures: tuple[float, float, float], verdict: str, passes: bool
) -> None:
    difference, low, high = figures
    found, asked = Score(50, 50, 0.5 + difference, 0.5, difference, low, high), Rules(max_accuracy_loss=0.02)
    assert describe(found, 20, asked) == verdict
    assert is_passed(found, 20, asked) is passes


@pytest.mark.parametrize(("n_prompts", "flips"), [(10, 0.05), (20, 0.05), (50, 0.02), (10, 0.3), (20, 0.5)])
def test_it_passes_hardly_ever_what_differs_from_the_current_version_by_chance(n_prompts: int, flips: float) -> None:
    """Two pairs a prompt, and a share of the choices turned around. (A lower end of zero would pass 27 to 31 % of the first
    three.) Beyond doubt is 2.5 %; an interval over ten prompts is too narrow, by as much again.
    """
    rng, n_trials = np.random.default_rng(0), 60
    prompts = [str(i // 2) for i in range(2 * n_prompts)]
    n_passed = 0
    for _trial in range(n_trials):
        old = rng.choice([-1.0, 1.0], len(prompts))
        new = np.where(rng.random(len(prompts)) < flips, -old, old)
        n_passed += is_passed(compare(new, old, prompts), 20)
    assert n_passed <= 0.07 * n_trials


def test_it_does_not_pass_many_pairs_of_few_prompts() -> None:
    n = gates.MIN_PROMPTS
    few = score([(1.0, -1.0, i % (n - 1)) for i in range(40)])
    assert not is_passed(few, 20)
    assert describe(few, 20) == "not enough prompts to tell: 9 held-out prompts, at least 10 wanted"
    assert is_passed(score([(1.0, -1.0, i % n) for i in range(40)]), 20)


def test_it_does_not_pass_a_model_that_prefers_just_what_the_current_one_does() -> None:
    assert not is_passed(score([(1.0, 0.5, i) for i in range(40)]), 20)


def test_it_cannot_tell_without_pairs() -> None:
    found = compare(np.array([]), np.array([]), [])
    assert describe(found, 20) == "not enough judgments to tell: 0 held-out pairs, at least 20 wanted"
    assert not is_passed(found, 0)


@pytest.mark.django_db
def test_it_stores_verdict_and_evidence_once_per_run() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4, 10)
    Policy.objects.create(campaign=campaign, min_heldout_pairs=5)
    run, adapter = add_run(campaign), add_adapter()
    write_evaluation(run, 0.3)
    evaluation = gates.evaluate(run, adapter, run.folder)
    assert evaluation.is_passed
    assert evaluation.verdict == "better by 50.0 points, 95 % 50.0 to 50.0, 10 held-out pairs"
    assert (evaluation.evidence["min_heldout_pairs"], evaluation.evidence["min_heldout_prompts"]) == (5, 10)
    write_evaluation(run, -0.3)
    again = gates.evaluate(run, adapter, run.folder)
    assert (again.pk, again.is_passed) == (evaluation.pk, False)


@pytest.mark.django_db
def test_it_leaves_out_pairs_that_people_called_a_tie() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4, 2)
    prompt = add_prompt(campaign)
    while not is_heldout(prompt.sha256):
        prompt = add_prompt(campaign)
    judge(add_comparison(prompt), "tie")
    run = add_run(campaign)
    write_evaluation(run, 0.3)
    evidence = gates.evaluate(run, add_adapter(), run.folder).evidence
    assert (evidence["n_pairs"], evidence["ties_left_out"]) == (2, 1)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "change",
    [
        {"margin": "0.3"},
        {"margin": None},
        {"pair": 7},
        {"pair": "0-0"},
        {"incumbent_margin": None},
        {"label": None},
        {"label": 1.5},
        {"policy": {"kl": None}},
    ],
)
def test_it_refuses_an_evaluation_that_is_none(change: dict[str, Any]) -> None:
    campaign = add_campaign()
    add_judged(campaign, 4, 1)
    run = add_run(campaign)
    adapter = add_adapter()
    with pytest.raises(BrokenEvaluation):
        gates.evaluate(run, adapter, run.folder)
    write_evaluation(run, 0.3, **change)
    with pytest.raises(BrokenEvaluation):
        gates.evaluate(run, adapter, run.folder)


@pytest.mark.django_db
def test_it_refuses_a_better_adapter_that_repeats_itself_and_says_both() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4, 10)
    Policy.objects.create(campaign=campaign, min_heldout_pairs=5)
    run = add_run(campaign)
    write_evaluation(run, 0.3, policy={"repetition": {"new": 0.31, "base": 0.03}, "kl": 0.7})
    found = gates.evaluate(run, add_adapter(), run.folder)
    assert not found.is_passed
    assert found.verdict == (
        "refused: it has moved far from the base (0.70 nats per token, limit 0.50); "
        "answers repeat themselves (31 % of 4-grams, limit 10 %); "
        "better by 50.0 points, 95 % 50.0 to 50.0, 10 held-out pairs"
    )


@pytest.mark.django_db
def test_it_judges_a_method_without_probabilities_by_its_choices() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4, 10)
    Policy.objects.create(campaign=campaign, min_heldout_pairs=5)
    run = add_run(campaign)
    write_evaluation(run, 30.0, policy={"claims_probabilities": {"new": False, "incumbent": True}})
    found = gates.evaluate(run, add_adapter(), run.folder)
    assert found.is_passed
    assert (found.evidence["accuracy"], found.evidence["brier"], found.evidence["excess"]) == (1.0, None, None)


@pytest.mark.django_db
def test_it_keeps_with_the_verdict_what_it_was_judged_by() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4, 10)
    Policy.objects.create(campaign=campaign, min_heldout_pairs=5, rules={"max_kl": 0.01})
    run = add_run(campaign)
    write_evaluation(run, 0.3)
    evidence = gates.evaluate(run, add_adapter(), run.folder).evidence
    assert evidence["rules"]["max_kl"] == 0.01
    assert evidence["rules"]["max_repetition"] == 0.1
    assert evidence["policy"] == POLICY
    assert evidence["file_sha256"] == hashlib.sha256((run.folder / "evaluation.json").read_bytes()).hexdigest()
    refused = [guard for guard in evidence["guards"] if not guard["passed"]]
    assert [(guard["name"], guard["value"], guard["limit"]) for guard in refused] == [("kl", 0.05, 0.01)]


@pytest.mark.django_db
def test_it_wants_as_many_prompts_and_as_small_a_loss_as_the_campaign_says() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4, 10)
    policy = Policy.objects.create(campaign=campaign, min_heldout_pairs=5, rules={"min_heldout_prompts": 11})
    run, adapter = add_run(campaign), add_adapter()
    write_evaluation(run, 0.3)
    assert gates.evaluate(run, adapter, run.folder).verdict.startswith("not enough prompts to tell: 10 held-out")
    mixed = score([(1.0 if i % 5 else -1.0, 0.5 if i % 7 else -0.5, i) for i in range(60)])
    assert mixed.low is not None
    assert mixed.low < 0
    policy.rules = {"max_accuracy_loss": 0.5}
    assert not is_passed(mixed, 20)
    assert is_passed(mixed, 20, gates.rules_of(policy))


@pytest.mark.django_db
@pytest.mark.parametrize(("n_heldout", "left_out", "kept"), [(12, 2, 0), (10, 0, 2)])
def test_it_says_whether_the_monitor_looked_at_what_it_judges_by(n_heldout: int, left_out: int, kept: int) -> None:
    campaign = add_campaign()
    add_judged(campaign, 4, n_heldout)
    Policy.objects.create(campaign=campaign, min_heldout_pairs=10)
    run = add_run(campaign)
    write_evaluation(run, 0.3)
    found = attempts.read_json(run.folder / "evaluation.json") or {}
    for row in found["heldout"][:2]:
        row |= {"steered": True, "margin": -0.3}
    attempts.write_json(run.folder / "evaluation.json", found)
    evaluation = gates.evaluate(run, add_adapter(), run.folder)
    evidence = evaluation.evidence
    assert (evidence["steered_left_out"], evidence["steered"], evidence["n_pairs"]) == (left_out, kept, 10)
    assert evidence["accuracy"] == (1.0 if left_out else 0.8)
    page = render_to_string("training/_gate.html", {"evaluation": evaluation})
    assert ("left out: the monitor looked at them" in page) is bool(left_out)
    assert ("The monitor looked at 2 of these pairs" in page) is bool(kept)


@pytest.mark.django_db
def test_it_never_forgets_a_verdict() -> None:
    """Not with its adapter, and not by an admin: the run's page may not delete."""
    campaign = add_campaign()
    add_judged(campaign, 4, 10)
    run, adapter = add_run(campaign), add_adapter()
    write_evaluation(run, 0.3)
    gates.evaluate(run, adapter, run.folder)
    for row in (adapter, run):
        with pytest.raises(ProtectedError):
            row.delete()
