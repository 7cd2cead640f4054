"""Held-out pairs as figures: accuracy, Brier score and calibration of two versions, with intervals over prompts.

A model prefers the response that it makes more likely than the reference does: margin = reward of chosen − reward of
rejected > 0, a margin of exactly zero counting half, with the reward of the method that trained it (`training.implicit_reward`);
σ(margin) is the probability that it gives to people choosing as they did, if that method claims one (`only_claimed`). The base
is its own reference, so all of its margins are zero: its accuracy is one half, its Brier score a quarter, and its calibration
perfect, for it claims nothing.

Intervals are percentile bootstraps over prompts (pairs of one prompt are not independent, and few prompts give an interval
that is far too narrow), both models being scored on the same resample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BOOTSTRAP_DRAWS = 2000
BOOTSTRAP_SEED = 20260101
BOOTSTRAP_CHUNK = 200
N_BINS = 10


@dataclass(frozen=True)
class Score:
    """Accuracies from 0 to 1, their difference (new − incumbent) and its 95 % interval; None without pairs.

    `brier` is the mean squared error of σ(margin) against the share of people who chose so, with the interval of its
    difference; `ece` the expected calibration error; `excess` its signed sister, mean confidence − share of right choices.
    A careful model that is mostly right has a large ECE and an excess below zero: what it lacks is only boldness.
    """

    n_pairs: int
    n_prompts: int
    accuracy: float | None
    incumbent_accuracy: float | None
    difference: float | None
    low: float | None
    high: float | None
    brier: float | None = None
    incumbent_brier: float | None = None
    brier_low: float | None = None
    brier_high: float | None = None
    ece: float | None = None
    incumbent_ece: float | None = None
    ece_low: float | None = None
    ece_high: float | None = None
    excess: float | None = None
    excess_low: float | None = None
    excess_high: float | None = None


def compare(
    margins: NDArray[Any],
    incumbent_margins: NDArray[Any],
    prompts: Sequence[str],
    labels: NDArray[Any] | None = None,
) -> Score:
    """Scores n pairs. margins, incumbent_margins: (n,) in nats; prompts: the n prompts' hashes; labels: (n,) P(chosen)."""
    if len(prompts) == 0:
        return Score(0, 0, None, None, None, None, None)
    truth: Floats = np.ones(len(prompts)) if labels is None else labels.astype(float)
    names, group = np.unique(np.array(prompts), return_inverse=True)
    new, old = _sums(margins, truth, group), _sums(incumbent_margins, truth, group)
    sizes = np.bincount(group)  # (n_prompts,)
    draws = _bootstrap(np.stack([new, old]), sizes)  # (2, draws, columns)
    difference, brier = draws[0, :, 0] - draws[1, :, 0], draws[0, :, 1] - draws[1, :, 1]  # (draws,)
    whole = np.stack([new, old]).sum(axis=1) / len(prompts)  # (2, columns)
    errors = _ece(whole)
    return Score(
        len(prompts), len(names), float(whole[0, 0]), float(whole[1, 0]), float(whole[0, 0] - whole[1, 0]),
        *_interval(difference),
        float(whole[0, 1]), float(whole[1, 1]), *_interval(brier),
        float(errors[0]), float(errors[1]), *_interval(_ece(draws[0])),
        float(whole[0, 2:].sum()), *_interval(draws[0, :, 2:].sum(axis=-1)),
    )  # fmt: skip


def only_claimed(score: Score, *, new: bool, incumbent: bool) -> Score:
    """The score without figures of probabilities that nobody claimed: those of `new`, or of the `incumbent`."""
    of_both: dict[str, Any] = dict.fromkeys(("incumbent_brier", "brier_low", "brier_high", "incumbent_ece"))
    of_new: dict[str, Any] = dict.fromkeys(
        ("brier", "ece", "ece_low", "ece_high", "excess", "excess_low", "excess_high")
    )
    return replace(score, **({} if new and incumbent else of_both), **({} if new else of_new))


def _sums(margins: NDArray[Any], truth: Floats, group: NDArray[Any]) -> Floats:
    """(n_prompts, 2 + N_BINS): sums over a prompt's pairs of right choices, squared errors, and confidence − right by bin."""
    right = (np.sign(margins) + 1) / 2  # (n,) of 0, 0.5, 1
    p = np.exp(-np.logaddexp(0.0, -margins))  # (n,) σ(margin)
    confidence, agreed = np.maximum(p, 1 - p), np.where(p > 0.5, truth, np.where(p < 0.5, 1 - truth, 0.5))
    place = np.minimum(((confidence - 0.5) * 2 * N_BINS).astype(int), N_BINS - 1)
    gaps = np.zeros((len(margins), N_BINS))
    gaps[np.arange(len(margins)), place] = confidence - agreed
    columns = np.column_stack([right, (p - truth) ** 2, gaps])  # (n, 2 + N_BINS)
    sums = np.zeros((group.max() + 1, columns.shape[1]))
    np.add.at(sums, group, columns)
    return sums


def _bootstrap(sums: Floats, sizes: NDArray[Any]) -> Floats:
    """Means per pair in BOOTSTRAP_DRAWS resamples of prompts: sums (2, n_prompts, C), sizes (n_prompts,) → (2, draws, C)."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    draws = []
    for _chunk in range(BOOTSTRAP_DRAWS // BOOTSTRAP_CHUNK):  # in chunks: draws × prompts need not fit in memory
        picked = rng.integers(0, len(sizes), (BOOTSTRAP_CHUNK, len(sizes)))
        counts = np.zeros((BOOTSTRAP_CHUNK, len(sizes)))  # how often a draw holds a prompt
        np.add.at(counts, (np.arange(BOOTSTRAP_CHUNK)[:, None], picked), 1)
        draws.append(counts @ sums / (counts @ sizes)[None, :, None])
    return np.concatenate(draws, axis=1)


def _ece(means: Floats) -> Floats:
    """(…, 2 + N_BINS) → (…): Σ over bins of their share × |mean confidence − share of right choices| (Guo et al. 2017,
    arXiv 1706.04599, eq. 3); both factors are in the mean over all pairs already.
    """
    return np.abs(means[..., 2:]).sum(axis=-1)


def _interval(draws: Floats) -> tuple[float, float]:
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
