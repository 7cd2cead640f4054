"""Real training on the tiny model, judged by the gate: what must be refused is, and by what is wrong with it.

The tiny model's weights are random, so that every adapter disturbs its "language" far more than one of a real model does:
the rule on neutral texts is loosened here, all others are the defaults. docs/log.md has the same on the real model.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.ml.cases import line, write_attempt, write_snapshot
from training import gates
from training.ml import data, policy, scores, train
from training.ml.attempt import BUDGET
from training.ml.evidence import Examiner
from training.ml.jobs import read
from training.ml.progress import Progress
from training.ml.scores import Memory
from training.ml.watch import Watch
from training.rules import Rules

ASKED = replace(Rules(), max_perplexity_rise=0.2)
# The monitor would roll the flipped run back before there is anything to refuse: the gate stands alone here.
PARAMS = {"monitor": "off", "epochs": 4.0, "learning_rate": 0.003, "lora_rank": 4, "batch_pairs": 4}


def flipped(one: dict[str, Any]) -> dict[str, Any]:
    return one | {"chosen": one["rejected"], "rejected": one["chosen"]}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    return trained(tmp_path_factory.mktemp("good"), tiny_model_dir, [line(i) for i in range(24)])


def trained(root: Path, model: Path, pairs: list[dict[str, Any]], method: str = "dpo") -> Path:
    write_snapshot(root / "snapshot", pairs, [line(i) for i in range(100, 130)])
    attempt = write_attempt(root, model, method=method, params=PARAMS)
    assert train.main(attempt) == 0
    return attempt


def judge(attempt: Path, root: Path | None = None) -> gates.Judgement:
    """`root`: beside whose snapshot, if not the attempt's own."""
    return gates.judge(attempt, (root or attempt.parent) / "snapshot", 20, ASKED)


def refused(found: gates.Judgement) -> set[str]:
    return {guard["name"] for guard in found.evidence["guards"] if not guard["passed"]}


def test_it_passes_an_adapter_that_learned_what_people_chose(good: Path) -> None:
    found = judge(good)
    assert found.is_passed, found.verdict
    assert found.verdict.startswith("better by")
    assert found.evidence["policy"]["samples"][0]["new"] is not None


@pytest.mark.parametrize("method", ["dpo_norm", "simpo"])
def test_it_does_not_take_a_method_with_rewards_per_token_for_too_sure(
    tmp_path: Path, tiny_model_dir: Path, method: str
) -> None:
    """Half of the labels are flipped: β is 50 times DPO's, and sums would be sure of what is right half of the time."""
    mixed = [flipped(line(i)) if i % 2 else line(i) for i in range(24)]
    found = judge(trained(tmp_path, tiny_model_dir, mixed, method))
    assert {"brier", "excess"}.isdisjoint(refused(found)), found.verdict
    assert found.evidence["excess"] is not None


def test_it_refuses_one_that_was_trained_on_flipped_labels(tmp_path: Path, tiny_model_dir: Path) -> None:
    found = judge(trained(tmp_path, tiny_model_dir, [flipped(line(i)) for i in range(24)]))
    assert not found.is_passed
    assert "worse by" in found.verdict


def test_it_refuses_one_whose_weights_were_blown_up(good: Path, tmp_path: Path) -> None:
    """Twenty times the good one: it still prefers what people chose, and writes nothing that anybody can use."""
    job = read(good)
    base = policy.load_base(job.model)
    model = policy.add_incumbent(base, good / "adapter")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(20)
    with Watch(tmp_path, 1) as watch:
        evidence = _examine(job, base, model, watch)
    (tmp_path / "evaluation.json").write_text(json.dumps(evidence))
    found = judge(tmp_path, good.parent)
    assert not found.is_passed
    assert "kl" in refused(found)
    assert "moved far from the base" in found.verdict


def _examine(job: Any, base: policy.Base, model: Any, watch: Watch) -> dict[str, Any]:
    pairs = data.read(job.snapshot, base.tokenizer, job.params.max_tokens).heldout
    progress = Progress()

    def score(items: Any, memory: Memory) -> scores.Scores:
        return scores.score(base.model, items, memory, budget=BUDGET, watch=watch, progress=progress)

    def memory(who: str) -> Memory:
        return Memory(job.cache, f"{base.path_key} {who}")

    with model.disable_adapter():
        reference = score(pairs, memory("base"))
    examiner = Examiner(base, model, job, pairs, score, memory, watch, progress, BUDGET)
    return examiner.examine("scaled", reference)
