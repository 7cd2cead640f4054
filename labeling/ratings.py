"""A leaderboard of versions from comparisons, with what it can and cannot tell. Pure functions over numpy arrays.

Bradley–Terry strengths with ties (Davidson 1970) and a side effect, in one regression (`labeling.davidson`); with length
features it is a leaderboard at equal length, as AlpacaEval's length control and Chatbot Arena's style control are (Dubois et
al. 2404.04475; Chiang et al. 2403.04132). Intervals are sandwich ones over prompts: votes on one prompt depend on each other.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from django.utils.translation import gettext as _
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from labeling import davidson

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
POWER = 0.8
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
PRECISION = 1 / 3**2  # strengths ~ N(0, 3²) logits: hardly felt, but a version that won every vote stays finite
WEAK_PRECISION = 0.01  # of the side and of features
ELO = 400 / math.log(10)  # the familiar scale: 400 points are odds of 10 to 1


@dataclass(frozen=True)
class Matches:
    """Votes between versions: `first` and `second` (n,) index versions, `value` (n,) has a sign (positive: first is better,
    0: tie), `side` (n,) is +1 where the first was on the left, −1 where on the right, 0 unknown; `cluster` (n,) names the
    prompt. `features` (n, F), if any, change sign with the responses (`bias.style_features`).
    """

    first: Ints
    second: Ints
    value: Floats
    side: Ints
    cluster: NDArray
    features: Floats | None = None


@dataclass(frozen=True)
class Standing:
    """One version. `rating` is on the Elo scale, 1000 the mean of its component, with `low` and `high`.

    `win_rate` is the probability to win against the baseline in a vote that somebody decides, with its interval; None when
    no chain of comparisons joins the two. `rank` counts within the component, `best_rank` and `worst_rank` are those that
    the intervals of the pairwise differences leave open. Versions of different `component` cannot be compared at all.
    """

    version: int
    component: int
    rating: float
    low: float
    high: float
    rank: int
    best_rank: int
    worst_rank: int
    win_rate: float | None
    win_rate_low: float | None
    win_rate_high: float | None
    n_won: int
    n_lost: int
    n_tied: int


def leaderboard(matches: Matches, n_versions: int, baseline: int) -> list[Standing]:
    """Standings of the versions that have a vote, best first in each component, larger components first.

    Votes between a version and itself are left out. Where the maximum likelihood fit does not exist (some versions never
    lost to the others: Ford 1957), the prior keeps strengths finite and the intervals are the posterior's, for the sandwich
    would be far too sure.
    """
    matches = _between_versions(matches)
    if not len(matches.value):
        return []
    components, is_strong = _components(matches, n_versions)
    found = _fit(matches, n_versions, is_strong)
    counts = _count(matches, n_versions)
    groups = [np.flatnonzero((components == c) & (counts.sum(axis=1) > 0)) for c in np.unique(components)]
    groups = sorted((group for group in groups if len(group)), key=lambda group: (-len(group), group[0]))
    return [
        standing
        for number, members in enumerate(groups)
        for standing in _standings(found, members, n_versions, number, baseline, counts)
    ]


def judgments_needed(win_rate: float, power: float = POWER, level: float = LEVEL) -> int:
    """Decided, independent judgments that find a true `win_rate` to differ from one half with probability `power` in a
    two-sided test at `level`: ((z_level ½ + z_power √(p (1 − p))) / (p − ½))² (Fleiss, Levin & Paik 2003, section 2.4).

    0.60 takes 194, 0.55 takes 783, 0.52 takes 4,904. Raises ValueError for 0.5, which no number of judgments tells from itself.
    """
    if not 0 < win_rate < 1 or win_rate == 0.5:
        raise ValueError("Give a win rate between 0 and 1 other than 0.5.")
    spread = NormalDist().inv_cdf((1 + level) / 2) / 2 + NormalDist().inv_cdf(power) * math.sqrt(
        win_rate * (1 - win_rate)
    )
    return math.ceil((spread / (win_rate - 0.5)) ** 2)


def detectable(n: int, power: float = POWER, level: float = LEVEL) -> float | None:
    """The smallest win rate above one half that `n` decided judgments tell from it; None when not even 0.99 can be told."""
    if n < judgments_needed(0.99, power, level):
        return None
    low, high = 0.5, 0.99
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if judgments_needed(middle, power, level) <= n else (middle, high)
    return high


def describe_power(n: int, win_rate: float | None = None) -> str:
    """What `n` decided judgments between two versions can tell, in a sentence; `win_rate` is what was observed."""
    smallest = detectable(n)
    if win_rate is None or round(win_rate, 2) == 0.5:
        if smallest is None:
            return _("Not enough judgments to tell any two versions apart: {n}.").format(n=n)
        return _("{n} judgments tell a win rate of {rate} or more from 50 %.").format(
            n=n, rate=_percent(smallest, up=True)
        )
    needed = judgments_needed(win_rate)
    words = {"n": n, "rate": _percent(win_rate), "needed": needed}
    if n < needed:
        return _("Not enough judgments to tell {rate} from 50 %: {n} of about {needed}.").format(**words)
    return _("Enough judgments to tell {rate} from 50 %: {n}, of which about {needed} are needed.").format(**words)


def _between_versions(matches: Matches) -> Matches:
    keep = matches.first != matches.second
    return Matches(
        matches.first[keep],
        matches.second[keep],
        matches.value[keep],
        matches.side[keep],
        matches.cluster[keep],
        None if matches.features is None else matches.features[keep],
    )


def _components(matches: Matches, n_versions: int) -> tuple[Ints, bool]:
    """The component of each version, and whether within each everybody can be reached from everybody by wins and ties."""
    won, lost = matches.value >= 0, matches.value <= 0
    winners = np.concatenate([matches.first[won], matches.second[lost]])
    losers = np.concatenate([matches.second[won], matches.first[lost]])
    graph = coo_array((np.ones(len(winners)), (winners, losers)), shape=(n_versions, n_versions))
    n_weak, components = connected_components(graph, connection="weak")
    n_strong, _strong = connected_components(graph, connection="strong")
    return components, n_weak == n_strong


def _fit(matches: Matches, n_versions: int, is_strong: bool) -> davidson.Regression:
    """Coefficients: versions, then the side, then the features."""
    rows = np.arange(len(matches.value))
    design = np.zeros((len(rows), n_versions))
    design[rows, matches.first] = 1
    design[rows, matches.second] = -1
    others = [matches.side[:, None].astype(float), *([] if matches.features is None else [matches.features])]
    design = np.column_stack([design, *others])
    precision = np.full(design.shape[1], WEAK_PRECISION)
    precision[:n_versions] = PRECISION
    return davidson.fit(design, matches.value, precision, matches.cluster if is_strong else None)


def _count(matches: Matches, n_versions: int) -> Ints:
    """(versions, 3): won, lost, tied."""
    counts = np.zeros((n_versions, 3), dtype=int)
    outcome = np.where(matches.value > 0, 0, np.where(matches.value < 0, 1, 2))
    np.add.at(counts, (matches.first, outcome), 1)
    np.add.at(counts, (matches.second, np.array([1, 0, 2])[outcome]), 1)
    return counts


def _standings(
    found: davidson.Regression, members: Ints, n_versions: int, component: int, baseline: int, counts: Ints
) -> list[Standing]:
    unit = np.eye(n_versions, len(found.coefficients))
    mean = unit[members].mean(axis=0)
    strengths = [found.contrast(unit[version] - mean) for version in members]
    order = np.argsort([-value for value, _ in strengths], kind="stable")
    standings = []
    for rank, position in enumerate(order, 1):
        version, (value, error) = int(members[position]), strengths[position]
        best, worst = _rank_range(found, unit, version, members)
        rate: tuple[float, float, float] | tuple[None, None, None] = (None, None, None)
        if baseline in members:
            rate = _win_rate(*found.contrast(unit[version] - unit[baseline]))
        standings.append(
            Standing(
                version=version,
                component=component,
                rating=1000 + ELO * value,
                low=1000 + ELO * (value - Z * error),
                high=1000 + ELO * (value + Z * error),
                rank=rank,
                best_rank=best,
                worst_rank=worst,
                win_rate=rate[0],
                win_rate_low=rate[1],
                win_rate_high=rate[2],
                n_won=int(counts[version, 0]),
                n_lost=int(counts[version, 1]),
                n_tied=int(counts[version, 2]),
            )
        )
    return standings


def _rank_range(found: davidson.Regression, unit: Floats, version: int, members: Ints) -> tuple[int, int]:
    """1 + how many others are surely better, and the component's size less how many are surely worse."""
    differences = [found.contrast(unit[other] - unit[version]) for other in members if other != version]
    n_better = sum(value - Z * error > 0 for value, error in differences)
    n_worse = sum(value + Z * error < 0 for value, error in differences)
    return 1 + n_better, len(members) - n_worse


def _win_rate(value: float, error: float) -> tuple[float, float, float]:
    middle, low, high = expit([value, value - Z * error, value + Z * error])
    return float(middle), float(low), float(high)


def _percent(share: float, *, up: bool = False) -> str:
    """Whole percents; rounded up where a smaller number would promise too much."""
    return f"{math.ceil(share * 100 - 1e-9) if up else round(share * 100)} %"
