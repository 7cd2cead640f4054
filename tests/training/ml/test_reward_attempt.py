"""Whole runs that make a reward model, on the tiny model, and what is read of their folders."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM

from tests.training.ml.cases import (
    line,
    make_learner,
    read_json,
    read_metrics,
    shake,
    some_pairs,
    write_attempt,
    write_snapshot,
)
from training.ml import policy, reward, train
from training.ml.errors import TrainingError
from training.ml.logprobs import response_logps
from training.ml.progress import Progress
from training.ml.rows import pack
from training.ml.scores import Alone, Memory
from training.ml.watch import Watch

PARAMS = {"epochs": 6.0, "learning_rate": 0.003, "start": "base"}


def tie(number: int) -> dict[str, Any]:
    """Two long responses."""
    return line(number, rejected=line(number + 1000)["chosen"], label=0.5, tie_share=1.0)


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of people who prefer the longer response, and now and then call a tie: the root of its run."""
    root = tmp_path_factory.mktemp("run")
    heldout = [line(i) for i in range(100, 112)] + [tie(i) for i in range(112, 114)]
    write_snapshot(root / "snapshot", [line(i) for i in range(24)] + [tie(i) for i in range(30, 33)], heldout)
    attempt = write_attempt(root, tiny_model_dir, method="reward_model", params=PARAMS)
    assert train.main(attempt) == 0, (attempt / "error.json").read_text()
    return root


def card(root: Path) -> dict:
    return read_json(root / "attempt-1" / "reward_model" / "reward.json")


def test_it_starts_from_equal_rewards_and_learns(finished: Path) -> None:
    metrics = read_metrics(finished / "attempt-1")
    losses, n_epoch = [one["loss"] for one in metrics], len(metrics) // 6
    assert metrics[0]["margin"] == 0.0
    assert sum(losses[-n_epoch:]) < 0.75 * sum(losses[:n_epoch])
    assert metrics[-1]["accuracy"] > 0.9
    assert all(one["chosen_reward"] is not None and "logp_chosen" not in one for one in metrics)


def test_it_leaves_a_calibrated_reward_model(finished: Path) -> None:
    found = card(finished)
    assert found["n_heldout"] == found["calibration"]["before"]["n"] == 12
    assert found["accuracy"] > 0.8
    assert 0 < found["temperature"] < math.inf
    assert found["tie_theta"] > 1
    assert found["std"] > 0
    assert found["min"] <= found["mean"] <= found["max"]
    assert found["ties"]["observed"] == pytest.approx(2 / 14)
    assert 0 < found["ties"]["predicted"] < 1
    assert read_json(finished / "attempt-1" / "result.json")["n_pairs"] == 27
    files = {path.name for path in (finished / "attempt-1" / "reward_model").rglob("*") if path.is_file()}
    assert files == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "manifest.json",
        "head.safetensors",
        "reward.json",
    }


def test_it_gives_the_margins_in_logits(finished: Path) -> None:
    rows = read_json(finished / "attempt-1" / "evaluation.json")["heldout"]
    assert [row["pair"] for row in rows][:2] == ["pair-100", "pair-101"]
    assert len(rows) == 12  # ties have no right side
    assert all(row["incumbent_margin"] == 0 for row in rows)
    right = sum(row["margin"] > 0 for row in rows) / 12
    assert right == pytest.approx(card(finished)["accuracy"])


@pytest.fixture
def judge(finished: Path, base32: policy.Base) -> reward.Judge:
    return reward.load(base32, finished / "attempt-1" / "reward_model")


def score(judge: reward.Judge, items: list[Alone], cache: Path) -> list[float]:
    cache.mkdir(exist_ok=True)
    scores = reward.score(judge, items, cache, 512, Watch(cache, 1), Progress())
    return [scores[item.prompt, item.response] for item in items]


def test_it_scores_like_peft_with_the_head_by_hand(
    finished: Path, judge: reward.Judge, tiny_model_dir: Path, tmp_path: Path
) -> None:
    folder = finished / "attempt-1" / "reward_model"
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    stock = PeftModel.from_pretrained(plain, folder / "adapter")
    weight = load_file(folder / "head.safetensors")["weight"][0]
    items = [Alone(pair.prompt, response) for pair in some_pairs(5) for response in pair.responses]
    found = card(finished)
    expected = []
    for item in items:
        with torch.no_grad():
            hidden = stock(torch.tensor([item.prompt + item.response]), output_hidden_states=True).hidden_states[-1]
        expected.append(((hidden[0, -1] @ weight).item() - found["mean"]) / found["temperature"])
    assert score(judge, items, tmp_path) == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_it_computes_no_score_twice(judge: reward.Judge, tmp_path: Path) -> None:
    items = [Alone(pair.prompt, pair.chosen) for pair in some_pairs()]
    first = score(judge, items, tmp_path)
    memory = reward.remember(judge.base, judge.sha256, tmp_path)
    assert all(memory.get(item.prompt, item.response) is not None for item in items)
    with torch.no_grad():
        judge.head.weight.zero_()  # whatever is computed from here on is wrong
    assert score(judge, items, tmp_path) == first
    other = Memory(tmp_path, "another reward model")
    assert all(other.get(item.prompt, item.response) is None for item in items)


