"""Who can be believed, and what their votes then say of each pair: Dawid–Skene, and a model of latent differences with
annotators of different reliability, ties and side bias. Pure functions over numpy arrays.

**The model** (`fit`). Pair i has a latent difference d_i ~ N(0, m²): how much better the first response is. Annotator a, who
is shown the first response on the left (s = +1) or on the right (s = −1), answers v = +1 (first), 0 (tie) or −1 by

    P(v | d_i, a) ∝ exp(v η / 2 + [v = 0] τ_a),    η = γ_a d_i + b_a s

which is Davidson's Bradley–Terry model with ties (1970, "On extending the Bradley–Terry model to accommodate ties") and an
order effect (Davidson & Beaver 1977), given a reliability γ_a per annotator as in Chen et al. 2013 ("Pairwise ranking
aggregation in a crowdsourced setting") and am-ELO (2505.03475). γ = 1 is the typical annotator, whose choices follow
Bradley–Terry on d; 0 is chance, below 0 inverted. There is no score per response: a preference campaign compares most
responses once, so that the pair is the unit, as in item response theory, with d_i integrated out.

Reliability comes from annotators who voted on the same pair, and from known answers (gold, adjudication). The scale of d
(log m), b and τ of the typical annotator have wide normal priors; an annotator's departures from it have Student-t priors
with 3 degrees of freedom, so that the few who answer at random or backwards do not move what is typical. Maximum a posteriori
by L-BFGS on the exact gradient (Fisher's identity: the expected gradient under the posterior of d). Only signs are used, not
strengths: people differ in how they use a graded scale (Rossi, Gilula & Allenby 2001), and strength has its own way into
training, the margin.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit, logsumexp

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# d / m on a grid with 0 between two nodes, for P(d > 0). The midpoint rule is exact to rounding for smooth integrands that
# vanish at the ends (Trefethen & Weideman 2014); Gauss–Hermite nodes are too coarse in the middle for a step.
N_NODES = 24
NODES = (np.arange(N_NODES) - (N_NODES - 1) / 2) * 0.35
LOG_PRIOR = -(NODES**2) / 2 - logsumexp(-(NODES**2) / 2)
MIN_SHARED = 30  # items; the scale of d from fewer would be little more than its prior
WRONG_GOLD = 0.02  # how often a known answer is wrong
KNOWN_TIE_WIDTH = 0.3  # of d / m where the known answer is a tie
COMMON_MEANS = np.array([np.log(1.5), 0.0, -1.0])  # log m, b, τ of the typical annotator
COMMON_SCALES = np.array([1.0, 0.5, 2.0])
SCALES = np.array([0.4, 0.5, 0.7])  # of an annotator's departures in γ, b and τ
FREEDOM = 3.0


@dataclass(frozen=True)
class Votes:
    """Votes in long format, one per annotator and pair; indices count from 0.

    `value` (n,) is a grade whose sign says which response is better (positive: the first, 0: tie); `side` (n,) is +1 where
    the first was shown on the left, −1 where on the right, 0 when that is not known. `known` (n_items,) is the right answer
    in the same signs where there is one, NaN elsewhere.
    """

    item: Ints
    annotator: Ints
    value: Floats
    side: Ints
    known: Floats
    n_annotators: int


@dataclass(frozen=True)
class SoftLabels:
    """One row per item, and the annotators behind them.

    `label` is P(first is better), that is P(d > 0) given all votes: what training learns from. `preference` is E[σ(d)], the
    share of typical annotators who, having to choose and without a side bias, would choose the first. (Models trained on it
    rank as well but come out too timid: it is drawn to one half pair by pair, and pooling pairs is the model's own work.)
    `weight` is the number of votes by typical annotators that would say as much: the Fisher information about d in the votes
    that were given over that in one such vote. It is the number of votes where all are typical, and 0 where only people who
    click at random voted; the loss of a soft label with that weight is then the loss of that many votes.

    `reliability` (n_annotators,) is γ with standard error `reliability_error`, `side_bias` b + b_a in logits. When nothing
    can be learned, `is_learned` is False, labels are vote shares, weights numbers of votes, and reliabilities 1 with NaN errors.
    """

    label: Floats
    preference: Floats
    weight: Floats
    reliability: Floats
    reliability_error: Floats
    side_bias: Floats
    is_learned: bool


@dataclass(frozen=True)
class DawidSkene:
    """`posterior` (n_items, C), `confusion` (n_annotators, true C, said C), `prior` (C,)."""

    posterior: Floats
    confusion: Floats
    prior: Floats


def dawid_skene(
    item: ArrayLike,
    annotator: ArrayLike,
    value: ArrayLike,
    n_classes: int,
    known: ArrayLike | None = None,
    smoothing: float = 0.0,
    n_iterations: int = 100,
    tolerance: float = 1e-6,
) -> DawidSkene:
    """Dawid & Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM algorithm".

    `value` holds classes from 0 to C − 1; `known` (n_items,) the true class of gold items and −1 elsewhere; `smoothing` is
    added to every count of the confusion matrices. Starts at vote shares; ends when no posterior moves by `tolerance`.
    """
    item, annotator, value = np.asarray(item), np.asarray(annotator), np.asarray(value)
    n_items = len(known) if known is not None else int(item.max(initial=-1)) + 1  # type: ignore[arg-type]
    n_annotators = int(annotator.max(initial=-1)) + 1
    gold = np.full(n_items, -1) if known is None else np.asarray(known)
    said = annotator * n_classes + value

    def fix(posterior: Floats) -> Floats:
        posterior[gold >= 0] = np.eye(n_classes)[gold[gold >= 0]]
        return posterior

    def maximise(posterior: Floats) -> tuple[Floats, Floats]:
        counts = _sum_rows(said, posterior[item], n_annotators * n_classes).reshape(-1, n_classes, n_classes)
        confusion = np.maximum(counts + smoothing, 1e-10).transpose(0, 2, 1)  # (A, true, said)
        return confusion / confusion.sum(axis=2, keepdims=True), np.maximum(posterior.mean(axis=0), 1e-10)

    votes = _sum_rows(item, np.eye(n_classes)[value], n_items)
    posterior = fix((votes + (votes.sum(axis=1, keepdims=True) == 0)) / np.maximum(votes.sum(axis=1), 1)[:, None])
    posterior = posterior / posterior.sum(axis=1, keepdims=True)
    confusion, prior = maximise(posterior)
    for _ in range(n_iterations):
        log_posterior = np.log(prior) + _sum_rows(item, np.log(confusion)[annotator, :, value], n_items)
        before, posterior = posterior, fix(np.exp(log_posterior - logsumexp(log_posterior, axis=1, keepdims=True)))
        confusion, prior = maximise(posterior)
        if np.abs(posterior - before).max(initial=0) < tolerance:
            break
    return DawidSkene(posterior, confusion, prior)


def fit(votes: Votes) -> SoftLabels:
    """The soft label and weight of every item, and the reliability of every annotator, under the model above.

    With fewer than MIN_SHARED items that tell annotators apart, nothing is learned: see `SoftLabels`.
    """
    if not _can_learn(votes):
        return share_votes(votes)
    posterior = _Posterior(votes)
    start = np.concatenate([COMMON_MEANS, np.zeros(3 * votes.n_annotators)])
    found = minimize(posterior.loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "maxcor": 20})
    return posterior.soft_labels(found.x)


def _can_learn(votes: Votes) -> bool:
    """Enough items that two people voted on, or somebody whose answer is known."""
    pairs = np.unique(np.stack([votes.item, votes.annotator]), axis=1)
    n_people = np.bincount(pairs[0], minlength=len(votes.known))
    return int(((n_people > 1) | ((n_people > 0) & ~np.isnan(votes.known))).sum()) >= MIN_SHARED


def share_votes(votes: Votes) -> SoftLabels:
    """Vote shares as labels (a tie counts half), every vote weighing the same: what `fit` falls back to."""
    n_items = len(votes.known)
    n = np.bincount(votes.item, minlength=n_items).astype(float)
    total = np.bincount(votes.item, (np.sign(votes.value) + 1) / 2, minlength=n_items)
    share = np.where(n > 0, total / np.maximum(n, 1), 0.5)
    ones = np.ones(votes.n_annotators)
    return SoftLabels(share, share, n, ones, ones * np.nan, ones * 0, is_learned=False)


class _Posterior:
    """The log posterior of the parameters and its gradient, d integrated out on the grid.

    Parameters: (log m, b, τ) of the typical annotator, then per annotator the departures in γ, b and τ. A vote's likelihood
    depends on its annotator, side and value only, so there is one table of (annotator, side, value) × node to look up, and
    the gradient needs only the expected number of votes in each of its cells: the work per vote is one row added.
    """

    def __init__(self, votes: Votes) -> None:
        self.votes = votes
        self.item = votes.item
        self.shape = (votes.n_annotators, 3, 3, N_NODES)  # annotator, side + 1, sign + 1, node
        side, sign = np.sign(votes.side).astype(int), np.sign(votes.value).astype(int)
        self.cell = np.ravel_multi_index((votes.annotator, side + 1, sign + 1), self.shape[:3])
        self.log_prior = LOG_PRIOR + _log_known(votes.known)  # (I, Q)

    def loss(self, parameters: Floats) -> tuple[float, Floats]:
        """Minus the log posterior, and its gradient."""
        log_joint = self._log_joint(self._log_table(parameters))
        evidence = logsumexp(log_joint, axis=1)
        expected = _sum_rows(self.cell, np.exp(log_joint - evidence[:, None])[self.item], np.prod(self.shape[:3]))
        penalty, slope = _penalty(parameters)
        gradient = self._gradient(parameters, expected.reshape(self.shape))
        return penalty - float(evidence.sum()), slope - gradient

    def soft_labels(self, parameters: Floats) -> SoftLabels:
        log_joint = self._log_joint(self._log_table(parameters))
        weights = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))  # (I, Q)
        scale, gamma, bias, _ = _unpack(parameters)
        typical = np.concatenate([parameters[:3], np.zeros(3)])
        said = self._information(parameters).reshape(-1, N_NODES)[self.cell // 3]  # (n, Q)
        one_vote = weights @ _information(*_probabilities(typical))[0, 1]  # (I,), nobody's side
        given = np.bincount(self.item, (weights[self.item] * said).sum(axis=1), minlength=len(weights))
        return SoftLabels(
            label=weights @ (NODES > 0),
            preference=weights @ expit(scale * NODES),
            weight=given / one_vote,
            reliability=gamma,
            reliability_error=self._errors(parameters, weights),
            side_bias=bias,
            is_learned=True,
        )

    def _log_table(self, parameters: Floats) -> Floats:
        eta, tau = _predictors(parameters)
        logits = np.stack([-eta / 2, np.broadcast_to(tau, eta.shape), eta / 2], axis=2)  # (A, S, V, Q)
        return logits - logsumexp(logits, axis=2, keepdims=True)

    def _log_joint(self, log_table: Floats) -> Floats:
        return self.log_prior + _sum_rows(self.item, log_table.reshape(-1, N_NODES)[self.cell], len(self.log_prior))

    def _information(self, parameters: Floats) -> Floats:
        """(A, S, Q) Fisher information about d in one vote."""
        _, gamma, _, _ = _unpack(parameters)
        return gamma[:, None, None] ** 2 * _information(*_probabilities(parameters))

    def _scores(self, parameters: Floats) -> tuple[Floats, Floats]:
        """(A, S, V, Q) derivatives of a vote's log likelihood by η and by τ."""
        low, tie, high = _probabilities(parameters)
        sign = np.array([-1, 0, 1])[:, None]
        by_eta = (sign - (high - low)[:, :, None, :]) / 2
        return by_eta, (sign == 0) - tie[:, :, None, :]

    def _gradient(self, parameters: Floats, expected: Floats) -> Floats:
        scale, gamma, _, _ = _unpack(parameters)
        by_eta, by_tau = self._scores(parameters)
        eta = (expected * by_eta).sum(axis=2)  # (A, S, Q)
        by_gamma = (eta.sum(axis=1) * scale * NODES).sum(axis=1)
        by_bias = eta.sum(axis=2) @ np.array([-1, 0, 1])
        by_tie = (expected * by_tau).sum(axis=(1, 2, 3))
        common = [gamma @ by_gamma, by_bias.sum(), by_tie.sum()]
        return np.concatenate([common, by_gamma, by_bias, by_tie])

    def _errors(self, parameters: Floats, weights: Floats) -> Floats:
        """Standard errors of γ by the outer product of each vote's expected score (Berndt, Hall, Hall & Hausman 1974),
        which counts only what the votes say beyond the uncertainty of d; the typical annotator is taken as known.
        """
        scale, _, _, _ = _unpack(parameters)
        by_eta, by_tau = (score.reshape(-1, N_NODES)[self.cell] for score in self._scores(parameters))
        weighted = weights[self.item] * by_eta
        side = np.sign(self.votes.side)
        scores = [weighted @ (scale * NODES), weighted.sum(axis=1) * side, (weights[self.item] * by_tau).sum(axis=1)]
        products = np.einsum("in,jn->nij", np.stack(scores), np.stack(scores)).reshape(-1, 9)
        information = _sum_rows(self.votes.annotator, products, self.votes.n_annotators).reshape(-1, 3, 3)
        prior = np.diag((FREEDOM + 1) / (FREEDOM + 3) / SCALES**2)  # the t prior's own Fisher information
        return np.sqrt(np.linalg.inv(information + prior)[:, 0, 0])


def _unpack(parameters: Floats) -> tuple[float, Floats, Floats, Floats]:
    """m, γ (A,), b (A,), τ (A,)."""
    reliability, bias, tie = parameters[3:].reshape(3, -1)
    return float(np.exp(parameters[0])), 1 + reliability, parameters[1] + bias, parameters[2] + tie


def _predictors(parameters: Floats) -> tuple[Floats, Floats]:
    """η (A, S, Q) and τ (A, 1, 1)."""
    scale, gamma, bias, tie = _unpack(parameters)
    side = bias[:, None] * np.array([-1, 0, 1])
    return gamma[:, None, None] * scale * NODES + side[:, :, None], tie[:, None, None]


def _probabilities(parameters: Floats) -> tuple[Floats, Floats, Floats]:
    """(A, S, Q) each: second better, tie, first better."""
    eta, tau = _predictors(parameters)
    logits = np.stack([-eta / 2, np.broadcast_to(tau, eta.shape), eta / 2])
    low, tie, high = np.exp(logits - logsumexp(logits, axis=0))
    return low, tie, high


def _information(low: Floats, tie: Floats, high: Floats) -> Floats:
    """Fisher information about η in one vote: the variance of v / 2."""
    return (low + high - (high - low) ** 2) / 4


def _penalty(parameters: Floats) -> tuple[float, Floats]:
    """Minus the log prior and its gradient."""
    common = (parameters[:3] - COMMON_MEANS) / COMMON_SCALES
    own = parameters[3:].reshape(3, -1) / SCALES[:, None]
    value = (common**2).sum() / 2 + (FREEDOM + 1) / 2 * np.log1p(own**2 / FREEDOM).sum()
    slope = (FREEDOM + 1) * own / (FREEDOM + own**2) / SCALES[:, None]
    return float(value), np.concatenate([common / COMMON_SCALES, slope.ravel()])


def _log_known(known: Floats) -> Floats:
    """(I, Q) log P(the known answer | d); 0 where there is none."""
    log_known = np.zeros((len(known), N_NODES))
    log_known[known > 0] = np.log(np.where(NODES > 0, 1 - WRONG_GOLD, WRONG_GOLD))
    log_known[known < 0] = np.log(np.where(NODES < 0, 1 - WRONG_GOLD, WRONG_GOLD))
    log_known[known == 0] = -((NODES / KNOWN_TIE_WIDTH) ** 2) / 2
    return log_known


def _sum_rows(index: NDArray, rows: Floats, n: int) -> Floats:
    """(n, …) sums of the rows with each index."""
    ones = csr_array((np.ones(len(index)), (index, np.arange(len(index)))), shape=(n, len(index)))
    return ones @ rows
