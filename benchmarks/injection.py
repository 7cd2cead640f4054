"""Faults to plant into a training run, each a function of the learner and the order of its pairs. Torch, no Django."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from training.ml.data import Order, Pair
from training.ml.loop import Learner
from training.ml.rows import Pack

Inject = Callable[[Learner, Order, int], Order]  # (learner, order, first step that is faulty) -> the order to train on


def clean(learner: Learner, order: Order, at: int) -> Order:
    return order


def nan_gradient(learner: Learner, order: Order, at: int) -> Order:
    """One step's gradient is not a number."""
    return _scale_gradient(learner, order, math.nan, at)


def huge_gradient(learner: Learner, order: Order, at: int) -> Order:
    """One step's gradient is a thousand times what it should be; clipping must be wide enough to let it through."""
    return _scale_gradient(learner, order, 1000.0, at)


def _scale_gradient(learner: Learner, order: Order, factor: float, at: int) -> Order:
    forward = learner.forward

    def faulty(batch: Pack) -> torch.Tensor:
        scores = forward(batch)
        if learner.step + 1 == at and scores.requires_grad:
            scores.register_hook(lambda gradient: gradient * factor)
        return scores

    learner.forward = faulty
    return order


def fast_rate(learner: Learner, order: Order, at: int) -> Order:
    """From then on the learning rate is fifty times what the schedule says."""

    def speed_up(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if learner.step + 1 >= at:
            for group in optimizer.param_groups:
                group["lr"] *= 50

    learner.optimizer.register_step_pre_hook(speed_up)
    return order


class Changed(Order):
    """The order, with every pair changed from a step on."""

    def __init__(self, order: Order, change: Callable[[Pair], Pair], at: int) -> None:
        self.__dict__ |= vars(order)
        self.change, self.at = change, at

    def step(self, step: int) -> list[Pair]:  # type: ignore[override]
        pairs = super().step(step)
        return [self.change(pair) for pair in pairs] if step >= self.at else pairs  # type: ignore[arg-type, return-value]


def flipped_labels(learner: Learner, order: Order, at: int) -> Order:
    """From then on every judgment is the opposite of what was meant."""
    return Changed(order, flip, at)


def length_hack(learner: Learner, order: Order, at: int) -> Order:
    """From then on the longer response is rewarded, whatever it says."""
    return Changed(order, lambda pair: pair if len(pair.chosen) >= len(pair.rejected) else flip(pair), at)


def flip(pair: Pair) -> Pair:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen)


FAULTS: dict[str, Inject] = {
    f.__name__: f for f in (nan_gradient, huge_gradient, fast_rate, flipped_labels, length_hack)
}
