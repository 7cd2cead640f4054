"""What all attempts have in common."""

from pathlib import Path

import pytest
import torch

from tests.training.ml.cases import line, write_attempt, write_snapshot
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
