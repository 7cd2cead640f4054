"""Simulated annotators of known reliability, for tests and `benchmarks.reliability`: the truth is known, so methods can be
scored against it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labeling.reliability import Votes

Floats = NDArray[np.float64]
PLANTS = {"random": (0.0, 0.0), "always_left": (0.0, 8.0), "inverted": (-1.0, 0.0)}  # reliability, side bias


@dataclass(frozen=True)
class Simulation:
    """`difference` (n_items,) is the truth behind the votes; `reliability` and `bias` (n_annotators,) those who gave them."""

    votes: Votes
    difference: Floats
    reliability: Floats
    bias: Floats


def simulate(
    rng: np.random.Generator,
    n_items: int = 1000,
    n_annotators: int = 20,
    overlap: int = 3,
    *,
    spread: float = 0.3,
    scale: float = 1.5,
    tie: float = -0.5,
    gold_share: float = 0.0,
    planted: Mapping[int, str] | None = None,
    difference: Floats | None = None,
) -> Simulation:
    """Honest annotators have log-normal reliability (standard deviation `spread` of its logarithm) and side biases of 0.2
    logits; `planted` maps an annotator to one of PLANTS. `scale` is the standard deviation of the difference in logits,
    which is drawn unless `difference` (n_items,) is given.
    """
    reliability = np.exp(rng.normal(0, spread, n_annotators))
    bias = rng.normal(0, 0.2, n_annotators)
    for index, kind in (planted or {}).items():
        reliability[index], bias[index] = PLANTS[kind]
    if difference is None:
        difference = rng.normal(0, scale, n_items)
    item = np.repeat(np.arange(n_items), overlap)
    annotator = np.argsort(rng.random((n_items, n_annotators)), axis=1)[:, :overlap].ravel()
    side = rng.choice([-1, 1], len(item))
    eta = reliability[annotator] * difference[item] + bias[annotator] * side
    logits = np.stack([-eta / 2, np.full_like(eta, tie), eta / 2])
    value = np.argmax(logits + rng.gumbel(size=logits.shape), axis=0) - 1
    known = np.where(rng.random(n_items) < gold_share, np.sign(difference), np.nan)
    votes = Votes(item, annotator, value.astype(float), side, known, n_annotators)
    return Simulation(votes, difference, reliability, bias)
