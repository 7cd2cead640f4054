"""Our step against TRL's own trainers on the same batch, model and adapter: loss and gradient, reference included.

TRL's code runs as it is: its collators pad, its trainers compute the reference with the adapter off. Its head computes
in fp32, ours in the model's float64, so they agree to fp32.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from tests.training.ml import checks
from tests.training.ml.cases import exact_norms, line, make_learner, pair, shake, some_pairs, write_snapshot
from training import catalog
from training.ml import data, loop, losses, policy, scores
from training.ml.data import Example, Single
from training.ml.loop import Learner
from training.ml.progress import Progress
from training.ml.scores import Memory, Scores
from training.ml.watch import Watch

PLACEHOLDER = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
THUMBS = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "c", "completion": "d", "label": False}]
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32, use_rslora=True, target_modules="all-linear")
ARGUMENTS: dict[str, Any] = {
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_length": None,
}

# Method, our parameters -> what TRL calls it.
DPO_FAMILY = [
    ("dpo", {"beta": 0.3}, {"loss_type": ["sigmoid"], "beta": 0.3}),
    ("robust", {"flip_rate": 0.2}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
    ("ipo", {"beta": 0.2, "per_token": True}, {"loss_type": ["ipo"], "beta": 0.2}),
    ("hinge", {}, {"loss_type": ["hinge"]}),
    ("dpo_norm", {"beta": 4.0}, {"loss_type": ["sigmoid_norm"], "beta": 4.0}),
]


def dpo_trainer(model_dir: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, **options: Any) -> DPOTrainer:
    model = exact_norms(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64))
    config = DPOConfig(output_dir=str(folder), **ARGUMENTS, **options)
    rows = Dataset.from_list(PLACEHOLDER)
    return DPOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=LORA)


def kto_trainer(model_dir: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, **options: Any) -> KTOTrainer:
    model = exact_norms(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64))
    config = KTOConfig(output_dir=str(folder), per_device_train_batch_size=2, **ARGUMENTS, **options)
    rows = Dataset.from_list(THUMBS)
    return KTOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=LORA)


def preferences(pairs: Sequence[data.Pair]) -> list[dict[str, Any]]:
    parts = ("prompt", "chosen", "rejected")
    return [{f"{part}_ids": list(getattr(one, part)) for part in parts} for one in pairs]


def thumbs(singles: Sequence[Single]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_ids": list(one.prompt),
            "completion_ids": list(one.response),
            "KL_completion_ids": list(one.mismatch or ()),
            "label": one.is_good,
        }
        for one in singles
    ]


def reference(base: policy.Base, examples: Sequence[Example], folder: Path, watch: Watch) -> Scores:
    items: list[Any] = [*examples, *(other for one in examples for other in one.others)]
    return scores.score(base.model, items, Memory(folder, "base"), budget=512, watch=watch, progress=Progress())


def agree(
    learner: Learner,
    ours: PeftModel,
    trainer: Any,
    examples: list[Any],
    rows: list[Any],
    watch: Watch,
    size: float = 0.1,
) -> None:
    """Our step and TRL's have the same loss and leave the same gradient, for adapters that are far from nothing."""
    shake(ours, size)
    checks.copy_adapter(ours, trainer.model)
    metrics = loop.accumulate(learner, examples, watch)
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=2e-5)
    for found, expected in zip(policy.parameters(ours), policy.parameters(trainer.model), strict=True):
        assert expected.grad is not None
        scale = expected.grad.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(("method", "params", "options"), DPO_FAMILY)
def test_it_steps_as_trls_dpo_trainer(
    base: policy.Base,
    tiny_model_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    watch: Watch,
    method: str,
    params: dict[str, Any],
    options: dict[str, Any],
) -> None:
    pairs = some_pairs()
    known = reference(base, pairs, tmp_path / "cache", watch)
    learner, ours = make_learner(base, pairs, method=method, reference=known, **params)
    trainer = dpo_trainer(tiny_model_dir, tmp_path / "trl", tokenizer, **options)
    agree(learner, ours, trainer, pairs, preferences(pairs), watch)


