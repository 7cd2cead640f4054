"""Every loss as its paper writes it, in float64 and nothing cleverer than exp and log: what the trainer is held to.

A formula takes the bare numbers of one batch (no property of theirs is used) and the method's parameters.
"""

import math
from typing import Any

import torch
from torch import exp, log

from training.ml.losses import PairLogps, ResponseLogps


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + exp(-x))


def gap(x: PairLogps) -> torch.Tensor:
    return (x.policy_chosen - x.reference_chosen) - (x.policy_rejected - x.reference_rejected)


def mean_gap(x: PairLogps) -> torch.Tensor:
    chosen = (x.policy_chosen - x.reference_chosen) / x.n_chosen
    return chosen - (x.policy_rejected - x.reference_rejected) / x.n_rejected


def nll(x: PairLogps) -> torch.Tensor:
    return -(x.label * x.policy_chosen / x.n_chosen + (1 - x.label) * x.policy_rejected / x.n_rejected)


def bradley_terry(g: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return -(p * log(sigmoid(g)) + (1 - p) * log(sigmoid(-g)))


def dpo(x: PairLogps, params: Any) -> torch.Tensor:
    return bradley_terry(params.beta * gap(x) - params.margin_scale * x.margin, x.label)


def cdpo(x: PairLogps, params: Any) -> torch.Tensor:
    g = params.beta * gap(x) - params.margin_scale * x.margin
    flipped = params.flip_rate
    return (1 - flipped) * bradley_terry(g, x.label) + flipped * bradley_terry(g, 1 - x.label)


def robust(x: PairLogps, params: Any) -> torch.Tensor:
    g = params.beta * gap(x) - params.margin_scale * x.margin
    flipped = params.flip_rate
    right, wrong = (1 - flipped) / (1 - 2 * flipped), flipped / (1 - 2 * flipped)
    return right * bradley_terry(g, x.label) - wrong * bradley_terry(g, 1 - x.label)


def ipo(x: PairLogps, params: Any) -> torch.Tensor:
    h = mean_gap(x) if params.per_token else gap(x)
    return x.label * (h - 0.5 / params.beta) ** 2 + (1 - x.label) * (-h - 0.5 / params.beta) ** 2


def hinge(x: PairLogps, params: Any) -> torch.Tensor:
    g = params.beta * gap(x) - params.margin_scale * x.margin
    zero = torch.zeros_like(g)
    return x.label * torch.maximum(zero, 1 - g) + (1 - x.label) * torch.maximum(zero, 1 + g)


def rpo(x: PairLogps, params: Any) -> torch.Tensor:
    return dpo(x, params) + params.nll_weight * nll(x)


def dpo_norm(x: PairLogps, params: Any) -> torch.Tensor:
    return bradley_terry(params.beta * mean_gap(x), x.label)


def simpo(x: PairLogps, params: Any) -> torch.Tensor:
    chosen, rejected = x.policy_chosen / x.n_chosen, x.policy_rejected / x.n_rejected
    won = -log(sigmoid(params.beta * chosen - params.beta * rejected - params.gamma))
    lost = -log(sigmoid(params.beta * rejected - params.beta * chosen - params.gamma))
    return x.label * won + (1 - x.label) * lost


def orpo(x: PairLogps, params: Any) -> torch.Tensor:
    p_chosen, p_rejected = exp(x.policy_chosen / x.n_chosen), exp(x.policy_rejected / x.n_rejected)
    odds = p_chosen / (1 - p_chosen) / (p_rejected / (1 - p_rejected))
    return nll(x) + params.odds_weight * bradley_terry(log(odds), x.label)


def votes(x: PairLogps) -> tuple[torch.Tensor, ...]:
    win = (x.label - x.tie_share / 2).clamp(min=0)
    lose = (1 - x.label - x.tie_share / 2).clamp(min=0)
    return tuple(share / (win + x.tie_share + lose) for share in (win, x.tie_share, lose))


def likelihood(x: PairLogps, chances: tuple[torch.Tensor, ...]) -> torch.Tensor:
    win, tie, lose = (share * log(chance) for share, chance in zip(votes(x), chances, strict=True))
    return -(win + tie + lose)


def rao_kupper(x: PairLogps, params: Any) -> torch.Tensor:
    """Strengths λ = exp(reward): win λ/(λ + νλ'), tie (ν² − 1)λλ'/((λ + νλ')(λ' + νλ))."""
    one, other, nu = exp(params.beta * gap(x)), 1.0, params.nu
    win, lose = one / (one + nu * other), other / (other + nu * one)
    tie = (nu**2 - 1) * one * other / ((one + nu * other) * (other + nu * one))
    return likelihood(x, (win, tie, lose))


def davidson(x: PairLogps, params: Any) -> torch.Tensor:
    """Strengths λ = exp(reward): win λ, lose λ', tie 2ν√(λλ'), all over their sum."""
    one, other, nu = exp(params.beta * gap(x)), 1.0, params.nu
    tie = 2 * nu * (one * other) ** 0.5
    return likelihood(x, (one / (one + other + tie), tie / (one + other + tie), other / (one + other + tie)))


def one_sided(reward: torch.Tensor, x: ResponseLogps, params: Any) -> torch.Tensor:
    good = params.good_weight * (1 - sigmoid(reward))
    bad = params.bad_weight * (1 - sigmoid(-reward))
    return torch.where(x.is_good == 1, good, bad)


def kto(x: ResponseLogps, params: Any) -> torch.Tensor:
    return one_sided(params.beta * (x.policy - x.reference - x.kl), x, params)


def apo_zero(x: ResponseLogps, params: Any) -> torch.Tensor:
    return one_sided(params.beta * (x.policy - x.reference), x, params)


def sft(x: ResponseLogps, params: Any) -> torch.Tensor:
    return -x.is_good * x.policy / x.n_tokens


# What each loss is where policy and reference agree and nothing else is asked for.
START = {
    "dpo": math.log(2),
    "cdpo": math.log(2),
    "robust": math.log(2),
    "dpo_norm": math.log(2),
    "hinge": 1.0,
    "ipo": 25.0,  # (1 / (2 · 0.1))²
    "rao_kupper": math.log(4),  # equal responses: half of them tie, a quarter is won
    "davidson": math.log(4),
    "kto": 0.5,
    "apo_zero": 0.5,
}
