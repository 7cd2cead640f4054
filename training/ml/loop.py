"""The one training loop: accumulate a step's gradient over packs, clip, step, report, checkpoint."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from training import catalog
from training.ml import checkpoint, optim
from training.ml.data import Order, Pair
from training.ml.errors import TrainingError, is_out_of_memory
from training.ml.logprobs import response_logps
from training.ml.losses import Loss, PairLogps
from training.ml.progress import TRAIN_COST, Progress
from training.ml.rows import Pack, pack
from training.ml.scores import MIN_BUDGET, Scores
from training.ml.watch import Watch

MAX_SKIPPED_IN_A_ROW = 5
CHECKPOINT_SECONDS = 30.0


@dataclass
class Learner:
    """Everything that changes while a run learns, and what it learns with."""

    model: PreTrainedModel
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    loss: Loss
    params: catalog.Common
    reference: Scores
    budget: int  # tokens per pass
    step: int = 0  # finished steps, skipped ones included
    n_skipped: int = 0
    n_skipped_in_a_row: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last step

    @property
    def beta(self) -> float:
        """What turns a log-ratio into a reward; 1 for a method that has none."""
        return getattr(self.params, "beta", 1.0)


def train(
    learner: Learner, order: Order, folder: Path, identity: dict[str, Any], watch: Watch, progress: Progress
) -> None:
    """Steps learner.step + 1 … order.n_steps. Appends to folder/metrics.jsonl and leaves checkpoints in folder."""
    saved_at = time.monotonic()
    while learner.step < order.n_steps:
        since = time.monotonic()
        metrics = take_step(learner, order, folder, watch)
        left = progress.did(TRAIN_COST * metrics["tokens"], since)
        watch.report(is_due=True, step=learner.step, n_steps=order.n_steps, seconds_left=left)
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            checkpoint.save(folder, learner, identity, watch)
            saved_at = time.monotonic()


def append_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics, allow_nan=False) + "\n")


def take_step(learner: Learner, order: Order, folder: Path, watch: Watch) -> dict[str, Any]:
    """One optimizer step and its line in folder/metrics.jsonl: both or neither, whatever signal comes.

    A non-finite loss or gradient skips the step; too many in a row raise TrainingError.
    """
    since = time.monotonic()
    step = learner.step + 1
    rate = optim.learning_rate(learner.params, step, order.n_steps)
    metrics = accumulate(learner, order.step(step), watch)
    with watch.shielded():
        norm = torch.nn.utils.clip_grad_norm_(learner.parameters, learner.params.max_grad_norm)
        is_finite = bool(torch.isfinite(norm)) and metrics["loss"] is not None
        if is_finite:
            for group in learner.optimizer.param_groups:
                group["lr"] = rate
            learner.optimizer.step()
        learner.step = step
        _count_skipped(learner, not is_finite)
        extra = {"step": step, "learning_rate": rate, "grad_norm": norm.item() if is_finite else None}
        learner.metrics = extra | metrics | {"is_skipped": not is_finite, "seconds": round(time.monotonic() - since, 3)}
        append_metrics(folder, learner.metrics)
    if learner.n_skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise TrainingError(
            f"The loss was not a finite number in {MAX_SKIPPED_IN_A_ROW} steps in a row; lower the learning rate.",
            "loss",
        )
    return learner.metrics


def _count_skipped(learner: Learner, is_skipped: bool) -> None:
    learner.n_skipped += is_skipped
    learner.n_skipped_in_a_row = learner.n_skipped_in_a_row + 1 if is_skipped else 0


def accumulate(learner: Learner, pairs: Sequence[Pair], watch: Watch) -> dict[str, Any]:
    """Leaves the gradient of the pairs' mean weighted loss in the parameters; returns the step's metrics.

    The gradient does not depend on how the pairs are packed. Out of memory, smaller packs are tried.
    """
    while True:
        learner.optimizer.zero_grad()
        try:
            return _accumulate(learner, pairs, watch)
        except Exception as error:
            if not is_out_of_memory(error) or learner.budget < MIN_BUDGET:
                raise
            learner.budget //= 2
            print(f"out of memory: going on with {learner.budget} tokens a pass", flush=True)


def _accumulate(learner: Learner, pairs: Sequence[Pair], watch: Watch) -> dict[str, Any]:
    packs = pack(pairs, learner.budget, device=learner.model.device)
    seen = []
    for batch in packs:
        watch.check()
        members = [pairs[i] for i in batch.items]
        logps = pair_logps(response_logps(learner.model, batch), batch, members, learner.reference)
        weights = torch.tensor([pair.weight for pair in members], device=logps.label.device)
        losses = learner.loss(logps, learner.params) * weights  # (B,)
        (losses.sum() / len(pairs)).backward()
        seen.append(_describe(losses, logps, learner.beta))
    return _mean(torch.cat(seen)) | {"n_pairs": len(pairs), "tokens": sum(batch.n_tokens for batch in packs)}


def pair_logps(scores: torch.Tensor, batch: Pack, pairs: Sequence[Pair], reference: Scores) -> PairLogps:
    """scores (R,) of the pack's responses -> those of the pairs (B,), beside the reference's."""

    def new(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=scores.dtype, device=scores.device)

    def where(response: str) -> list[int]:
        return [batch.order[pair.prompt, getattr(pair, response)] for pair in pairs]

    return PairLogps(
        policy_chosen=scores[where("chosen")],
        policy_rejected=scores[where("rejected")],
        reference_chosen=new([reference[pair.prompt, pair.chosen] for pair in pairs]),
        reference_rejected=new([reference[pair.prompt, pair.rejected] for pair in pairs]),
        n_chosen=new([len(pair.chosen) for pair in pairs]),
        label=new([pair.label for pair in pairs]),
    )


METRICS = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "logp_chosen")


def _describe(losses: torch.Tensor, logps: PairLogps, beta: float) -> torch.Tensor:
    """(B, M): what METRICS names, per pair."""
    with torch.no_grad():
        gap = logps.logratio_gap
        accuracy = (gap > 0).to(gap.dtype) + 0.5 * (gap == 0)  # undecided: half right
        rewards = beta * logps.chosen_logratio, beta * logps.rejected_logratio
        return torch.stack([losses, accuracy, beta * gap, *rewards, logps.policy_chosen], dim=1)


def _mean(rows: torch.Tensor) -> dict[str, float | None]:
    """Means over pairs; None where one is not a finite number, which JSON cannot hold."""
    values = rows.mean(0)
    finite = torch.isfinite(values).tolist()
    return {name: value if ok else None for name, value, ok in zip(METRICS, values.tolist(), finite, strict=True)}
