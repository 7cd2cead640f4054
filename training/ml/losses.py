"""The methods' losses: one pure function per catalog method, of the same name.

Each takes the log-probabilities of a batch of pairs and the method's parameters and returns one loss per pair (B,); the
loop multiplies by the pairs' weights and averages. `label` is P(chosen > rejected): 1 for a plain judgment, between for
a soft one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from training.catalog import DPO, IPO, RPO


@dataclass(frozen=True)
class PairLogps:
    """Sums over a response's tokens of log-probabilities in nats, and what people said of the pair; all (B,)."""

    policy_chosen: torch.Tensor
    policy_rejected: torch.Tensor
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor
    n_chosen: torch.Tensor  # tokens of the chosen response
    n_rejected: torch.Tensor
    label: torch.Tensor  # P(chosen > rejected)
    tie_share: torch.Tensor  # of the votes, 0 to 1
    margin: torch.Tensor  # mean grade towards the chosen response, 0 to 3

    @property
    def chosen_logratio(self) -> torch.Tensor:
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_logratio(self) -> torch.Tensor:
        return self.policy_rejected - self.reference_rejected

    @property
    def logratio_gap(self) -> torch.Tensor:
        """h of the papers: how much more the policy prefers the chosen response than the reference does."""
        return self.chosen_logratio - self.rejected_logratio

    @property
    def nll(self) -> torch.Tensor:
        """(B,) nats per token of what should stay likely: the chosen response."""
        return -self.policy_chosen / self.n_chosen


@dataclass(frozen=True)
class ResponseLogps:
    """Responses that were judged alone; all (B,) but kl."""

    policy: torch.Tensor
    reference: torch.Tensor
    n_tokens: torch.Tensor
    is_good: torch.Tensor  # 1 or 0
    kl: torch.Tensor  # () of the policy from the reference on responses to other prompts, at least 0, no gradient

    @property
    def logratio(self) -> torch.Tensor:
        return self.policy - self.reference

    @property
    def nll(self) -> torch.Tensor:
        """(B,) nats per token of what should stay likely: a good response; 0 for a bad one."""
        return -self.is_good * self.policy / self.n_tokens


Logps = PairLogps | ResponseLogps
Loss = Callable[[Any, Any], torch.Tensor]  # (logps of the method's source, its parameters) -> (B,)


def dpo(logps: PairLogps, params: DPO) -> torch.Tensor:
    """−p log σ(βh) − (1−p) log σ(−βh): Rafailov et al. 2023, arXiv 2305.18290, eq. 7.

    p is the label with a share label_smoothing of judgments assumed flipped (cDPO, Mitchell 2023).
    """
    p = logps.label * (1 - params.label_smoothing) + (1 - logps.label) * params.label_smoothing
    reward_gap = params.beta * logps.logratio_gap
    return -p * logsigmoid(reward_gap) - (1 - p) * logsigmoid(-reward_gap)


def ipo(logps: PairLogps, params: IPO) -> torch.Tensor:
    """p (h − 1/(2β))² + (1−p) (h + 1/(2β))²: Azar et al. 2023, arXiv 2310.12036, eq. 17, with β for the paper's τ."""
    target = 1 / (2 * params.beta)
    h = logps.logratio_gap
    return logps.label * (h - target) ** 2 + (1 - logps.label) * (h + target) ** 2


def rpo(logps: PairLogps, params: RPO) -> torch.Tensor:
    """DPO − α log π(chosen)/|chosen|: Pang et al. 2024, arXiv 2404.19733, eq. 1, with nll_weight for α."""
    preference = dpo(logps, DPO(beta=params.beta))
    return preference - params.nll_weight * logps.policy_chosen / logps.n_chosen
