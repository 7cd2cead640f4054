"""From packs to losses: every method's loss and gradient against plain sequences, one by one, and the formula by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.training.ml import checks
from tests.training.ml.cases import (
    POLICY_METHODS,
    examples_for,
    flat_reference,
    judged,
    make_learner,
    pair,
    shake,
    some_pairs,
    some_singles,
)
from training import catalog
from training.catalog import Reward
from training.ml import batches, loop, losses, policy
from training.ml.data import TRAIN, Single
from training.ml.watch import Watch

HALF = Reward(0.5)


@pytest.mark.parametrize("method", POLICY_METHODS)
def test_it_has_the_loss_and_gradient_of_plain_sequences(
    base: policy.Base, plain: PeftModel, watch: Watch, method: str
) -> None:
    checks.has_the_plain_gradient(base, plain, method, watch)


@pytest.mark.parametrize("method", POLICY_METHODS)
def test_it_does_not_depend_on_how_examples_are_packed(base: policy.Base, watch: Watch, method: str) -> None:
    checks.does_not_depend_on_packing(base, method, watch)


@pytest.mark.parametrize("method", POLICY_METHODS)
def test_it_scales_an_examples_gradient_by_its_weight(base: policy.Base, watch: Watch, method: str) -> None:
    checks.weighs_examples(base, method, watch)


def test_it_adds_the_anchor_to_any_loss(base: policy.Base, watch: Watch) -> None:
    """DPO with an anchor is RPO with the same weight: the same gradient and the same loss."""
    pairs = judged()
    learner, model = make_learner(base, pairs, anchor=0.7)
    shake(model)
    anchored = checks.gradient(learner, pairs, watch)
    learner.anchor, learner.loss, learner.params = 0.0, losses.rpo, catalog.parse("rpo", {"nll_weight": 0.7})
    torch.testing.assert_close(checks.gradient(learner, pairs, watch), anchored, rtol=1e-9, atol=1e-13)


def test_it_anchors_good_responses_only(base: policy.Base, watch: Watch) -> None:
    bad = [replace(single, is_good=False) for single in some_singles()]
    learner, model = make_learner(base, bad, method="apo_zero")
    shake(model)
    without = checks.gradient(learner, bad, watch)
    learner.anchor = 1.0
    assert torch.equal(checks.gradient(learner, bad, watch), without)


def test_it_estimates_the_kl_by_responses_to_other_prompts(base: policy.Base, plain: PeftModel, watch: Watch) -> None:
    """The mean over examples, however they are packed, and nothing of it in the gradient."""
    singles = some_singles()
    reference = dict.fromkeys(flat_reference(singles), -60.0)
    learner, model = make_learner(base, singles, method="kto", reference=reference)
    shake(model)
    checks.copy_adapter(model, plain)
    with torch.no_grad():
        ratios = [checks.plain_logp(plain, x.prompt, x.mismatch or ()) + 60 for x in singles]
    expected = sum(ratios) / len(ratios)
    for budget in (1, 4096):
        learner.budget = budget
        found = loop.mismatch_kl(learner, singles, watch)
        torch.testing.assert_close(found, expected)
        assert found > 0
        assert not found.requires_grad


def test_it_takes_a_negative_estimate_for_no_kl(base: policy.Base, watch: Watch) -> None:
    singles = some_singles()
    learner, _ = make_learner(base, singles, method="kto", reference=dict.fromkeys(flat_reference(singles), 0.0))
    assert loop.mismatch_kl(learner, singles, watch).item() == 0.0


def test_it_knows_how_to_read_and_to_gather_every_source() -> None:
    assert set(batches.SOURCES) == set(TRAIN) == set(catalog.SOURCES)
    assert {method.source for method in catalog.METHODS.values()} <= set(catalog.SOURCES)


def describe(
    scores: list[float], examples: list[Any], source: batches.Source, reward: Reward = HALF
) -> dict[str, list[float]]:
    """The columns of metrics where the policy gives these scores, and the reference −10 each."""
    batch = checks.rows.pack(examples, 512)[0]
    ordered = [examples[i] for i in batch.items]
    by_response = {(x.prompt, r): s for x, s in zip(examples, scores, strict=False) for r in x.responses[:1]}
    by_response |= {(x.prompt, x.responses[1]): -10.0 for x in examples if len(x.responses) > 1}
    values = torch.tensor([by_response[key] for key in batch.order])
    logps = source.gather(values, batch, ordered, flat_reference(examples, -10.0), torch.zeros(()))
    return {name: column.tolist() for name, column in source.describe(logps, ordered, reward).items()}


def test_it_tells_how_pairs_stand() -> None:
    pairs = [pair([5, 6], [7, 8], [9]), pair([5, 7, 8], [7], [9])]
    found = describe([-8.0, -13.0], pairs, batches.PAIRS)
    assert sorted(found["margin"]) == [-1.5, 1.0]
    assert sorted(found["accuracy"]) == [0.0, 1.0]
    assert sorted(found["kl_chosen"]) == [-3.0, 1.0]  # per token: of one, and of two
    assert found["rejected_reward"] == [0.0, 0.0]


def test_it_tells_rewards_per_token_where_the_method_has_them_so() -> None:
    pairs = [pair([5, 6], [7, 8], [9]), pair([5, 7, 8], [7], [9])]
    found = describe([-8.0, -13.0], pairs, batches.PAIRS, Reward(0.5, per_token=True))
    assert sorted(found["margin"]) == sorted(found["chosen_reward"]) == [-1.5, 0.5]
    assert sorted(found["kl_chosen"]) == [-3.0, 1.0]
    edit = Single("a", "", (5, 6), (7, 8), True, 1.0, True)
    assert describe([-8.0], [edit], batches.RESPONSES, Reward(0.5, per_token=True))["margin"] == [0.5]


def test_it_counts_an_undecided_gap_as_half_right_and_a_tie_not_at_all() -> None:
    pairs = [pair([5, 6], [7, 8], [9]), pair([5, 7, 8], [7], [9], label=0.5)]
    found = describe([-10.0, -3.0], pairs, batches.PAIRS)
    assert (found["accuracy"], found["margin"]) == ([0.5], [0.0])
    assert len(found["chosen_reward"]) == 2


def test_it_tells_how_good_and_bad_responses_stand() -> None:
    singles = [Single("a", "", (5, 6), (7, 8), True, 1.0, True), Single("b", "", (5, 7), (9,), False, 1.0, True)]
    found = describe([-8.0, -7.0], singles, batches.RESPONSES)
    assert (found["chosen_reward"], found["rejected_reward"]) == ([1.0], [1.5])
    assert sorted(zip(found["accuracy"], found["margin"], strict=True)) == [(0.0, -1.5), (1.0, 1.0)]


def test_it_has_no_figure_of_what_a_batch_lacks(base: policy.Base, watch: Watch) -> None:
    """A batch of ties has no accuracy: null, and still a step."""
    ties = [replace(one, label=0.5, tie_share=1.0) for one in some_pairs()]
    learner, model = make_learner(base, ties, method="rao_kupper")
    shake(model)
    metrics = loop.accumulate(learner, ties, watch)
    assert metrics["accuracy"] is metrics["margin"] is metrics["margin_p90"] is None
    assert math.isfinite(metrics["loss"])


@pytest.mark.parametrize("method", POLICY_METHODS)
def test_it_gives_every_method_the_same_metrics(base: policy.Base, watch: Watch, method: str) -> None:
    examples = examples_for(method)
    learner, _ = make_learner(base, examples, method=method)
    metrics = loop.accumulate(learner, examples, watch)
    signals = {
        "loss",
        "accuracy",
        "margin",
        "margin_p90",
        "chosen_reward",
        "rejected_reward",
        "logp_chosen",
        "kl_chosen",
    }
    assert {*signals, "n_pairs", "tokens"} == set(metrics)
