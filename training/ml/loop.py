"""The one training loop: accumulate a step's gradient over packs, clip, step, report, checkpoint."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from training import catalog
from training.ml import checkpoint, exams, lanes, optim, parallel
from training.ml.batches import PAIRS, Columns, Source, gather_responses
from training.ml.data import Example, Order
from training.ml.errors import TrainingError, is_out_of_memory
from training.ml.exams import Exams
from training.ml.logprobs import response_logps
from training.ml.losses import Loss
from training.ml.monitor import Alarm, Monitor, Verdict
from training.ml.progress import TRAIN_COST, Progress
from training.ml.rows import Pack, deal, longest, pack
from training.ml.scores import MIN_BUDGET, Scores
from training.ml.watch import Watch

MAX_NON_FINITE = 5  # steps in a row
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
    n_non_finite: int = 0  # steps in a row
    monitor: Monitor = field(default_factory=Monitor)
    exams: Exams | None = None
    good: checkpoint.Good | None = None  # where a roll-back leads
    stopped: str | None = None  # why the monitor ended the run before its last step
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last step

    def __post_init__(self) -> None:
        if self.forward is None:
            self.forward = partial(response_logps, self.model)


def train(
    learner: Learner, order: Order, folder: Path, identity: dict[str, Any], watch: Watch, progress: Progress
) -> None:
    """Steps learner.step + 1 … order.n_steps. Appends to folder/metrics.jsonl and leaves checkpoints in folder."""
    saved_at = time.monotonic()
    while learner.step < order.n_steps and not learner.stopped:
        since = time.monotonic()
        metrics = take_step(learner, order, folder, watch)
        left = progress.did(TRAIN_COST * metrics["tokens"], since)
        watch.report(is_due=True, step=learner.step, n_steps=order.n_steps, seconds_left=left)
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            checkpoint.save(folder, learner, identity, watch)
            saved_at = time.monotonic()
    optim.finish(learner.optimizer)


def append_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics, allow_nan=False) + "\n")


def take_step(learner: Learner, order: Order, folder: Path, watch: Watch) -> dict[str, Any]:
    """One optimizer step and its line in folder/metrics.jsonl: both or neither, whatever signal comes.

    The monitor may skip the update, go back to an earlier state or end the run, which sets learner.stopped. Raises
    TrainingError where that leaves nothing learned, and after too many losses in a row that are not finite.
    """
    since = time.monotonic()
    step = learner.step + 1
    exam = examine(learner, step)
    metrics = accumulate(learner, order.step(step), watch)
    with watch.shielded():
        norm = torch.nn.utils.clip_grad_norm_(learner.parameters, learner.params.max_grad_norm).item()
        metrics = {"step": step, "grad_norm": norm if math.isfinite(norm) else None} | metrics
        verdict = learner.monitor.judge(metrics | exam)
        rate = optim.learning_rate(learner.params, step, order.n_steps) * learner.monitor.state.rate
        _update(learner, verdict, rate)
        learner.step = step
        alarms = [*verdict.alarms, *_close(learner, order)]
        is_finite = None not in (metrics["loss"], metrics["grad_norm"])
        learner.n_skipped += verdict.is_skipped
        learner.n_non_finite = 0 if is_finite else learner.n_non_finite + 1
        metrics |= exams.shown(exam) | {"learning_rate": rate, "is_skipped": verdict.is_skipped}
        learner.metrics = metrics | machine_figures(metrics["tokens"], since) | {"alarms": list(map(asdict, alarms))}
        append_metrics(folder, learner.metrics)
    _raise_if_nothing_is_learned(learner)
    return learner.metrics


def examine(learner: Learner, step: int) -> dict[str, Any]:
    """The exam that is due before the update of `step`, if one is, with smaller packs when out of memory."""
    if learner.exams is None or learner.monitor.mode == "off":
        return {}
    return _with_less_memory(
        learner, partial(learner.exams.examine, learner, step, is_extra=learner.monitor.is_suspicious(step))
    )


def _update(learner: Learner, verdict: Verdict, rate: float) -> None:
    """What the verdict says, with the gradient at hand."""
    if verdict.is_good or learner.good is None:
        learner.good = checkpoint.remember(learner)
    if verdict.rolls_back:
        checkpoint.go_back(learner, learner.good)
    elif not verdict.is_skipped:
        optim.set_rate(learner.optimizer, rate)
        learner.optimizer.step()
    learner.stopped = verdict.stops
    for alarm in verdict.alarms:
        print(f"step {learner.step + 1}: {alarm.message}", flush=True)


def _close(learner: Learner, order: Order) -> list[Alarm]:
    """After the last update one more exam: what it finds worse than the last good state is not what the run ends with."""
    if learner.step < order.n_steps or learner.exams is None or learner.monitor.mode != "act" or learner.stopped:
        return []
    exam = _with_less_memory(learner, partial(learner.exams.heldout, learner))
    verdict = learner.monitor.judge({"step": learner.step + 1} | exam)
    if verdict.rolls_back and learner.good:
        checkpoint.go_back(learner, learner.good)
    return verdict.alarms


def _raise_if_nothing_is_learned(learner: Learner) -> None:
    has_learned = learner.stopped and learner.good and learner.good.step
    if learner.n_non_finite >= MAX_NON_FINITE and not has_learned:
        raise TrainingError(
            f"The loss was not a finite number in {MAX_NON_FINITE} steps in a row; lower the learning rate.", "loss"
        )
    if learner.stopped and not has_learned:
        raise TrainingError(
            f"{learner.stopped} Nothing good was learned before; lower the rate or look at the judgments.", "unstable"
        )


def machine_figures(n_tokens: int, since: float) -> dict[str, Any]:
    """How fast the step begun at time.monotonic() == since was, and how much memory the process holds."""
    seconds = time.monotonic() - since
    rss_mb = round(psutil.Process().memory_info().rss / 1e6)
    return {"seconds": round(seconds, 3), "tokens_per_s": round(n_tokens / max(seconds, 1e-6), 1), "rss_mb": rss_mb}


def accumulate(learner: Learner, examples: Sequence[Example], watch: Watch) -> dict[str, Any]:
    """Leaves the gradient of the examples' mean weighted loss in the parameters; returns the step's metrics.

    The gradient does not depend on how the examples are packed. Out of memory, smaller packs are tried.
    """
    found = _with_less_memory(learner, partial(_accumulate, learner, examples, watch))
    parallel.sum_gradients(learner.parameters)
    columns = found["columns"]
    if parallel.size() > 1:  # each process has its own device
        columns = [{name: column.cpu() for name, column in part.items()} for part in columns]
    return _summarise(parallel.gather(columns)) | {"n_pairs": len(examples), "tokens": found["tokens"]}


def _with_less_memory(learner: Learner, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """work(), again with half the tokens a pass for as long as memory does not suffice."""
    while True:
        result = None
        try:
            result = work()
        except Exception as error:
            if not is_out_of_memory(error) or learner.budget < MIN_BUDGET:
                raise
        if not parallel.anywhere(result is None):
            return result or {}
        learner.budget //= 2
        print(f"out of memory: going on with {learner.budget} tokens a pass", flush=True)


def _accumulate(learner: Learner, examples: Sequence[Example], watch: Watch) -> dict[str, Any]:
    """This process's share of the gradient; `columns` of its packs."""
    learner.optimizer.zero_grad()
    device = learner.model.device
    n_lanes = lanes.count(device, learner.budget, longest(examples, keep_last=learner.keep_last))
    kl = mismatch_kl(learner, examples, watch)
    shares = deal(
        examples, learner.budget // n_lanes, parallel.size() * n_lanes, device=device, keep_last=learner.keep_last
    )
    own = shares[parallel.rank() * n_lanes :][:n_lanes]
    works = [partial(_gradient, learner, examples, share, kl, watch) for share in own if share]
    gradients, columns = zip(*lanes.run(works, n_lanes), strict=True) if works else ((), ())
    for parameter, *parts in zip(learner.parameters, *gradients, strict=True):
        for part in parts:  # in the lanes' order: the sum is the same each time
            parameter.grad = part if parameter.grad is None else parameter.grad.add_(part)
    n_tokens = sum(batch.n_tokens for share in shares for batch in share)
    return {"columns": [c for part in columns for c in part], "tokens": n_tokens}


def _gradient(
    learner: Learner, examples: Sequence[Example], packs: list[Pack], kl: torch.Tensor, watch: Watch
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The packs' gradient of the examples' mean weighted loss, and what is to be told of each pack."""
    anchor = learner.anchor + learner.monitor.state.anchor
    total = [torch.zeros_like(parameter) for parameter in learner.parameters]
    seen = []
    for batch in packs:
        watch.check()
        members = [examples[i] for i in batch.items]
        logps = learner.source.gather(learner.forward(batch), batch, members, learner.reference, kl)
        losses = learner.loss(logps, learner.params)  # (B,)
        if anchor:
            losses = losses + anchor * logps.nll
        losses = losses * losses.new_tensor([example.weight for example in members])
        found = torch.autograd.grad(losses.sum() / len(examples), learner.parameters)
        torch._foreach_add_(total, list(found))
        with torch.no_grad():
            seen.append({"loss": losses.detach()} | learner.source.describe(logps, members, learner.params.reward))
    return total, seen


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
            logps = gather_responses(learner.forward(batch), batch, members, learner.reference, zero)
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
