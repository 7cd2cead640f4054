"""When a campaign will be done, from how many judgments came each day. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_DAYS = 3  # fewer say nothing about how days differ
HISTORY = 28  # days that are looked back upon
HORIZON = 3650  # days that are looked ahead
N_FUTURES = 2000
RANGE = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Forecast:
    """Whole days from now until nothing is open, in 5, 50 and 95 % of the futures; None: not within HORIZON days."""

    low: int | None
    middle: int | None
    high: int | None
    n_days: int


def finish(per_day: Sequence[int], remaining: int, rng: np.random.Generator) -> Forecast | None:
    """`per_day` (days,) judgments of every full day so far, oldest first, days without any among them.

    A future is made of days like the past ones. As few days do not tell what is typical either, each future draws its days
    from a resample of the past (a bootstrap; Efron & Tibshirani 1993, chapter 6): the range holds both kinds of chance, and
    what it cannot hold is that people stop or more of them come. None before MIN_DAYS full days, or when nothing came.
    """
    past = np.asarray(per_day[-HISTORY:], dtype=float)
    if remaining <= 0:
        return Forecast(0, 0, 0, len(past))
    if len(past) < MIN_DAYS or not past.sum():
        return None
    pasts = past[rng.integers(len(past), size=(N_FUTURES, len(past)))]  # (B, days)
    horizon = min(HORIZON, math.ceil(6 * remaining / past.mean()) + 10)
    drawn = rng.integers(len(past), size=(N_FUTURES, horizon))
    done = np.cumsum(np.take_along_axis(pasts, drawn, axis=1), axis=1) >= remaining  # (B, horizon)
    needed = np.where(done.any(axis=1), done.argmax(axis=1) + 1.0, np.inf)
    low, middle, high = (_days(float(limit)) for limit in np.quantile(needed, RANGE, method="higher"))
    return Forecast(low, middle, high, len(past))


def _days(value: float) -> int | None:
    return int(value) if math.isfinite(value) else None
