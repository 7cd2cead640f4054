"""Our loss of a reward model is TRL's: its own trainer on the same batch, with its margin and its centring."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from tests.training.ml.cases import exact_norms, line
from training.catalog import RewardModel
from training.ml import policy
from training.ml.reward_head import Head, Rewards, response_rewards, reward_model
from training.ml.rows import Tokens, pack
from training.ml.scores import Alone

MARGINS = [0.5, 0.0, 2.0, 1.0]
CENTRE = 0.03


@pytest.fixture
def peer(tiny_model_dir: Path, tmp_path: Path) -> Any:
    """TRL's trainer in float64, on four pairs."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model.config.pad_token_id = tokenizer.pad_token_id
    arguments = RewardConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=len(MARGINS),
        center_rewards_coefficient=CENTRE,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
    )
    lines = [line(i) for i in range(len(MARGINS))]
    rows = [
        {
            "prompt": one["messages"],
            "chosen": [{"role": "assistant", "content": one["chosen"]}],
            "rejected": [{"role": "assistant", "content": one["rejected"]}],
            "margin": margin,
        }
        for one, margin in zip(lines, MARGINS, strict=True)
    ]
    return RewardTrainer(
        model=exact_norms(model), args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def sequences(peer: Any, side: str) -> list[tuple[Tokens, Tokens]]:
    """What TRL feeds, cut at the end of the pair's common start into what we call prompt and response."""
    rows = list(peer.train_dataset)
    found = []
    for row in rows:
        both = zip(row["chosen_ids"], row["rejected_ids"], strict=False)
        n_shared = next(i for i, (a, b) in enumerate(both) if a != b)
        ids = row[f"{side}_ids"]
        found.append((tuple(ids[:n_shared]), tuple(ids[n_shared:])))
    return found


@pytest.mark.parametrize("centre", [0.0, CENTRE])
@pytest.mark.parametrize("has_margin", [False, True])
def test_it_has_the_loss_and_gradient_of_trl(base: policy.Base, peer: Any, centre: float, has_margin: bool) -> None:
    weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    head = Head(64, dtype=torch.float64)
    with torch.no_grad():
        peer.model.score.weight.copy_(weight)
        head.weight.copy_(weight)
    peer.args.center_rewards_coefficient = centre or None
    batch = peer.data_collator(list(peer.train_dataset))
    if not has_margin:
        del batch["margin"]
    expected = peer.compute_loss(peer.model, dict(batch))
    expected.backward()

    chosen, rejected = sequences(peer, "chosen"), sequences(peer, "rejected")
    (ours,) = pack([Alone(*one) for one in (*chosen, *rejected)], 4096, keep_last=True)
    rewards = response_rewards(base.model, head, ours)

    def of(side: list[tuple[Tokens, Tokens]]) -> torch.Tensor:
        return rewards[[ours.order[one] for one in side]]

    ones = torch.ones(len(MARGINS), dtype=torch.float64)
    margin = torch.tensor(MARGINS, dtype=torch.float64) if has_margin else 0 * ones
    people = Rewards(of(chosen), of(rejected), ones, 0 * ones, margin)
    found = reward_model(people, RewardModel(margin_scale=1.0, centre=centre)).mean()
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(head.weight.grad, peer.model.score.weight.grad, rtol=1e-9, atol=1e-12)
