"""A reward model's mathematics: a scalar head on the last token of a response, in the same rows as a policy's.

r(x, y) = w · h, h being the decoder's output at the last token of y after x. People's choices between two responses follow
Bradley and Terry, and where ties are learned from, Rao and Kupper (1967, "Ties in paired-comparison experiments", eq. 2.1):

    P(a ≻ b) = σ(d − η),   P(b ≻ a) = σ(−d − η),   P(tie) = 1 − both = (e^{2η} − 1) σ(d − η) σ(−d − η)

with d = r(a) − r(b) and η = log θ ≥ 0 the difference below which people see none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from training.catalog import RewardModel
from training.implicit_reward import Reward
from training.ml.batches import Columns, Source
from training.ml.data import TIE, Pair
from training.ml.decoder import hidden_states
from training.ml.losses import Loss, nll_with_ties
from training.ml.rows import Pack
from training.ml.scores import Scores
from training.ml.trunk import Trunk

# An optimizer like AdamW moves every number by about the rate, too little for a threshold: it is kept in this unit.
THRESHOLD_UNIT = 30.0


class Head(nn.Module):
    """(…, H) -> (…), 0 at first, so that training starts at ln 2; and the threshold of ties. Both in fp32 or wider."""

    def __init__(self, size: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size, dtype=dtype))
        self.threshold = nn.Parameter(torch.zeros((), dtype=dtype), requires_grad=False)
        self.has_threshold = False

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return (hidden.to(self.weight.dtype) @ self.weight.T)[..., 0]

    @property
    def eta(self) -> torch.Tensor | None:
        """() log θ > 0 of Rao and Kupper; None where ties count half for each side."""
        return (THRESHOLD_UNIT * self.threshold).exp() if self.has_threshold else None

    def set_theta(self, theta: float, *, is_learned: bool) -> None:
        """θ > 1; `is_learned`: only at first."""
        self.has_threshold = True
        with torch.no_grad():
            self.threshold.fill_(math.log(math.log(theta)) / THRESHOLD_UNIT)
        self.threshold.requires_grad_(is_learned)

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in (self.weight, self.threshold) if parameter.requires_grad]


def response_rewards(
    model: PreTrainedModel, head: Head, pack: Pack, dtype: torch.dtype | None = None, trunk: Trunk | None = None
) -> torch.Tensor:
    """(R,) the rewards of the pack's responses, in the order of `pack.order`; the pack must keep last tokens."""
    return head(hidden_states(model, pack, dtype, trunk)[pack.ends])


@dataclass(frozen=True)
class Rewards:
    """Pairs with the rewards of their responses, and what people said of them; all (B,)."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    label: torch.Tensor  # P(chosen > rejected), a tie counting half
    tie_share: torch.Tensor  # of the votes
    margin: torch.Tensor  # mean grade towards the chosen response, 0 to 3

    @property
    def gap(self) -> torch.Tensor:
        return self.chosen - self.rejected

    @property
    def nll(self) -> torch.Tensor:
        """(B,) 0: a reward model says nothing, so nothing must stay likely."""
        return torch.zeros_like(self.gap)


def reward_model(rewards: Rewards, params: RewardModel, eta: torch.Tensor | None = None) -> torch.Tensor:
    """(B,) the negative log-likelihood of what people said, and λ (r(chosen) + r(rejected))².

    `eta` (): Rao and Kupper's, with d lowered by margin_scale · margin as in Touvron et al. 2023, arXiv 2307.09288,
    eq. 2. Without it ties count half for each side: Bradley and Terry's −p log σ(d) − (1−p) log σ(−d). The square keeps
    rewards around 0, which the likelihood leaves open: Eisenstein et al. 2023, arXiv 2312.09244, section 2.
    """
    d = rewards.gap - params.margin_scale * rewards.margin
    if eta is None:
        nll = -rewards.label * logsigmoid(d) - (1 - rewards.label) * logsigmoid(-d)
    else:
        nll = nll_with_ties(d, eta, rewards.label, rewards.tie_share)
    return nll + params.centre * (rewards.chosen + rewards.rejected) ** 2


def begin_ties(head: Head, params: RewardModel, pairs: Sequence[Pair]) -> None:
    """Sets the head's θ as the parameters ask for."""
    thetas = {"learned": first_theta(pairs), "given": params.tie_theta}
    if params.ties in thetas:
        head.set_theta(thetas[params.ties], is_learned=params.ties == "learned")


def first_theta(pairs: Sequence[Pair]) -> float:
    """θ at which two equal responses tie as often as the pairs do: P(tie | d = 0) = (θ − 1) / (θ + 1)."""
    votes = sum(pair.weight for pair in pairs)
    share = (sum(pair.weight * pair.tie_share for pair in pairs) + 0.5) / (votes + 1)  # never 0 or 1
    return (1 + share) / (1 - share)


def loss_by(head: Head) -> Loss:
    """`reward_model` with the head's threshold as it is at each call."""
    return lambda rewards, params: reward_model(rewards, params, head.eta)


def gather(scores: torch.Tensor, batch: Pack, pairs: Sequence[Pair], reference: Scores, kl: torch.Tensor) -> Rewards:
    """scores (R,) of the pack's responses -> those of the pairs (B,); a reward has no reference and no KL."""

    def of(response: str) -> torch.Tensor:
        return scores[[batch.order[pair.prompt, getattr(pair, response)] for pair in pairs]]

    return Rewards(
        chosen=of("chosen"),
        rejected=of("rejected"),
        label=scores.new_tensor([pair.label for pair in pairs]),
        tie_share=scores.new_tensor([pair.tie_share for pair in pairs]),
        margin=scores.new_tensor([pair.margin for pair in pairs]),
    )


def describe(rewards: Rewards, pairs: Sequence[Pair], reward: Reward) -> Columns:
    """Accuracy and margin are those of pairs that people decided; the rewards are what they are."""
    gap = rewards.gap[[i for i, pair in enumerate(pairs) if pair.label != TIE]]
    return {
        "accuracy": (gap > 0).to(gap.dtype) + 0.5 * (gap == 0),
        "margin": gap,
        "chosen_reward": rewards.chosen,
        "rejected_reward": rewards.rejected,
    }


SOURCE = Source(gather, describe)  # type: ignore[arg-type]
