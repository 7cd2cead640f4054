"""Optimizers and the learning rate's course. Each is one line in OPTIMIZERS or SCHEDULES, named as in the catalog."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from training import catalog

LORA_PLUS_RATIO = 16.0  # Hayou et al. 2024, arXiv 2402.12354, section 5: about 2^4

# Share of the way from the end of warm-up to the end of the run (0 <= t < 1) -> share of the peak rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """Schedule-free AdamW: Defazio et al. 2024, arXiv 2405.15682, algorithm 1.

    Gradients are taken at y, between the steps' own iterate z and the average x, which is the result: the parameters
    hold y while training, and x within `result_of` and after `finish`. The average takes the place of a falling rate.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps, "step": 0, "rates_squared": 0.0}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] += 1
            rate = group["lr"] * math.sqrt(1 - group["betas"][1] ** group["step"])  # γ_t, bias-corrected
            group["rates_squared"] += rate**2
            share = rate**2 / group["rates_squared"]  # c_{t+1}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, rate, share)

    def _update(self, y: torch.Tensor, group: dict[str, Any], rate: float, share: float) -> None:
        state = self.state[y]
        if not state:
            state |= {"z": y.clone(), "x": y.clone(), "v": torch.zeros_like(y)}
        z, x, v = state["z"], state["x"], state["v"]
        beta1, beta2 = group["betas"]
        v.mul_(beta2).addcmul_(y.grad, y.grad, value=1 - beta2)
        z.sub_(y, alpha=rate * group["weight_decay"]).addcdiv_(y.grad, v.sqrt().add_(group["eps"]), value=-rate)
        x.lerp_(z, share)
        y.copy_(z).lerp_(x, beta1)


@contextmanager
def result_of(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """A block in which the parameters are what training gives, not where it takes its gradients."""
    kept = [(parameter, parameter.detach().clone()) for parameter in _averaged(optimizer)]
    try:
        finish(optimizer)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


def finish(optimizer: torch.optim.Optimizer) -> None:
    """Puts the result into the parameters, for good. Twice is as well as once."""
    with torch.no_grad():
        for parameter, average in _averaged(optimizer).items():
            parameter.copy_(average)


def resumable(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """What the parameters hold between two steps, whatever they hold now: a signal may come while they hold the result,
    or on the way there and back. The same operations as in a step give the same bits.
    """
    places = {
        parameter: state["z"].lerp(state["x"], group["betas"][0])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if "x" in (state := optimizer.state.get(parameter, {}))
    }
    return [places.get(parameter, parameter.detach()) for parameter in parameters]


def _averaged(optimizer: torch.optim.Optimizer) -> dict[torch.Tensor, torch.Tensor]:
    return {parameter: state["x"] for parameter, state in optimizer.state.items() if "x" in state}


@dataclass(frozen=True)
class Optimizer:
    """`build(groups, params)`; groups as torch.optim takes them, each with its rate's `ratio` to the schedule's."""

    build: Callable[[list[dict[str, Any]], catalog.Common], torch.optim.Optimizer]
    ratio_of_b: float = 1.0  # rate of LoRA's B over that of its A
    is_scheduled: bool = True  # False: the rate stays at its peak after warm-up


def _adamw(groups: list[dict[str, Any]], params: catalog.Common) -> torch.optim.Optimizer:
    """AdamW: Loshchilov & Hutter 2019, arXiv 1711.05101."""
    return torch.optim.AdamW(groups, lr=params.learning_rate, weight_decay=params.weight_decay, fused=True)


def _schedule_free(groups: list[dict[str, Any]], params: catalog.Common) -> torch.optim.Optimizer:
    return ScheduleFreeAdamW(groups, lr=params.learning_rate, weight_decay=params.weight_decay)


OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": Optimizer(_adamw),
    "schedule_free": Optimizer(_schedule_free, is_scheduled=False),
    "lora_plus": Optimizer(_adamw, ratio_of_b=LORA_PLUS_RATIO),
}


def optimizer(
    parameters: list[torch.nn.Parameter], params: catalog.Common, b: Sequence[torch.nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimizer that the parameters name; `b`: those that are the B of a LoRA layer (`policy.second_matrices`)."""
    line = OPTIMIZERS[params.optimizer]
    if line.ratio_of_b == 1.0:
        return line.build([{"params": parameters, "ratio": 1.0}], params)
    fast = set(b)
    groups = [
        {"params": [p for p in parameters if p not in fast], "ratio": 1.0},
        {"params": [p for p in parameters if p in fast], "ratio": line.ratio_of_b},
    ]
    return line.build(groups, params)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["ratio"]


def learning_rate(params: catalog.Common, step: int, n_steps: int) -> float:
    """The rate of step 1 … n_steps. Never 0: a run of few steps can afford none that changes nothing."""
    n_warmup = math.floor(params.warmup * n_steps)
    if step <= n_warmup:
        return params.learning_rate * step / (n_warmup + 1)
    if not OPTIMIZERS[params.optimizer].is_scheduled:
        return params.learning_rate
    t = (step - 1 - n_warmup) / (n_steps - n_warmup)
    return params.learning_rate * SCHEDULES[params.schedule](t)
