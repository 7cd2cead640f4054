"""Davidson's Bradley–Terry model with ties, as a regression: what the leaderboard and the biases are fitted with.

With η = x'β the log odds that the first response wins once somebody decides,

    P(v | x) ∝ exp(v η / 2 + [v = 0] τ)    for v = 1 (first), 0 (tie), −1 (second)

(Davidson 1970, equation 2.1, ν = exp τ). Without ties it is logistic regression of "first wins" on x, without intercept.
Concave in (β, τ): Newton's method with halved steps finds the one maximum.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

Floats = NDArray[np.float64]
MAX_STEPS = 50
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Regression:
    """`coefficients` (p,) with `covariance` (p, p), in logits; `tie` is τ, −inf when there was no tie."""

    coefficients: Floats
    covariance: Floats
    tie: float

    def contrast(self, weights: ArrayLike) -> tuple[float, float]:
        """weights'β and its standard error."""
        c = np.asarray(weights, dtype=float)
        return float(c @ self.coefficients), float(np.sqrt(max(c @ self.covariance @ c, 0.0)))


def fit(design: ArrayLike, value: ArrayLike, precision: ArrayLike, cluster: ArrayLike | None = None) -> Regression:
    """The maximum a posteriori fit under β_k ~ N(0, 1 / precision_k); precision 0 is maximum likelihood.

    `design` (n, p), `value` (n,) whose sign is the outcome. With `cluster` (n,), the covariance is the sandwich estimator over
    clusters of dependent rows, say those of one prompt (Liang & Zeger 1986, with the factor G / (G − 1)); without, the inverse
    Hessian. Raises ValueError when some direction of β is seen by neither data nor prior.
    """
    x = np.asarray(design, dtype=float)
    sign = np.sign(np.asarray(value)).astype(int)
    prior = np.append(np.asarray(precision, dtype=float), 0.0)
    with_ties = bool((sign == 0).any())
    prior[-1] = 0.0 if with_ties else 1.0  # without ties τ is not there; its row of the Hessian must not be singular
    parameters = np.zeros(x.shape[1] + 1)
    loss = _loss(x, sign, parameters, prior, with_ties)
    for _ in range(MAX_STEPS):
        step = _step(x, sign, parameters, prior, with_ties)
        for _halving in range(30):
            trial = _loss(x, sign, parameters - step, prior, with_ties)
            if trial <= loss:
                break
            step = step / 2
        parameters, improvement, loss = parameters - step, loss - trial, trial
        if improvement < TOLERANCE * (1 + abs(loss)):
            break
    covariance = _covariance(x, sign, parameters, prior, with_ties, cluster)
    return Regression(parameters[:-1], covariance[:-1, :-1], float(parameters[-1]) if with_ties else -np.inf)


def _log_probabilities(x: Floats, parameters: Floats, with_ties: bool) -> Floats:
    """(3, n): second wins, tie, first wins."""
    eta = x @ parameters[:-1]
    logits = np.stack([-eta / 2, np.full_like(eta, parameters[-1] if with_ties else -np.inf), eta / 2])
    return logits - logsumexp(logits, axis=0)


def _loss(x: Floats, sign: NDArray, parameters: Floats, prior: Floats, with_ties: bool) -> float:
    chosen = _log_probabilities(x, parameters, with_ties)[sign + 1, np.arange(len(sign))]
    return float((prior * parameters**2).sum() / 2 - chosen.sum())


def _scores(x: Floats, sign: NDArray, probabilities: Floats) -> Floats:
    """(n, p + 1) derivatives of each row's log likelihood by β and τ."""
    low, tie, high = probabilities
    return np.column_stack([x * ((sign - (high - low)) / 2)[:, None], (sign == 0) - tie])


def _hessian(x: Floats, probabilities: Floats, prior: Floats) -> Floats:
    low, tie, high = probabilities
    by_eta = (low + high - (high - low) ** 2) / 4
    cross = x.T @ (-(high - low) * tie / 2)
    block = (x * by_eta[:, None]).T @ x
    return np.block([[block, cross[:, None]], [cross[None], np.array([[(tie * (1 - tie)).sum()]])]]) + np.diag(prior)


def _step(x: Floats, sign: NDArray, parameters: Floats, prior: Floats, with_ties: bool) -> Floats:
    probabilities = np.exp(_log_probabilities(x, parameters, with_ties))
    gradient = prior * parameters - _scores(x, sign, probabilities).sum(axis=0)
    return _solve(_hessian(x, probabilities, prior), gradient)


def _covariance(
    x: Floats, sign: NDArray, parameters: Floats, prior: Floats, with_ties: bool, cluster: ArrayLike | None
) -> Floats:
    probabilities = np.exp(_log_probabilities(x, parameters, with_ties))
    bread = _solve(_hessian(x, probabilities, prior), np.eye(len(prior)))
    if cluster is None:
        return bread
    _, codes = np.unique(np.asarray(cluster), return_inverse=True)
    n = int(codes.max()) + 1
    scores = np.zeros((n, len(prior)))
    np.add.at(scores, codes, _scores(x, sign, probabilities))
    return bread @ (scores.T @ scores) @ bread * (n / max(n - 1, 1))


def _solve(hessian: Floats, right: Floats) -> Floats:
    try:
        return np.asarray(np.linalg.solve(hessian, right), dtype=np.float64)
    except np.linalg.LinAlgError as error:
        raise ValueError("The data say nothing about some coefficient. Give it a precision above 0.") from error
