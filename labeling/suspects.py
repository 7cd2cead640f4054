"""Annotators whose votes look like something else than judgment: random clicks, always one side, always a tie, everything
upside down, faster than anybody reads. A finding is evidence for a person to look at; nothing is dropped because of it
(and the reliability model already weighs such votes by what they are worth).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from numpy.typing import ArrayLike, NDArray

from labeling import bias
from labeling.reliability import SoftLabels, Votes

STRICT = 0.999  # of intervals that must clear a limit by themselves: chance alone hardly ever does that
ALMOST_ALWAYS = 0.75
Z = 1.96
LOW_RELIABILITY = 0.6  # of the typical annotator's; a person below it who is above chance is weak, not suspect
NEAR_CHANCE = 0.3  # a vote of such reliability says less than a tenth of a typical one (the square of it)
MIN_VOTES = 20


class Kind(StrEnum):
    ONE_SIDE = "one_side"
    ALWAYS_TIE = "always_tie"
    INVERTED = "inverted"
    RANDOM = "random"
    TOO_FAST = "too_fast"


@dataclass(frozen=True)
class Suspect:
    """`value` with `low` and `high` is what speaks against the annotator: a share, or with INVERTED and RANDOM the
    reliability γ (1 typical, 0 chance). `evidence` says it in words.
    """

    annotator: int
    kind: Kind
    value: float
    low: float
    high: float
    n_votes: int
    evidence: str


def find_suspects(votes: Votes, labels: SoftLabels, is_fast: ArrayLike | None = None) -> list[Suspect]:
    """Findings by annotator. `labels` is `reliability.fit(votes)`; `is_fast` (n,) marks votes as `bias.is_too_fast` does.

    - ONE_SIDE, ALWAYS_TIE, TOO_FAST: the 99.9 % interval of the share of such votes lies above three quarters (for TOO_FAST:
      above one half). ALWAYS_TIE only where the typical annotator calls a tie less than half of the time.
    - INVERTED: γ lies below −NEAR_CHANCE, its 95 % interval below 0. RANDOM: otherwise, when the interval lies below
      LOW_RELIABILITY and reaches 0, or lies below NEAR_CHANCE altogether, and neither of the shares explains it. Both want
      MIN_VOTES votes on pairs that others voted on too or whose answer is known.
    """
    fast = np.zeros(len(votes.item), dtype=bool) if is_fast is None else np.asarray(is_fast, dtype=bool)
    tie_shares = [np.mean(votes.value[votes.annotator == a] == 0) for a in np.unique(votes.annotator)]
    ties_are_usual = bool(tie_shares) and float(np.median(tie_shares)) >= 0.5
    agrees = _agrees_with_others(votes)
    found: list[Suspect] = []
    for annotator in np.unique(votes.annotator):
        own = votes.annotator == annotator
        patterns = [_one_side(votes, own), None if ties_are_usual else _always_tie(votes, own)]
        explained = any(patterns)
        checks = [*patterns, _unreliable(labels, agrees, own, int(annotator), explained), _too_fast(fast, own)]
        found += [finding(int(annotator)) for finding in checks if finding]
    return found


Finding = Callable[[int], Suspect]


def _finding(kind: Kind, share: bias.Share, evidence: str) -> Finding:
    value, low, high = share.value or 0.0, share.low or 0.0, share.high or 0.0
    return lambda annotator: Suspect(annotator, kind, value, low, high, share.n, evidence)


def _one_side(votes: Votes, own: NDArray[np.bool_]) -> Finding | None:
    left = bias.left_share(votes.value[own], votes.side[own], STRICT)
    for share, text in (
        (left, _("Chose the left response in {share} of {n} decided votes; the sides are random.")),
        (
            bias.share(left.n - left.k, left.n, STRICT),
            _("Chose the right response in {share} of {n} decided votes; the sides are random."),
        ),
    ):
        if share.low is not None and share.low > ALMOST_ALWAYS:
            return _finding(Kind.ONE_SIDE, share, text.format(share=_percent(share), n=share.n))
    return None


def _always_tie(votes: Votes, own: NDArray[np.bool_]) -> Finding | None:
    share = bias.share(int((votes.value[own] == 0).sum()), int(own.sum()), STRICT)
    if share.low is None or share.low <= ALMOST_ALWAYS:
        return None
    text = _("Called {share} of {n} pairs a tie, which others do not.").format(share=_percent(share), n=share.n)
    return _finding(Kind.ALWAYS_TIE, share, text)


def _too_fast(fast: NDArray[np.bool_], own: NDArray[np.bool_]) -> Finding | None:
    share = bias.share(int(fast[own].sum()), int(own.sum()), STRICT)
    if share.low is None or share.low <= 0.5:
        return None
    text = _("Answered {share} of {n} pairs sooner than skimming them at {wpm} words a minute takes.")
    return _finding(Kind.TOO_FAST, share, text.format(share=_percent(share), n=share.n, wpm=bias.SKIMMING_WPM))


def _unreliable(
    labels: SoftLabels, agrees: NDArray[np.float64], own: NDArray[np.bool_], annotator: int, explained: bool
) -> Finding | None:
    compared = agrees[own & ~np.isnan(agrees)]
    if not labels.is_learned or len(compared) < MIN_VOTES:
        return None
    gamma, error = float(labels.reliability[annotator]), float(labels.reliability_error[annotator])
    low, high = gamma - Z * error, gamma + Z * error
    is_inverted = high < 0 and gamma < -NEAR_CHANCE
    is_chance = high < LOW_RELIABILITY and (low <= 0 or high < NEAR_CHANCE) and not explained
    if not is_inverted and not is_chance:
        return None
    kind = Kind.INVERTED if is_inverted else Kind.RANDOM
    evidence = _explain(kind, compared, float(np.nanmean(agrees)), gamma, low, high)
    return lambda annotator: Suspect(annotator, kind, gamma, low, high, len(compared), evidence)


def _explain(kind: Kind, compared: NDArray[np.float64], usual: float, gamma: float, low: float, high: float) -> str:
    facts = ngettext(
        "Sides with the known answer or the others' majority in {share} of {n} vote ({usual} among all annotators); "
        "reliability {gamma:.2f}, between {low:.2f} and {high:.2f}, where 1 is typical and 0 is chance.",
        "Sides with the known answer or the others' majority in {share} of {n} votes ({usual} among all annotators); "
        "reliability {gamma:.2f}, between {low:.2f} and {high:.2f}, where 1 is typical and 0 is chance.",
        len(compared),
    ).format(share=f"{compared.mean():.0%}", n=len(compared), usual=f"{usual:.0%}", gamma=gamma, low=low, high=high)
    readings = {
        Kind.INVERTED: _("Seems to answer the opposite question, or to mistake the keys."),
        Kind.RANDOM: _("No better than clicking at random would be."),
    }
    return f"{readings[kind]} {facts}"


def _agrees_with_others(votes: Votes) -> NDArray[np.float64]:
    """(n,) 1 where a decided vote sides with the known answer or else the majority of the others' votes, 0 where it sides
    against it, NaN where the vote is a tie or there is no such side.
    """
    sign = np.sign(votes.value)
    others = np.bincount(votes.item, sign, minlength=len(votes.known))[votes.item] - sign
    known = votes.known[votes.item]
    direction = np.sign(np.where(np.isnan(known), others, known)) * sign
    return np.where(direction == 0, np.nan, (direction > 0).astype(float))


def _percent(share: bias.Share) -> str:
    return f"{share.value:.0%}"