def test_it_leaves_a_policy_on_the_same_base_as_it_was(finished: Path, base32: policy.Base, tmp_path: Path) -> None:
    pairs = some_pairs()
    learner, model = make_learner(base32, pairs)
    shake(model)
    (batch,) = pack(pairs, 512)
    before = response_logps(base32.model, batch).detach()
    judge = reward.load(base32, finished / "attempt-1" / "reward_model")
    assert response_logps(base32.model, batch).tolist() == before.tolist()
    score(judge, [Alone(pair.prompt, pair.chosen) for pair in pairs], tmp_path)
    assert response_logps(base32.model, batch).tolist() == before.tolist()
    assert [id(p) for p in policy.parameters(model)] == [id(p) for p in learner.parameters]
    alone = policy.load_base(base32.folder, dtype=torch.float32)
    again = reward.load(alone, finished / "attempt-1" / "reward_model")
    items = [Alone(pair.prompt, pair.rejected) for pair in pairs]
    assert score(again, items, tmp_path / "a") == pytest.approx(score(judge, items, tmp_path / "b"), abs=1e-5)


def test_it_is_compared_with_the_one_in_use(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "snapshot", tmp_path / "snapshot")
    attempt = write_attempt(
        tmp_path,
        tiny_model_dir,
        method="reward_model",
        params=PARAMS | {"epochs": 0.1},
        reward_model=str(finished / "attempt-1" / "reward_model"),
    )
    assert train.main(attempt) == 0
    rows = read_json(attempt / "evaluation.json")["heldout"]
    before = read_json(finished / "attempt-1" / "evaluation.json")["heldout"]
    assert [row["incumbent_margin"] for row in rows] == pytest.approx([row["margin"] for row in before], abs=1e-3)
    assert [row["margin"] for row in rows] != [row["incumbent_margin"] for row in rows]


@pytest.mark.parametrize("ties", ["learned", "half"])
def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_happened(
    finished: Path, tiny_model_dir: Path, tmp_path: Path, ties: str
) -> None:
    shutil.copytree(finished / "snapshot", tmp_path / "snapshot")
    params = PARAMS | {"ties": ties, "epochs": 1.0}
    whole = write_attempt(tmp_path, tiny_model_dir, 1, method="reward_model", params=params)
    assert train.main(whole) == 0
    stopped = write_attempt(tmp_path, tiny_model_dir, 2, method="reward_model", params=params)
    n_taken = count()

    def stop(*_args: object) -> None:
        if next(n_taken) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = register_optimizer_step_post_hook(stop)
    try:
        assert train.main(stopped) == 3
    finally:
        handle.remove()
    (left,) = stopped.glob("checkpoint-*")
    resumed = write_attempt(tmp_path, tiny_model_dir, 3, method="reward_model", params=params, resume=str(left))
    assert train.main(resumed) == 0
    assert [one["step"] for one in read_metrics(resumed)] == [5, 6, 7]
    for name in ("head.safetensors", "adapter/adapter_model.safetensors", "reward.json"):
        assert (resumed / "reward_model" / name).read_bytes() == (whole / "reward_model" / name).read_bytes()


def broken(folder: Path, tmp_path: Path, change: Callable[[Path], None]) -> Path:
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def rewrite(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        known = json.loads((folder / "reward.json").read_text())
        (folder / "reward.json").write_text(json.dumps(known | values))

    return change


def head_of(tensors: dict[str, torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: save_file(tensors, folder / "head.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        rewrite(temperature=0),
        rewrite(temperature=math.nan),
        rewrite(mean="much"),
        rewrite(base_sha256="0" * 64),
        head_of({"weight": torch.zeros(1, 63)}),
        head_of({"weight": torch.full((1, 64), math.nan)}),
        head_of({"weight": torch.zeros(1, 64), "more": torch.zeros(1)}),
        lambda folder: (folder / "head.safetensors").unlink(),
        lambda folder: (folder / "head.safetensors").write_bytes(b"nothing"),
        lambda folder: (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"nothing"),
    ],
)
def test_it_says_that_a_reward_model_is_broken(
    finished: Path, base32: policy.Base, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = broken(finished / "attempt-1" / "reward_model", tmp_path, change)
    with pytest.raises(TrainingError, match="The reward model broken cannot be loaded"):
        reward.load(base32, folder)
