"""How far people agree beyond chance: Krippendorff's alpha, Cohen's and Fleiss' kappa, percent agreement.

Long format: `item`, `annotator`, `value` are arrays of one length; a value that is missing is simply not there. Pure
functions over numpy arrays, deterministic by the `rng` that is passed.

Intervals are percentile bootstraps that resample items (Efron & Tibshirani 1993, ch. 13). Every statistic here depends on
an item only through how often each value was given to it, so items with equal counts are one *pattern*, and resampling
n items is one multinomial draw over the patterns: the same distribution as drawing items one by one, at a cost that does
not grow with their number.

None stands for "not enough": no item with two values, or values that leave nothing to agree on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Metric = Literal["nominal", "ordinal", "interval"]
Weighting = Literal["linear", "quadratic"]
Floats = NDArray[np.float64]

N_RESAMPLES = 1000
LEVEL = 0.95
MIN_SHARE_DEFINED = 0.5  # of the resamples; with fewer an interval would speak of the lucky ones only


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval, which is None when resampling says nothing (one item, say).

    `n_items` are the items that carry it (with two values or more), `n_values` the values on them.
    """

    value: float
    low: float | None
    high: float | None
    n_items: int
    n_values: int


@dataclass(frozen=True)
class _Patterns:
    """Items by how often they got each value: `counts` (P, V), `times` (P,) items per row, `values` (V,) sorted."""

    counts: Floats
    times: NDArray[np.int64]
    values: NDArray

    def estimate(
        self, statistic: Callable[[Floats], Floats], rng: np.random.Generator, n_resamples: int
    ) -> Estimate | None:
        """`statistic` maps items per pattern (B, P) to (B,), NaN where it is undefined."""
        return _estimate(self.times, self.counts.sum(axis=1), statistic, rng, n_resamples)


def krippendorff_alpha(
    item: ArrayLike,
    annotator: ArrayLike,
    value: ArrayLike,
    metric: Metric,
    rng: np.random.Generator,
    n_resamples: int = N_RESAMPLES,
) -> Estimate | None:
    """alpha = 1 − D_o / D_e, 1 for perfect agreement, 0 for chance (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability", section E: any number of annotators, any metric, missing values).

    Coincidences o_ck = sum over items of n_uc (n_uk − [c = k]) / (m_u − 1), n_c their margins, n their total;
    D_o = Σ o_ck δ²_ck / n and D_e = Σ n_c n_k δ²_ck / (n (n − 1)). δ² is [c ≠ k] (nominal), (c − k)² (interval) or the
    squared distance of the values' mid-ranks (ordinal). Raises ValueError when a person valued an item twice.
    """
    patterns = _patterns(item, annotator, value)
    if patterns is None:
        return None
    n_values = patterns.counts.sum(axis=1)
    pairs = patterns.counts[:, :, None] * (patterns.counts[:, None, :] - np.eye(len(patterns.values)))  # (P, V, V)
    coincidences = pairs / (n_values - 1)[:, None, None]

    def alpha(times: Floats) -> Floats:
        margins = times @ patterns.counts  # (B, V)
        n = margins.sum(axis=1)  # (B,)
        distance = _distance(patterns.values, margins, metric)  # (B, V, V)
        observed = np.tensordot(times, coincidences, 1)
        expected = margins[:, :, None] * margins[:, None, :]
        return 1 - _divide((n - 1) * (observed * distance).sum((1, 2)), (expected * distance).sum((1, 2)))

    return patterns.estimate(alpha, rng, n_resamples)


