"""What a run is examined on every few steps besides its own batches: held-out pairs, and what the model writes by now.

An exam costs a small share of the training between two of them. The pairs, prompts and random numbers are the same each
time, so that two exams differ by the model alone. Entropy needs no pass over the vocabulary: it is the mean surprise of
what was sampled.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from training.ml import behaviour, optim, samples
from training.ml.data import TIE, Order, Pair, end_of_turn
from training.ml.logprobs import response_logps, token_logps
from training.ml.progress import TRAIN_COST
from training.ml.rows import Pack, Tokens, count_tokens, pack
from training.ml.scores import Alone
from training.ml.signals import Limits
from training.ml.trunk import Trunk

if TYPE_CHECKING:
    from training.ml.loop import Learner

N_PAIRS, N_PROMPTS, N_TOKENS = 24, 4, 32
LEAST_PAIRS = 8  # fewer say nothing
SHARE = 0.05  # of the training's cost, for each of the two kinds
LEAST_STEPS = Limits.exam_gap  # between two exams
DECODING = 64  # a step of generation takes as long as a forward pass of so many tokens (2 cores, 135M, measured)
SEED = 0


@dataclass(frozen=True)
class Writer:
    """Who writes fresh samples: a policy, whose adapter can be switched off for the reference's opinion of them."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    trunk: Trunk | None = None  # what lies below the policy's adapter


@dataclass(frozen=True)
class Exams:
    pairs: list[Pair]
    prompts: list[Tokens]
    writer: Writer | None  # None: a reward model writes nothing
    heldout_every: int
    fresh_every: int

    def examine(self, learner: "Learner", step: int, *, is_extra: bool = False) -> dict[str, Any]:
        """Figures of the parameters before the update of `step`; {} when no exam is due. `is_extra`: both kinds now."""
        figures = self.heldout(learner) if is_extra or (step - 1) % self.heldout_every == 0 else {}
        is_broken = figures.get("heldout_accuracy", 0.0) is None
        if self.writer and self.prompts and not is_broken and (is_extra or (step - 1) % self.fresh_every == 0):
            with torch.no_grad(), optim.result_of(learner.optimizer):
                figures |= fresh(learner, self.prompts, self.writer)
        return figures

    def heldout(self, learner: "Learner") -> dict[str, Any]:
        with torch.no_grad(), optim.result_of(learner.optimizer):
            return heldout(learner, self.pairs, self.writer) if self.pairs else {}


def shown(figures: dict[str, Any]) -> dict[str, Any]:
    """An exam as the metrics have it: what is one figure as it is, of a list of differences the mean."""
    excess = figures.get("length_excess")
    found = {name: value for name, value in figures.items() if not isinstance(value, list)}
    found |= {"length_bias": sum(excess) / len(excess)} if excess else {}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}


def prepare(order: Order, heldout: Sequence[Pair], writer: Writer | None, budget: int) -> Exams:
    """The first decided held-out pairs and their prompts: as many, and as often, as their share of the cost allows."""
    visits = order.n_visits / len(order.pairs)
    work = SHARE * TRAIN_COST * count_tokens(order.pairs, budget) * visits  # in tokens, in the whole run
    decided = [pair for pair in heldout if pair.label != TIE][:N_PAIRS]
    while decided and count_tokens(decided, budget) > work:
        decided.pop()
    decided = decided if len(decided) >= LEAST_PAIRS else []
    prompts = list(dict.fromkeys(example.prompt for example in [*heldout, *order.pairs]))[:N_PROMPTS]
    fresh_cost = N_TOKENS * DECODING + 3 * sum(len(prompt) + N_TOKENS for prompt in prompts)  # writes, scores twice
    return Exams(
        pairs=decided,
        prompts=prompts if writer and fresh_cost <= work else [],
        writer=writer,
        heldout_every=_interval(count_tokens(decided, budget), work / order.n_steps),
        fresh_every=_interval(fresh_cost, work / order.n_steps),
    )


def _interval(exam_cost: float, allowed_a_step: float) -> int:
    return max(LEAST_STEPS, round(exam_cost / allowed_a_step))


