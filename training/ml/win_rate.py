"""How often a reward model prefers one version's responses to another's, and how often if they were equally long.

The length control is that of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475, eq. 2): a logistic regression of the
preference on a constant for the version and on tanh(Δ length / its spread), read off at a difference of zero. Their third
term, the difficulty of each instruction, is left out: it is fitted over many versions, and here there are two. The
preferences are the reward model's probabilities, not its choices. No torch.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

N_DRAWS = 500
STEPS = 25
RIDGE = 0.1  # on the length's coefficient, in pseudo-responses: where all lengths differ alike it cannot be told apart


def measure(margins: Floats, lengths: Floats, other_lengths: Floats) -> dict[str, Any]:
    """margins (n,): reward of the version − reward of the other, in logits; lengths of their responses in tokens (n,).

    Shares from 0 to 1, with 95 % percentile bootstrap intervals over prompts.
    """
    preferences = np.exp(-np.logaddexp(0.0, -margins))  # (n,) P(version's response is preferred)
    differences = lengths - other_lengths
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(margins), len(margins)) for _ in range(N_DRAWS)]
    plain = [float(preferences[drawn].mean()) for drawn in draws]
    controlled = [length_controlled(preferences[drawn], differences[drawn]) for drawn in draws]
    return {
        "n": len(margins),
        "win_rate": float(preferences.mean()),
        "interval": _interval(plain),
        "length_controlled": length_controlled(preferences, differences),
        "length_controlled_interval": _interval(controlled),
    }


def length_controlled(preferences: Floats, differences: Floats) -> float:
    """σ(θ) of the model P = σ(θ + φ·tanh(Δ/s)), s the root mean square of the differences, by Newton's method."""
    spread = float(np.sqrt(np.mean(differences**2)))
    x = np.tanh(differences / spread) if spread else np.zeros_like(differences)
    design = np.stack([np.ones_like(x), x], axis=1)  # (n, 2)
    penalty = np.diag([1e-6, RIDGE])
    weights = np.zeros(2)
    for _step in range(STEPS):
        p = 1 / (1 + np.exp(-design @ weights))  # (n,)
        slope = design.T @ (p - preferences) + penalty @ weights
        curvature = (design * (p * (1 - p))[:, None]).T @ design + penalty
        step = np.linalg.solve(curvature, slope)
        weights -= step / max(1.0, float(np.abs(step).max()))
    return float(1 / (1 + np.exp(-weights[0])))


def _interval(draws: list[float]) -> list[float]:
    return [float(value) for value in np.percentile(draws, [2.5, 97.5])]