def fleiss_kappa(
    item: ArrayLike, annotator: ArrayLike, value: ArrayLike, rng: np.random.Generator, n_resamples: int = N_RESAMPLES
) -> Estimate | None:
    """kappa = (P − P_e) / (1 − P_e): P the mean over items of the share of agreeing pairs of values, P_e = Σ p_c² with
    p_c the share of value c (Fleiss 1971, equations 1 to 7).

    Fleiss has as many values on every item; here items with one value are left out and all others count the same, which
    is his formula where he defines it. Raises ValueError when a person valued an item twice.
    """
    patterns = _patterns(item, annotator, value)
    if patterns is None:
        return None
    agreeing = _agreeing(patterns.counts)

    def kappa(times: Floats) -> Floats:
        margins = times @ patterns.counts
        chance = ((margins / margins.sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
        return _divide(times @ agreeing / times.sum(axis=1) - chance, 1 - chance)

    return patterns.estimate(kappa, rng, n_resamples)


def percent_agreement(
    item: ArrayLike, annotator: ArrayLike, value: ArrayLike, rng: np.random.Generator, n_resamples: int = N_RESAMPLES
) -> Estimate | None:
    """The mean over items of the share of pairs of values that are equal; says nothing of chance.

    Raises ValueError when a person valued an item twice.
    """
    patterns = _patterns(item, annotator, value)
    if patterns is None:
        return None
    agreeing = _agreeing(patterns.counts)
    return patterns.estimate(lambda times: times @ agreeing / times.sum(axis=1), rng, n_resamples)


def cohen_kappa(
    first: ArrayLike,
    second: ArrayLike,
    rng: np.random.Generator,
    weighting: Weighting | None = None,
    n_resamples: int = N_RESAMPLES,
) -> Estimate | None:
    """Agreement of two people on the items that both valued: `first[i]` and `second[i]` are what they said of item i.

    kappa = 1 − Σ w_ck o_ck / Σ w_ck e_ck with o the joint shares, e the product of each person's own (Cohen 1960; with
    weights 1968). w is [c ≠ k], |c − k| (linear) or (c − k)² (quadratic), in units of the values.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape:
        raise ValueError("Give what both people said of the same items: two arrays of one length.")
    if not len(first):
        return None
    values, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    n = len(values)
    cells, times = np.unique(codes[: len(first)] * n + codes[len(first) :], return_counts=True)
    weights = _weights(values, weighting)
    by_first, by_second = np.eye(n)[cells // n], np.eye(n)[cells % n]  # (P, V)
    observed = weights.ravel()[cells]

    def kappa(times: Floats) -> Floats:
        expected = np.einsum("bc,ck,bk->b", times @ by_first, weights, times @ by_second)
        return 1 - _divide(times @ observed * times.sum(axis=1), expected)

    return _estimate(times, np.full(len(cells), 2.0), kappa, rng, n_resamples)


def _patterns(item: ArrayLike, annotator: ArrayLike, value: ArrayLike) -> _Patterns | None:
    """Items with two values or more; None when there is none."""
    item, annotator, value = np.asarray(item), np.asarray(annotator), np.asarray(value)
    if not len(item) == len(annotator) == len(value):
        raise ValueError("`item`, `annotator` and `value` must have one length.")
    if not len(item):
        return None
    items, item_codes = np.unique(item, return_inverse=True)
    people, person_codes = np.unique(annotator, return_inverse=True)
    if len(np.unique(item_codes * len(people) + person_codes)) < len(item):
        raise ValueError("A person valued an item twice. Leave repeats out: agreement is between people.")
    values, value_codes = np.unique(value, return_inverse=True)
    flat = np.bincount(item_codes * len(values) + value_codes, minlength=len(items) * len(values))
    table = flat.reshape(len(items), len(values))
    table = table[table.sum(axis=1) > 1]
    if not len(table):
        return None
    counts, times = np.unique(table, axis=0, return_counts=True)
    return _Patterns(counts.astype(float), times, values)


def _estimate(
    times: NDArray[np.int64],
    n_values: Floats,
    statistic: Callable[[Floats], Floats],
    rng: np.random.Generator,
    n_resamples: int,
) -> Estimate | None:
    value = float(statistic(times[None].astype(float))[0])
    if np.isnan(value):
        return None
    n_items = int(times.sum())
    low = high = None
    if n_items > 1 and n_resamples > 0:
        draws = statistic(rng.multinomial(n_items, times / n_items, size=n_resamples).astype(float))
        draws = draws[~np.isnan(draws)]
        if len(draws) >= MIN_SHARE_DEFINED * n_resamples:
            low, high = (float(limit) for limit in np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Estimate(value, low, high, n_items, int(times @ n_values))


def _distance(values: NDArray, margins: Floats, metric: Metric) -> Floats:
    """Krippendorff's δ², (V, V) or (B, V, V). Ordinal ones depend on how often each value occurs."""
    if metric == "nominal":
        return 1 - np.eye(len(values))
    places = {"interval": values.astype(float), "ordinal": np.cumsum(margins, axis=-1) - margins / 2}
    if metric not in places:
        raise ValueError(f"There is no metric {metric!r}: use nominal, ordinal or interval.")
    place = places[metric]
    return (place[..., :, None] - place[..., None, :]) ** 2


def _weights(values: NDArray, weighting: Weighting | None) -> Floats:
    if weighting is None:
        return 1 - np.eye(len(values))
    powers = {"linear": 1, "quadratic": 2}
    if weighting not in powers:
        raise ValueError(f"There is no weighting {weighting!r}: use linear or quadratic.")
    return np.abs(np.subtract.outer(values, values)).astype(float) ** powers[weighting]


def _agreeing(counts: Floats) -> Floats:
    """(P,) share of pairs of values on an item that are equal."""
    n = counts.sum(axis=1)
    return (counts * (counts - 1)).sum(axis=1) / (n * (n - 1))


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """NaN where the denominator is 0: no disagreement was possible."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
