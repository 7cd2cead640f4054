"""The one training loop: accumulate a step's gradient over packs, clip, step, report, checkpoint."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from training import catalog
from training.ml import checkpoint, optim
from training.ml.batches import PAIRS, Columns, Source
from training.ml.data import Example, Order
from training.ml.errors import TrainingError, is_out_of_memory
from training.ml.logprobs import response_logps
from training.ml.losses import Loss
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
    source: Source = PAIRS  # what kind of examples it learns from
    anchor: float = 0.0  # weight of the NLL of what should stay likely, added to every example's loss
    forward: Callable[[Pack], torch.Tensor] = field(default=None)  # type: ignore[assignment]  # scores (R,) of a pack
    keep_last: bool = False  # whether `forward` reads the responses' last tokens
    step: int = 0  # finished steps, skipped ones included
    n_skipped: int = 0
    n_skipped_in_a_row: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last step

    def __post_init__(self) -> None:
        if self.forward is None:
            self.forward = partial(response_logps, self.model)

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


def accumulate(learner: Learner, examples: Sequence[Example], watch: Watch) -> dict[str, Any]:
    """Leaves the gradient of the examples' mean weighted loss in the parameters; returns the step's metrics.

    The gradient does not depend on how the examples are packed. Out of memory, smaller packs are tried.
    """
    while True:
        learner.optimizer.zero_grad()
        try:
            return _accumulate(learner, examples, watch)
        except Exception as error:
            if not is_out_of_memory(error) or learner.budget < MIN_BUDGET:
                raise
            learner.budget //= 2
            print(f"out of memory: going on with {learner.budget} tokens a pass", flush=True)


def _accumulate(learner: Learner, examples: Sequence[Example], watch: Watch) -> dict[str, Any]:
    packs = pack(examples, learner.budget, device=learner.model.device, keep_last=learner.keep_last)
    kl = mismatch_kl(learner, examples, watch)
    seen = []
    for batch in packs:
        watch.check()
        members = [examples[i] for i in batch.items]
        logps = learner.source.gather(learner.forward(batch), batch, members, learner.reference, kl)
        losses = learner.loss(logps, learner.params)  # (B,)
        if learner.anchor:
            losses = losses + learner.anchor * logps.nll
        losses = losses * losses.new_tensor([example.weight for example in members])
        (losses.sum() / len(examples)).backward()
        with torch.no_grad():
            seen.append({"loss": losses} | learner.source.describe(logps, members, learner.beta))
    return _summarise(seen) | {"n_pairs": len(examples), "tokens": sum(batch.n_tokens for batch in packs)}


def mismatch_kl(learner: Learner, examples: Sequence[Example], watch: Watch) -> torch.Tensor:
    """() max(0, mean log-ratio of the responses to other prompts that the examples carry); 0 where none carries one.

    The estimate of KTO, Ethayarajh et al. 2024, arXiv 2402.01306, section 4.1. One for the whole step, however it is
    packed, and without gradient, as in the paper.
    """
    others = [other for example in examples for other in example.others]
    zero = torch.zeros((), device=learner.model.device)
    ratios = []
    for batch in pack(others, learner.budget, device=learner.model.device):
        watch.check()
        members = [others[i] for i in batch.items]
        with torch.no_grad():
            logps = learner.source.gather(learner.forward(batch), batch, members, learner.reference, zero)
        ratios.append(logps.logratio)
    return torch.cat(ratios).mean().clamp(min=0) if ratios else zero


def _summarise(seen: list[Columns]) -> dict[str, float | None]:
    """Means over the examples; None where there is none, or not a finite number, which JSON cannot hold."""
    columns = {name: torch.cat([part[name] for part in seen]) for name in seen[0]}
    values = {name: column.mean() for name, column in columns.items()}
    margins = columns["margin"].float()
    values["margin_p90"] = margins.quantile(0.9) if len(margins) else margins.mean()
    numbers = torch.stack([value.double() for value in values.values()]).tolist()  # the step's one wait for the device
    return {name: x if math.isfinite(x) else None for name, x in zip(values, numbers, strict=True)}