def heldout(learner: "Learner", pairs: list[Pair], writer: Writer | None) -> dict[str, Any]:
    """`heldout_scores`: the probability given to each pair's label, 1/2 where nothing is learned yet."""
    gaps: dict[int, float] = {}
    ends: dict[tuple[Tokens, Tokens], float] = {}
    for batch in pack(pairs, learner.budget, device=learner.model.device, keep_last=learner.keep_last):
        if writer:
            scores, at_end = _score_and_ends(learner.model, batch, writer.trunk)
            ends |= at_end
        else:
            scores = learner.forward(batch).tolist()
        gaps |= {i: _gap(pairs[i], batch, scores, learner) for i in batch.items}
    if not all(map(math.isfinite, gaps.values())):
        return {"heldout_accuracy": None}
    towards = [gaps[i] if pair.label > TIE else -gaps[i] for i, pair in enumerate(pairs)]
    figures = {
        "heldout_accuracy": sum((gap > 0) + 0.5 * (gap == 0) for gap in towards) / len(towards),
        "heldout_scores": torch.tensor(towards, dtype=torch.float64).sigmoid().tolist(),
        "length_excess": [_excess(pair, gaps[i]) for i, pair in enumerate(pairs) if gaps[i]],
    }
    if writer:
        end = end_of_turn(writer.tokenizer)
        figures["end_logps"] = [ends[key] for key in sorted(ends) if key[1][-1] == end]
    return figures


def _score_and_ends(
    model: PreTrainedModel, batch: Pack, trunk: Trunk | None
) -> tuple[list[float], dict[tuple[Tokens, Tokens], float]]:
    """(R,) log-probabilities of the responses, and of the last token of each."""
    logps = token_logps(model, batch, trunk=trunk)  # (N,)
    sums = torch.zeros(batch.n_responses, dtype=logps.dtype, device=logps.device).index_add(0, batch.owners, logps)
    last = torch.bincount(batch.owners, minlength=batch.n_responses).cumsum(0) - 1  # (R,) targets lie in this order
    return sums.tolist(), dict(zip(batch.order, logps[last].tolist(), strict=True))


def _gap(pair: Pair, batch: Pack, scores: list[float], learner: "Learner") -> float:
    """Between the rewards of the pair's responses."""

    def reward(response: Tokens) -> float:
        sequence = pair.prompt, response
        logratio = scores[batch.order[sequence]] - learner.reference.get(sequence, 0.0)
        return float(learner.params.reward.of(logratio, len(response)))

    return reward(pair.chosen) - reward(pair.rejected)


def _excess(pair: Pair, gap: float) -> float:
    """1 where the model prefers the longer response and people the shorter, −1 the other way round, else 0."""
    longer = len(pair.chosen) - len(pair.rejected)
    if not longer:
        return 0.0
    return ((gap * longer > 0) - ((pair.label > TIE) == (longer > 0))) * 1.0


def fresh(learner: "Learner", prompts: list[Tokens], writer: Writer) -> dict[str, Any]:
    """Sampled by the policy: mean log π − log π_ref per token (the KL's estimate), entropy, lengths, repetition."""
    try:
        written = samples.generate(learner.model, writer.tokenizer, prompts, N_TOKENS, SEED)
    except samples.NotFinite:
        return {"kl_fresh": math.inf}
    items = [Alone(prompt, tuple(ids)) for prompt, ids in zip(prompts, written, strict=True) if ids]
    if not items:
        return {}
    policy = _total(learner.model, items, learner.budget)
    with writer.model.disable_adapter():
        reference = _total(learner.model, items, learner.budget)
    n_tokens = sum(len(item.response) for item in items)
    return {
        "kl_fresh": (policy - reference) / n_tokens,
        "entropy": -policy / n_tokens,
        "fresh_length": n_tokens / len(items),
        "fresh_lengths": [max(1, len(ids)) for ids in written],
        "repetition": behaviour.repetition([item.response for item in items]),
    }


def _total(model: PreTrainedModel, items: list[Alone], budget: int) -> float:
    return sum(response_logps(model, batch).sum().item() for batch in pack(items, budget, device=model.device))
