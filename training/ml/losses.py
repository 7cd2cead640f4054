"""The methods' losses: one pure function per catalog method, of the same name.

Each takes the log-probabilities of a batch of pairs, or of single responses, and the method's parameters, and returns
one loss per example (B,); the loop multiplies by the examples' weights and averages. `label` is P(chosen > rejected): 1
for a plain judgment, between for a soft one, whose loss is that of its votes one by one.

In the formulas h is the log-ratio gap, log π/ref(chosen) − log π/ref(rejected), and p the label.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from training.catalog import (
    DPO,
    IPO,
    KTO,
    ORPO,
    RPO,
    SFT,
    APOZero,
    DavidsonDPO,
    FlippedDPO,
    NormalisedDPO,
    SimPO,
    TieDPO,
    Unpaired,
)


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
    def mean_logratio_gap(self) -> torch.Tensor:
        """h of log-ratios per token."""
        return self.chosen_logratio / self.n_chosen - self.rejected_logratio / self.n_rejected

    @property
    def mean_chosen(self) -> torch.Tensor:
        return self.policy_chosen / self.n_chosen

    @property
    def mean_rejected(self) -> torch.Tensor:
        return self.policy_rejected / self.n_rejected

    @property
    def nll(self) -> torch.Tensor:
        """(B,) nats per token of what should stay likely: of the chosen response, by the share of votes for it."""
        return -_mix(self.label, self.mean_chosen, self.mean_rejected)


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
    """−p log σ(g) − (1−p) log σ(−g): Rafailov et al. 2023, arXiv 2305.18290, eq. 7.

    g = βh − δm, with δ = margin_scale and m the grade: the offset of ODPO, Amini et al. 2024, arXiv 2402.10571,
    section 3 (Llama 2's margin, arXiv 2307.09288, eq. 2, is the same for rewards). As a shift of the gap it leaves the loss a
    proper likelihood of soft labels.
    """
    return _sigmoid_loss(_reward_gap(logps, params), logps.label)


def cdpo(logps: PairLogps, params: FlippedDPO) -> torch.Tensor:
    """DPO with p(1−ε) + (1−p)ε for p, ε = flip_rate: Mitchell 2023, "A note on DPO with noisy preferences"."""
    p = logps.label * (1 - params.flip_rate) + (1 - logps.label) * params.flip_rate
    return _sigmoid_loss(_reward_gap(logps, params), p)


def robust(logps: PairLogps, params: FlippedDPO) -> torch.Tensor:
    """((1−ε) ℓ(p) − ε ℓ(1−p)) / (1−2ε), ℓ the loss of DPO: Chowdhury et al. 2024, arXiv 2403.00409, section 3.

    Its mean over judgments of which a share ε = flip_rate are flipped is the loss of the true ones.
    """
    gap, flip_rate = _reward_gap(logps, params), params.flip_rate
    right, flipped = _sigmoid_loss(gap, logps.label), _sigmoid_loss(gap, 1 - logps.label)
    return ((1 - flip_rate) * right - flip_rate * flipped) / (1 - 2 * flip_rate)


def ipo(logps: PairLogps, params: IPO) -> torch.Tensor:
    """p (h − 1/(2β))² + (1−p) (h + 1/(2β))²: Azar et al. 2023, arXiv 2310.12036, eq. 17, with β for the paper's τ.

    per_token: log-ratios divided by the responses' lengths, as TRL has it and says that the authors computed.
    """
    target = 1 / (2 * params.beta)
    h = logps.mean_logratio_gap if params.per_token else logps.logratio_gap
    return _mix(logps.label, (h - target) ** 2, (h + target) ** 2)


def hinge(logps: PairLogps, params: DPO) -> torch.Tensor:
    """p max(0, 1 − g) + (1−p) max(0, 1 + g), g as in DPO: Zhao et al. 2023 (SLiC-HF), arXiv 2305.10425, section 2.

    On rewards relative to the reference, as Liu et al. 2023 (RSO), arXiv 2309.06657, section 3.2.
    """
    gap = _reward_gap(logps, params)
    return _mix(logps.label, torch.relu(1 - gap), torch.relu(1 + gap))


def rpo(logps: PairLogps, params: RPO) -> torch.Tensor:
    """DPO − α log π(chosen)/|chosen|: Pang et al. 2024, arXiv 2404.19733, eq. 1, with nll_weight for α.

    A soft label takes its share of either response's NLL, as its votes one by one would.
    """
    return dpo(logps, params) + params.nll_weight * logps.nll


def dpo_norm(logps: PairLogps, params: NormalisedDPO) -> torch.Tensor:
    """DPO with log-ratios per token, β (log-ratio(c)/|c| − log-ratio(r)/|r|): Lambert et al. 2024, arXiv 2411.15124."""
    return _sigmoid_loss(params.beta * logps.mean_logratio_gap, logps.label)


def simpo(logps: PairLogps, params: SimPO) -> torch.Tensor:
    """−log σ(β (log π(c)/|c| − log π(r)/|r|) − γ): Meng et al. 2024, arXiv 2405.14734, eq. 6. No reference."""
    gap = params.beta * (logps.mean_chosen - logps.mean_rejected)
    return _mix(logps.label, -logsigmoid(gap - params.gamma), -logsigmoid(-gap - params.gamma))


def orpo(logps: PairLogps, params: ORPO) -> torch.Tensor:
    """NLL(chosen)/|chosen| − λ log σ(log odds(c) − log odds(r)): Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7.

    odds = P/(1−P) with P = π(y)^(1/|y|), λ = odds_weight. No reference. The NLL is that of the response alone; TRL's
    counts the prompt too.
    """
    gap = _log_odds(logps.mean_chosen) - _log_odds(logps.mean_rejected)
    return logps.nll + params.odds_weight * _sigmoid_loss(gap, logps.label)


def rao_kupper(logps: PairLogps, params: TieDPO) -> torch.Tensor:
    """DPO where pairs can tie, by Rao and Kupper (1967): Chen et al. 2024, arXiv 2409.17431, section 3.

    P(chosen wins) = σ(βh − log ν), P(rejected wins) = σ(−βh − log ν), P(tie) = (ν² − 1) times their product.
    """
    gap = params.beta * logps.logratio_gap
    return nll_with_ties(gap, gap.new_tensor(math.log(params.nu)), logps.label, logps.tie_share)


def davidson(logps: PairLogps, params: DavidsonDPO) -> torch.Tensor:
    """DPO where pairs can tie, by Davidson (1970): Chen et al. 2024, arXiv 2409.17431, section 3.

    P(chosen wins) : P(tie) : P(rejected wins) = exp(βh/2) : 2ν : exp(−βh/2).
    """
    half = params.beta * logps.logratio_gap / 2
    logits = torch.stack([half, torch.full_like(half, math.log(2 * params.nu)), -half])  # (3, B)
    return -(torch.stack(outcomes(logps.label, logps.tie_share)) * logits.log_softmax(0)).sum(0)


def kto(logps: ResponseLogps, params: KTO) -> torch.Tensor:
    """λ (1 − σ(±β (log-ratio − KL))), + for good responses: Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7.

    λ = good_weight or bad_weight. KL is the step's, by responses to other prompts, without gradient.
    """
    return _one_sided(params.beta * (logps.logratio - logps.kl), logps.is_good, params)


def apo_zero(logps: ResponseLogps, params: APOZero) -> torch.Tensor:
    """λ (1 − σ(±β log-ratio)), + for good responses: D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7.

    λ = good_weight or bad_weight. On both halves of a pair it is the paper's loss of the pair.
    """
    return _one_sided(params.beta * logps.logratio, logps.is_good, params)


def sft(logps: ResponseLogps, params: SFT) -> torch.Tensor:
    """−log π(y)/|y|: Ouyang et al. 2022, arXiv 2203.02155, section 3.5; every response counts the same, long or short."""
    return logps.nll


def nll_with_ties(gap: torch.Tensor, eta: torch.Tensor, label: torch.Tensor, tie_share: torch.Tensor) -> torch.Tensor:
    """(B,) −log-likelihood of votes where pairs can tie: Rao and Kupper 1967, eq. 2.1.

    `gap` (B,) in logits, `eta` () = log ν > 0 the difference below which people see none: P(chosen wins) = σ(gap − η),
    P(rejected wins) = σ(−gap − η), P(tie) = (e^{2η} − 1) times their product.
    """
    won, tied, lost = outcomes(label, tie_share)
    log_won, log_lost = logsigmoid(gap - eta), logsigmoid(-gap - eta)
    log_tied = torch.log(torch.expm1(2 * eta)) + log_won + log_lost
    return -won * log_won - tied * log_tied - lost * log_lost


def outcomes(label: torch.Tensor, tie_share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B,) shares of votes that say chosen, tie, rejected, from a label in which a tie counts half for each side.

    A label that knows better (a model of the people made it) can leave fewer votes than none to a side: these are cut at 0,
    and the rest made to sum to 1.
    """
    won, lost = (label - tie_share / 2).clamp(min=0), (1 - label - tie_share / 2).clamp(min=0)
    total = won + tie_share + lost
    return won / total, tie_share / total, lost / total


def _reward_gap(logps: PairLogps, params: DPO) -> torch.Tensor:
    return params.beta * logps.logratio_gap - params.margin_scale * logps.margin


def _mix(p: torch.Tensor, right: torch.Tensor, wrong: torch.Tensor) -> torch.Tensor:
    """The mean loss of votes of which a share p are for the chosen response."""
    return p * right + (1 - p) * wrong


def _sigmoid_loss(gap: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return _mix(p, -logsigmoid(gap), -logsigmoid(-gap))


def _log_odds(mean_logp: torch.Tensor) -> torch.Tensor:
    """log(P/(1−P)) of P = exp(mean_logp), finite where P rounds to 1."""
    mean_logp = mean_logp.clamp(max=-1e-6)
    return mean_logp - torch.log(-torch.expm1(mean_logp))


def _one_sided(reward: torch.Tensor, is_good: torch.Tensor, params: Unpaired) -> torch.Tensor:
    """Saturating losses of good and bad responses, each with its side's weight."""
    weight = is_good * params.good_weight + (1 - is_good) * params.bad_weight
    return weight * torch.sigmoid((1 - 2 * is_good) * reward)
