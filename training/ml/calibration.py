"""How far a reward model's probabilities can be believed: temperature, calibration error, Brier score.

A margin is r(chosen) − r(rejected) in logits: P(chosen ≻ rejected) = σ(margin / T). A label is that probability by people,
1 for a plain judgment. All functions are pure, over arrays (n,); weights are votes, above 0 but in `report`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

N_BINS = 10
N_FOLDS = 5
STEPS = 60  # Newton's method doubles its digits with each of the last ones; the bracket halves with each of the others
MAX_SHARPNESS = 100.0  # of 1 / T, where so many tiny margins are all right that the prior says little
MIN_SHARPNESS = 1e-3
PRIOR = 1.0  # how many votes the prior of T = 1, at which the rewards were trained, counts for
BUCKETS = (0, 200, 500, 1000)  # characters of the longer response; the last is open


def probabilities(margins: Floats, temperature: float = 1.0) -> Floats:
    """(n,) σ(margin / T)."""
    return np.exp(-np.logaddexp(0.0, -margins / temperature))


def tie_probabilities(margins: Floats, theta: float) -> Floats:
    """(n,) P(tie) of Rao and Kupper at the threshold θ, in the units of the margins before any temperature."""
    eta = np.log(theta)
    return 1 - probabilities(margins - eta) - probabilities(-margins - eta)


def nll(margins: Floats, labels: Floats, weights: Floats, temperature: float = 1.0) -> float:
    """Mean of −p log σ(m/T) − (1−p) log σ(−m/T), in nats."""
    z = margins / temperature
    losses = labels * np.logaddexp(0.0, -z) + (1 - labels) * np.logaddexp(0.0, z)
    return float(np.average(losses, weights=weights))


def fit_temperature(margins: Floats, labels: Floats, weights: Floats) -> float:
    """The most probable T: Guo et al. 2017, arXiv 1706.04599, section 4.2, with a weak prior.

    Few pairs leave T open: all right, they ask for 0, and one that is wrong for infinity. So a = 1/T has a gamma prior with
    its mode at 1: `penalty` joins the sum of the pairs' losses. The sum is convex in a, so that it has one minimum, which
    Newton's method finds within a bracket. Between 1 / MAX_SHARPNESS and 1 / MIN_SHARPNESS.
    """
    low, high = MIN_SHARPNESS, MAX_SHARPNESS
    if _slope(low, margins, labels, weights)[0] >= 0:
        return 1 / low
    if _slope(high, margins, labels, weights)[0] <= 0:
        return 1 / high
    a = 1.0
    for _step in range(STEPS):
        slope, curvature = _slope(a, margins, labels, weights)
        low, high = (low, a) if slope > 0 else (a, high)
        a = a - slope / curvature if curvature > 0 else high
        if not low < a < high:
            a = (low + high) / 2
    return 1 / a


def penalty(a: float) -> float:
    """−log of the prior density of a = 1/T in nats, up to a constant: gamma with shape PRIOR + 1 and rate PRIOR."""
    return PRIOR * (a - math.log(a))


def _slope(a: float, margins: Floats, labels: Floats, weights: Floats) -> tuple[float, float]:
    """First and second derivative of what is least, with respect to a = 1/T."""
    p = probabilities(margins * a)
    slope, curvature = weights @ ((p - labels) * margins), weights @ (p * (1 - p) * margins**2)
    return float(slope + PRIOR * (1 - 1 / a)), float(curvature + PRIOR / a**2)


def bins(margins: Floats, labels: Floats, weights: Floats, temperature: float = 1.0) -> list[dict[str, float]]:
    """Pairs by the model's confidence max(p, 1 − p) in N_BINS equal steps from ½ to 1: how sure, and how often right."""
    p = probabilities(margins, temperature)
    confidence = np.maximum(p, 1 - p)
    right = np.where(p > 0.5, labels, np.where(p < 0.5, 1 - labels, 0.5))
    place = np.minimum(((confidence - 0.5) * 2 * N_BINS).astype(int), N_BINS - 1)
    found = []
    for number in np.unique(place):
        held = place == number
        means = (float(np.average(values[held], weights=weights[held])) for values in (confidence, right))
        found.append(
            {
                "n": int(held.sum()),
                "weight": float(weights[held].sum()),
                **dict(zip(("p", "right"), means, strict=True)),
            }
        )
    return found


