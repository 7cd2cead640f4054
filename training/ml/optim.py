"""AdamW and the learning rate's course. A schedule is one line in SCHEDULES, named as in the catalog."""

import math
from collections.abc import Callable

import torch

from training import catalog

# Share of the way from the end of warm-up to the end of the run (0 <= t < 1) -> share of the peak rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


def learning_rate(params: catalog.Common, step: int, n_steps: int) -> float:
    """The rate of step 1 … n_steps. Never 0: a run of few steps can afford none that changes nothing."""
    n_warmup = math.floor(params.warmup * n_steps)
    if step <= n_warmup:
        return params.learning_rate * step / (n_warmup + 1)
    t = (step - 1 - n_warmup) / (n_steps - n_warmup)
    return params.learning_rate * SCHEDULES[params.schedule](t)


def optimizer(parameters: list[torch.nn.Parameter], params: catalog.Common) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101)."""
    return torch.optim.AdamW(parameters, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)
