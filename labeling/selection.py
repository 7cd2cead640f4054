"""Which pair is worth a person's time: strategies as pure functions over arrays, and how chance is mixed in.

A strategy is a generator. It yields the index of the best that is left and is sent the index of what was taken, which may
be another: so that it goes on from what will really be judged. `is_last` (n,) marks what it takes only when nothing else
is left. Ties go to the lower index; nothing here draws a random number but `draw`, whose `rng` is passed.

Active choice does not always pay: on modern models uncertainty was about as good as chance ("Random is hard to beat",
arXiv 2604.02766). That is why `draw` gives a share of the places to chance, and labeling.savings reports what the rest won.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Choices = Generator[int, int, None]

BLOCK = 1024  # of those already covered, compared with all points at a time
LAST = 1e9  # what `is_last` takes off a score: far more than scores differ by; what was taken has −inf
UNCOVERED = 1e6  # a squared distance above all real ones


@dataclass(frozen=True)
class Draws:
    """What stands where. All (n_places,): `index` into the pool, `is_random` (chance chose it), and `propensity`, the
    probability with which this place went to this item: ε / n_left + (1 − ε) · [it was the strategy's best].
    """

    index: Ints
    is_random: Bools
    propensity: Floats


def draw(choices: Choices, n: int, n_places: int, random_share: float, rng: np.random.Generator) -> Draws:
    """Fills places one after the other from a pool of `n`: with probability `random_share` (ε) uniformly from what is left,
    else with the strategy's best.
    """
    n_places = min(n, n_places)
    index, is_random = np.zeros(n_places, dtype=np.int64), rng.random(n_places) < random_share
    propensity = np.zeros(n_places)
    left = np.arange(n)  # the first n − place entries are what is left; `where` finds an item among them
    where = np.arange(n)
    best = next(choices) if n_places else 0
    for place in range(n_places):
        n_left = n - place
        taken = int(left[rng.integers(n_left)]) if is_random[place] else best
        index[place] = taken
        propensity[place] = random_share / n_left + (1 - random_share) * (taken == best)
        last = int(left[n_left - 1])
        left[where[taken]], where[last] = last, where[taken]
        if place + 1 < n_places:
            best = choices.send(taken)
    return Draws(index, is_random, propensity)


def in_order(score: Floats, is_last: Bools | None = None) -> Choices:
    """The highest score (n,) first. With random scores it is the random strategy."""
    order = np.argsort(-_ranked(score, is_last), kind="stable")
    is_taken = np.zeros(len(order), dtype=bool)
    for best in order:
        while not is_taken[best]:
            is_taken[(yield int(best))] = True


def k_centre(points: Floats, covered: Floats | None = None, is_last: Bools | None = None) -> Choices:
    """The point of `points` (n, d) that is farthest from those taken, and from those `covered` before (m, d).

    Greedy k-centre: at most twice the best possible radius (Gonzalez 1985, "Clustering to minimize the maximum intercluster
    distance"); as a way to choose what to label, Sener & Savarese 2018 (arXiv 1708.00489), algorithm 1. O(n d) a choice.
    """
    norms = np.einsum("ij,ij->i", points, points)
    nearest = np.full(len(points), UNCOVERED)
    known = points[:0] if covered is None else covered
    for start in range(0, len(known), BLOCK):
        nearest = np.minimum(nearest, _squared(points, norms, known[start : start + BLOCK]).min(axis=1))
    while True:
        taken = yield _best(nearest, is_last)
        nearest = np.minimum(nearest, _squared(points, norms, points[taken : taken + 1])[:, 0])
        nearest[taken] = -np.inf


def most_different(
    first: Floats, second: Floats, quality: Floats, floor: float, is_last: Bools | None = None
) -> Choices:
    """The pair whose two responses (n, d each) are farthest apart, among pairs whose worse one has `quality` (n,) of at least
    `floor`; the others come last.

    The distance is (1 − cosine) / 2, and quality is a condition, not a term of the sum: diversity counts only among good
    answers, which is the point of DSDR (Wan et al. 2026, arXiv 2602.19895, section 3), there for reinforcement learning.
    """
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = np.einsum("ij,ij->i", first, second) / np.maximum(lengths, 1e-12)
    fails = quality < floor
    return in_order((1 - cosine) / 2, fails if is_last is None else fails | is_last)


def most_uncertain(difference: Floats, is_last: Bools | None = None) -> Choices:
    """The pair with the largest p (1 − p), p = σ(difference of rewards) (n,), the Bradley–Terry probability: the variance of
    the answer (uncertainty sampling, Lewis & Gale 1994; on pairs, Das et al. 2024, arXiv 2402.10500).
    """
    return in_order(variance(difference), is_last)


def d_optimal(
    delta: Floats, difference: Floats, information: Floats, is_last: Bools | None = None, ridge: float = 1.0
) -> Choices:
    """The pair that adds most to log det of the Fisher information ridge · I + `information` + Σ p (1 − p) Δφ Δφᵀ of a
    Bradley–Terry reward that is linear in features φ; `delta` = Δφ (n, d), p = σ(`difference`) (n,).

    Kveton et al. 2025 (arXiv 2503.01076), and Shen et al. 2025 (arXiv 2502.04354), who keep what was judged before: here
    `information` (d, d), see `fisher`. The gain of a pair is log(1 + w x'A⁻¹x). After each choice both A⁻¹ and every x'A⁻¹x
    follow by one Sherman–Morrison step, O(n d) a choice; the greedy set has at least 1 − 1/e of the best gain (submodular).
    """
    weight = variance(difference)
    inverse = np.linalg.inv(information + ridge * np.eye(delta.shape[1]))
    leverage = np.einsum("ij,jk,ik->i", delta, inverse, delta, optimize=True)  # x'A⁻¹x
    left = np.zeros(len(delta))  # −inf where taken
    while True:
        taken = yield _best(np.log1p(weight * leverage) + left, is_last)
        solved = inverse @ delta[taken]  # (d,)
        shrink = weight[taken] / (1 + weight[taken] * (delta[taken] @ solved))
        inverse -= shrink * np.outer(solved, solved)
        leverage = np.maximum(leverage - shrink * (delta @ solved) ** 2, 0.0)
        left[taken] = -np.inf


def fisher(delta: Floats, difference: Floats, n: Floats | float = 1.0) -> Floats:
    """(d, d) information of pairs judged `n` times each: Σ n p (1 − p) Δφ Δφᵀ."""
    return (delta * (n * variance(difference))[:, None]).T @ delta


def variance(difference: Floats) -> Floats:
    """p (1 − p) of p = σ(difference): 1/4 where nothing is known, 0 where the answer is sure."""
    p = 0.5 * (1 + np.tanh(difference / 2))  # σ, without overflow
    return p * (1 - p)


def _best(score: Floats, is_last: Bools | None) -> int:
    return int(np.argmax(_ranked(score, is_last)))


def _ranked(score: Floats, is_last: Bools | None) -> Floats:
    return score if is_last is None else score - LAST * is_last


def _squared(points: Floats, norms: Floats, others: Floats) -> Floats:
    """(n, m) squared distances; never below 0 for rounding."""
    to = norms[:, None] + np.einsum("ij,ij->i", others, others) - 2 * points @ others.T
    return np.maximum(to, 0.0)