@pytest.mark.parametrize(
    ("method", "params", "options"),
    [
        ("rpo", {"nll_weight": 0.5}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
        ("sft", {}, {"loss_type": ["sft"]}),
    ],
)
def test_it_weighs_the_nll_as_trl_where_responses_are_equally_long(
    base: policy.Base,
    tiny_model_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    watch: Watch,
    method: str,
    params: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """TRL divides a batch's NLL by its tokens, the paper each response's by its own: equal for equal lengths."""
    pairs = [pair([5, 6, 7], [11, 12, 13], [14]), pair([5, 8], [21, 22, 23], [24, 25]), pair([9], [31, 32, 33], [34])]
    edits = [Single(one.id, "", one.prompt, one.chosen, True, 1.0, True) for one in pairs]
    kinds: dict[str, list[Any]] = {"pairs": pairs, "edits": edits}
    examples = kinds[catalog.get(method).source]
    known = reference(base, pairs, tmp_path / "cache", watch)
    learner, ours = make_learner(base, examples, method=method, reference=known, **params)
    trainer = dpo_trainer(tiny_model_dir, tmp_path / "trl", tokenizer, **options)
    agree(learner, ours, trainer, examples, preferences(pairs), watch)


def test_it_steps_as_trls_apo_zero_on_the_halves_of_pairs(
    base: policy.Base, tiny_model_dir: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, watch: Watch
) -> None:
    """TRL averages over pairs, we over their halves: with the weight 2 both have the same step."""
    pairs = some_pairs()
    halves = [replace(half, weight=2.0) for one in pairs for half in data.split(one)]
    known = reference(base, pairs, tmp_path / "cache", watch)
    learner, ours = make_learner(base, halves, method="apo_zero", reference=known)
    trainer = dpo_trainer(tiny_model_dir, tmp_path / "trl", tokenizer, loss_type=["apo_zero"])
    agree(learner, ours, trainer, halves, preferences(pairs), watch)


@pytest.mark.parametrize(("method", "loss_type"), [("kto", "kto"), ("apo_zero", "apo_zero_unpaired")])
def test_it_steps_as_trls_kto_trainer(
    base: policy.Base,
    tiny_model_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    watch: Watch,
    method: str,
    loss_type: str,
) -> None:
    """Good and bad responses with weights of their own, and TRL's own estimate of the KL from the same mismatches."""
    singles = data.add_mismatches([half for one in some_pairs(5) for half in data.split(one)], max_tokens=512)
    known = reference(base, singles, tmp_path / "cache", watch)
    params = {"beta": 0.2, "good_weight": 1.5, "bad_weight": 0.8}
    learner, ours = make_learner(base, singles, method=method, reference=known, **params)
    options = {"loss_type": loss_type, "beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.8}
    trainer = kto_trainer(tiny_model_dir, tmp_path / "trl", tokenizer, **options)
    rows = [row if method == "kto" else {k: v for k, v in row.items() if k[:2] != "KL"} for row in thumbs(singles)]
    agree(learner, ours, trainer, singles, rows, watch, size=0.01)
    assert loop.mismatch_kl(learner, singles, watch) > 0.001  # an estimate of 0 would prove nothing


def test_it_has_trls_odds_ratio() -> None:
    """TRL's function on the same mean log-probabilities; its NLL counts the prompt as well, so that is left out."""
    logps = replace(checks.pair_logps(1), label=torch.ones(40).double())
    trl = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    odds_ratio_loss: Any = ORPOTrainer.odds_ratio_loss  # declared for a trainer and FloatTensors, runs with these
    theirs, *_ = odds_ratio_loss(trl, logps.mean_chosen, logps.mean_rejected)
    ours = losses.orpo(logps, catalog.ORPO(odds_weight=0.3)) - logps.nll
    torch.testing.assert_close(ours.float(), -theirs, rtol=1e-4, atol=1e-5)


def test_it_has_trls_simpo() -> None:
    logps = replace(checks.pair_logps(1), label=torch.ones(40).double())
    simpo = {"loss_type": "simpo", "simpo_gamma": 0.8, "beta": 2.5, "alpha": 0.0, "label_smoothing": 0.0}
    trl = SimpleNamespace(**simpo, accelerator=SimpleNamespace(device="cpu"))
    cpo_loss: Any = CPOTrainer.cpo_loss
    theirs, *_ = cpo_loss(trl, logps.mean_chosen, logps.mean_rejected)
    torch.testing.assert_close(losses.simpo(logps, catalog.SimPO(beta=2.5, gamma=0.8)), theirs, rtol=1e-9, atol=1e-12)


def test_it_reads_a_conversation_as_trl_does(
    tiny_model_dir: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The same tokens of prompt and responses; TRL's template also renders the line break after the turn's end."""
    written = [line(i) for i in range(3)]
    ours = data.read(write_snapshot(tmp_path / "snapshot", written, []), tokenizer, 512).train
    texts = [
        {"prompt": one["messages"]}
        | {part: [{"role": "assistant", "content": one[part]}] for part in ("chosen", "rejected")}
        for one in written
    ]
    trainer = dpo_trainer(tiny_model_dir, tmp_path / "trl", tokenizer)
    assert isinstance(trainer.args, DPOConfig)
    theirs = trainer._prepare_dataset(Dataset.from_list(texts), tokenizer, trainer.args, "train")
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for found, row in zip(ours, theirs, strict=True):
        assert isinstance(found, data.Pair)
        assert list(found.prompt) == row["prompt_ids"]
        assert [*found.chosen, *newline] == row["chosen_ids"]
        assert [*found.rejected, *newline] == row["rejected_ids"]
