"""What moves a choice besides quality: the side, length and style; and whether people read, remember and know the answer.

Everything here is measured and shown, or corrected for in a fit; no judgment is ever dropped because of it. Pure functions
over numpy arrays. `value` holds grades whose sign says which response is better (positive: the first, 0: tie); `side` is +1
where the first response was shown on the left, −1 where on the right, 0 where that is not known.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labeling import davidson

Floats = NDArray[np.float64]

LEVEL = 0.95
SKIMMING_WPM = (
    600  # faster than skimming: reading for comprehension is at 240 (Brysbaert 2019, meta-analysis of 190 studies)
)
WEAK_PRECISION = 0.01  # N(0, 10²) logits: finite coefficients when a feature decides everything
STYLE = ("length", "headers", "lists", "bold")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")  # a Han or kana sign is a word
_HEADER = re.compile(r"^ {0,3}#{1,6}\s", re.MULTILINE)
_LIST = re.compile(r"^\s*(?:[-*+]|\d{1,9}[.)])\s", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


@dataclass(frozen=True)
class Share:
    """`k` of `n` with Wilson's 95 % interval; `value`, `low` and `high` are None when `n` is 0."""

    k: int
    n: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Coefficient:
    """Change in the log odds of being chosen, with its 95 % interval; `odds` is the odds ratio exp(value)."""

    name: str
    value: float
    low: float
    high: float
    odds: float


def share(k: int, n: int, level: float = LEVEL) -> Share:
    """Wilson 1927: the shares p whose test of k in n does not reject; sensible at 0, at n and for small n."""
    if n == 0:
        return Share(0, 0, None, None, None)
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    return Share(k, n, k / n, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def left_share(value: ArrayLike, side: ArrayLike, level: float = LEVEL) -> Share:
    """How often the left response was chosen, ties and unknown sides left out. Sides are randomised for every person and
    pair, so 0.5 is no bias, whatever the pairs.
    """
    chose_left = np.sign(np.asarray(value)) * np.sign(np.asarray(side))
    return share(int((chose_left > 0).sum()), int((chose_left != 0).sum()), level)


def left_shares(annotator: ArrayLike, value: ArrayLike, side: ArrayLike) -> dict[int, Share]:
    """`left_share` of every annotator."""
    annotator, value, side = np.asarray(annotator), np.asarray(value), np.asarray(side)
    return {int(a): left_share(value[annotator == a], side[annotator == a]) for a in np.unique(annotator)}


def gold_accuracy(value: ArrayLike, known: ArrayLike) -> Share:
    """How often the known answer was given: the same sign, a tie for a tie. Votes where `known` is NaN are left out."""
    value, known = np.asarray(value), np.asarray(known, dtype=float)
    is_gold = ~np.isnan(known)
    return share(int((np.sign(value[is_gold]) == np.sign(known[is_gold])).sum()), int(is_gold.sum()))


def self_consistency(first: ArrayLike, again: ArrayLike) -> Share:
    """How often a person who saw a pair again with its sides swapped gave the same answer; both in terms of the responses,
    not of the sides, so that "always left" is never consistent.
    """
    is_same = np.equal(np.sign(np.asarray(first)), np.sign(np.asarray(again)))
    return share(int(np.count_nonzero(is_same)), is_same.size)


def is_too_fast(n_words: ArrayLike, shown_ms: ArrayLike) -> NDArray[np.bool_]:
    """Judged in less time than skimming everything that was shown takes; NaN in `shown_ms` (not known) is not too fast."""
    return np.asarray(shown_ms, dtype=float) < np.asarray(n_words) / SKIMMING_WPM * 60_000


def count_words(text: str) -> int:
    """Words as `\\w+`; where a script has no spaces (Chinese, Japanese) each sign counts as one."""
    return sum(1 for _ in _WORD.finditer(text))


def count_style(text: str) -> tuple[int, int, int, int]:
    """STYLE of a Markdown text: words, headers, list items, bold passages."""
    return count_words(text), len(_HEADER.findall(text)), len(_LIST.findall(text)), len(_BOLD.findall(text))


def style_features(first: ArrayLike, second: ArrayLike) -> Floats:
    """(n, len(STYLE)) from the two responses' counts: (a − b) / (a + b), 0 where both are 0, divided by its standard deviation.

    Chatbot Arena's style control (Li et al., lmsys.org, 2024-08-28). It is not centred, so that equal styles stay at 0 and
    swapping the responses changes the sign of every feature.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    difference = np.divide(a - b, a + b, out=np.zeros_like(a), where=a + b > 0)
    spread = np.sqrt((difference**2).mean(axis=0)) if len(a) else np.zeros(a.shape[1:])
    return np.divide(difference, spread, out=np.zeros_like(difference), where=spread > 0)


def coefficients(
    value: ArrayLike, side: ArrayLike, features: ArrayLike, cluster: ArrayLike, names: Sequence[str] = STYLE
) -> list[Coefficient] | None:
    """How much the left side ("side") and one standard deviation of each feature add to the log odds of being chosen, all
    in one fit with ties; rows of one `cluster` (a prompt) may depend on each other.

    Features that never differ are left out. None when fewer than 10 votes per coefficient decide anything (the rule of
    thumb of Peduzzi et al. 1996).
    """
    value, side, features = np.asarray(value), np.asarray(side, dtype=float), np.asarray(features, dtype=float)
    differs = [k for k in range(features.shape[1]) if features[:, k].any()]
    design = np.column_stack([side, features[:, differs]])
    if (np.sign(value) != 0).sum() < 10 * design.shape[1]:
        return None
    found = davidson.fit(design, value, np.full(design.shape[1], WEAK_PRECISION), cluster)
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    errors = np.sqrt(np.diag(found.covariance))
    labels = ["side", *(names[k] for k in differs)]
    return [
        Coefficient(name, float(b), float(b - z * error), float(b + z * error), float(np.exp(b)))
        for name, b, error in zip(labels, found.coefficients, errors, strict=True)
    ]