def calibration_error(margins: Floats, labels: Floats, weights: Floats, temperature: float = 1.0) -> float:
    """ECE: mean distance between confidence and share of right choices over `bins` (Guo et al. 2017, eq. 3)."""
    found = bins(margins, labels, weights, temperature)
    return sum(one["weight"] * abs(one["p"] - one["right"]) for one in found) / float(weights.sum())


def accuracy(margins: Floats, labels: Floats, weights: Floats) -> float:
    """Share of votes that the sign of the margin agrees with; a margin of 0 agrees with half."""
    right = np.where(margins > 0, labels, np.where(margins < 0, 1 - labels, 0.5))
    return float(np.average(right, weights=weights))


def figures(margins: Floats, labels: Floats, weights: Floats, temperature: float = 1.0) -> dict[str, float]:
    """n, accuracy, nll, brier and ece; {"n": 0} of no pairs."""
    if not len(margins):
        return {"n": 0}
    brier = float(np.average((probabilities(margins, temperature) - labels) ** 2, weights=weights))
    return {
        "n": len(margins),
        "accuracy": accuracy(margins, labels, weights),
        "nll": nll(margins, labels, weights, temperature),
        "brier": brier,
        "ece": calibration_error(margins, labels, weights, temperature),
    }


def report(
    margins: Floats, labels: Floats, weights: Floats, prompts: Sequence[str], lengths: NDArray[np.int64]
) -> dict[str, Any]:
    """What reward.json holds of held-out pairs: the temperature, and the figures before and after it.

    A temperature looks better than it is on what it was fitted to. So `after` is by N_FOLDS temperatures, each fitted to
    the other folds' prompts; the one that is kept is fitted to all. `lengths` in characters, of the longer response. Pairs
    of weight 0 are left out: where a bin or a length had no others, it would have no mean.
    """
    counts = weights > 0
    margins, labels, weights, lengths = margins[counts], labels[counts], weights[counts], lengths[counts]
    prompts = np.array(prompts)[counts].tolist()
    if not len(margins):
        return {"temperature": 1.0, "before": {"n": 0}, "after": {"n": 0}, "by_length": [], "bins": []}
    fitted = cross_fitted(margins, labels, weights, prompts)
    return {
        "temperature": fit_temperature(margins, labels, weights),
        "before": figures(margins, labels, weights),
        "after": figures(fitted, labels, weights),
        "by_length": _by_length(fitted, labels, weights, lengths),
        "bins": bins(fitted, labels, weights),
    }


def cross_fitted(margins: Floats, labels: Floats, weights: Floats, prompts: Sequence[str]) -> Floats:
    """(n,) margins over the temperature that the pairs of other prompts ask for. With one prompt, as they are."""
    names, group = np.unique(np.array(prompts), return_inverse=True)
    fold = group % min(N_FOLDS, len(names))
    fitted = margins.astype(np.float64)
    for number in np.unique(fold):
        held, other = fold == number, fold != number
        if other.any():
            fitted[held] = margins[held] / fit_temperature(margins[other], labels[other], weights[other])
    return fitted


def _by_length(margins: Floats, labels: Floats, weights: Floats, lengths: NDArray[np.int64]) -> list[dict[str, Any]]:
    place = np.searchsorted(BUCKETS, lengths, side="right") - 1
    rows = []
    for number, low in enumerate(BUCKETS):
        held = place == number
        high = BUCKETS[number + 1] if number + 1 < len(BUCKETS) else None
        rows.append({"from": low, "to": high, **figures(margins[held], labels[held], weights[held])})
    return rows
