"""What all attempts have in common."""

from pathlib import Path

import pytest
import torch

from tests.training.ml.cases import line, read_json, read_metrics, write_attempt, write_snapshot
from training.ml import train
from training.ml.attempt import BUDGET


def budget_of(attempt: Path) -> int:
    """Tokens at a time, as its last checkpoint has them."""
    (left,) = attempt.glob("checkpoint-*")
    return int(torch.load(left / "state.pt", weights_only=True)["budget"])


@pytest.mark.parametrize("method", ["dpo", "reward_model"])
def test_it_takes_less_at_a_time_after_every_loss(tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    write_snapshot(tmp_path / "snapshot", [line(i) for i in range(8)], [line(i) for i in range(100, 104)])
    first = write_attempt(tmp_path, tiny_model_dir, 1, method=method, params={"lora_rank": 4})
    assert train.main(first) == 0, (first / "error.json").read_text()
    assert budget_of(first) == BUDGET
    (left,) = first.glob("checkpoint-*")
    second = write_attempt(tmp_path, tiny_model_dir, 2, method=method, params={"lora_rank": 4}, budget_halvings=2)
    assert train.main(second) == 0, (second / "error.json").read_text()
    assert budget_of(second) == BUDGET // 4
    third = write_attempt(
        tmp_path, tiny_model_dir, 3, method=method, params={"lora_rank": 4}, budget_halvings=1, resume=str(left)
    )
    assert train.main(third) == 0, (third / "error.json").read_text()
    assert budget_of(third) == BUDGET // 2, "the checkpoint is from before the loss"


@pytest.mark.parametrize("mode", ["act", "watch"])
def test_it_marks_the_heldout_pairs_that_the_monitor_went_by(tiny_model_dir: Path, tmp_path: Path, mode: str) -> None:
    heldout = [line(i) for i in range(100, 130)]
    write_snapshot(tmp_path / "snapshot", [line(i) for i in range(32)], heldout)
    params = {"lora_rank": 4, "epochs": 4.0, "monitor": mode, "layers": "top_half"}
    attempt = write_attempt(tmp_path, tiny_model_dir, 1, params=params)
    assert train.main(attempt) == 0, (attempt / "error.json").read_text()
    assert any(step["heldout_accuracy"] is not None for step in read_metrics(attempt) if "heldout_accuracy" in step)
    steered = [row["pair"] for row in read_json(attempt / "evaluation.json")["heldout"] if row["steered"]]
    if mode == "watch":
        assert steered == []
    else:
        assert 8 <= len(steered) < len(heldout)
        assert steered == [f"pair-{100 + i}" for i in range(len(steered))]
