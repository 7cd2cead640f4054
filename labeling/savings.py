"""What the active arm saved: how many of its judgments teach as much as so many judgments of the random arm.

A small reward model (labeling.linear, on labeling.features) learns from the first n judgments of each arm, and is asked about
judgments of the random arm that neither saw (other prompts), weighted by how improbable chance made them. The held-out log
loss falls about linearly in log n; so if the active curve lies lower by `gap`, and both fall by `slope` per unit of log n, the
active arm is ahead by a factor exp(gap / slope) of judgments, and 1 − exp(−gap / slope) of them are saved. Both are means over
all sizes that the two arms have in common: the area between the curves, read along the axis of judgments.

The interval is a percentile bootstrap over prompts (Efron & Tibshirani 1993, chapter 13), whose judgments hang together. It
speaks of this small model; how much a language model saves can differ.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from django.utils.translation import gettext as _
from numpy.typing import NDArray

from labeling import linear, pools
from labeling.models import Campaign
from labeling.pools import Choice, Floats, Material

Ints = NDArray[np.int64]

N_FOLDS = 3  # of the random arm's prompts; each is held out once
N_SIZES = 6
MIN_SIZE = 20  # judgments of the smallest training set
MIN_JUDGMENTS = 60  # of each arm; with fewer nothing is computed
MAX_JUDGMENTS = 2_000  # of each arm, its first ones
N_RESAMPLES = 100
LEVEL = 0.95
MAX_FACTOR = 4.0  # savings are told between −300 % and 75 %: the curves know no more
MIN_SHARE_DEFINED = 0.75  # of the resamples in which the model learned anything
MAX_WEIGHT = 5.0  # times the median


@dataclass(frozen=True)
class Arm:
    """Preferences in the order in which they were made: `delta` (n, d) = φ(chosen) − φ(rejected), `prompt` (n,) whatever
    tells prompts apart, `weight` (n,) of each when it is held out.
    """

    delta: Floats
    prompt: Ints
    weight: Floats

    def first(self, n: int) -> "Arm":
        return Arm(self.delta[:n], self.prompt[:n], self.weight[:n])


@dataclass(frozen=True)
class Saving:
    """`saved` = 1 − n_active / n_random at equal quality, with its interval; None: not enough judgments to tell. Curves are
    held-out log losses (nats) at `sizes` judgments.
    """

    n_active: int
    n_random: int
    saved: float | None = None
    low: float | None = None
    high: float | None = None
    sizes: tuple[int, ...] = ()
    active: tuple[float, ...] = ()
    random: tuple[float, ...] = ()

    def sentence(self) -> str:
        """What can be said, for people."""
        if self.saved is None or self.low is None or self.high is None:
            return _("Not enough judgments to tell what active choice saved.")
        numbers = {"saved": _percent(self.saved), "low": _percent(self.low), "high": _percent(self.high)}
        if self.low > 0:
            return _("Active choice saved %(saved)s of the judgments (%(low)s to %(high)s).") % numbers
        if self.high < 0:
            more = {"more": _percent(-self.saved), "low": _percent(-self.high), "high": _percent(-self.low)}
            return _("Active choice saved nothing: it needed %(more)s more judgments (%(low)s to %(high)s).") % more
        return _("Active choice saved nothing that can be told from chance (%(low)s to %(high)s).") % numbers

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sentence": self.sentence()}


def report(campaign: Campaign, rng: np.random.Generator) -> Saving | None:
    """The saving in one campaign; None where nothing was chosen actively. Takes some seconds with many judgments."""
    choices = pools.read_choices(campaign, 5 * MAX_JUDGMENTS, only_given_out=True)
    by_arm = {arm: [one for one in choices if one.arm == arm] for arm in ("active", "random")}
    if not by_arm["active"]:
        return None
    material = Material(id for one in choices for id in (one.chosen, one.rejected))
    arms = {arm: _arm(material, made, campaign.random_share) for arm, made in by_arm.items()}
    return compare(arms["active"], arms["random"], rng)


def _arm(material: Material, choices: list[Choice], random_share: float) -> Arm:
    prompts = np.array([one.prompt for one in choices], dtype=np.int64)
    return Arm(material.deltas(choices), prompts, weights([one.propensity for one in choices], random_share))


def weights(propensity: Sequence[float | None], random_share: float) -> Floats:
    """(n,) inverse probabilities with which chance alone chose each (Horvitz & Thompson 1952), at most MAX_WEIGHT times their
    median, mean 1. Where chance hit the strategy's best, the stored probability holds the active part too: it is taken off.
    Unknown ones, from before there was a plan, count as the median.
    """
    active = 1 - random_share
    by_chance = np.array([np.nan if p is None else p - active if p > active else p for p in propensity], dtype=float)
    if not len(by_chance) or np.isnan(by_chance).all():
        return np.ones(len(by_chance))
    inverse = 1 / np.maximum(by_chance, 1e-9)
    middle = np.nanmedian(inverse)
    clipped = np.minimum(np.nan_to_num(inverse, nan=middle), MAX_WEIGHT * middle)
    return clipped / clipped.mean()


def compare(active: Arm, random: Arm, rng: np.random.Generator, n_resamples: int = N_RESAMPLES) -> Saving:
    """The saving of one arm over the other. The arms share no judgment, but may share prompts."""
    active, random = active.first(MAX_JUDGMENTS), random.first(MAX_JUDGMENTS)
    n_active, n_random = len(active.delta), len(random.delta)
    prompts, codes = np.unique(np.concatenate([active.prompt, random.prompt]), return_inverse=True)
    if min(n_active, n_random) < MIN_JUDGMENTS or len(np.unique(random.prompt)) < 2 * N_FOLDS:
        return Saving(n_active, n_random)
    fold = rng.permutation(len(prompts)) % N_FOLDS
    n_train = min(n_active, n_random) * (N_FOLDS - 1) // N_FOLDS
    sizes = np.unique(np.geomspace(MIN_SIZE, n_train, N_SIZES).astype(int))
    # What chance drew has no order of its own: any will do, and several are smoother than one.
    arms = (_Coded(active, codes[:n_active]), _Coded(random, codes[n_active:]).shuffled(rng))
    curves = _curves(arms, fold, sizes, np.ones(len(prompts)))
    resampled = [_ahead(_curves(arms, fold, sizes, _resample(len(prompts), rng)), sizes) for _ in range(n_resamples)]
    return _conclude(Saving(n_active, n_random), sizes, curves, np.array(resampled))


@dataclass(frozen=True)
class _Coded:
    """An arm whose prompts are numbered from 0."""

    arm: Arm
    code: Ints

    def shuffled(self, rng: np.random.Generator) -> "_Coded":
        order = rng.permutation(len(self.code))
        arm = Arm(self.arm.delta[order], self.arm.prompt[order], self.arm.weight[order])
        return _Coded(arm, self.code[order])


def _resample(n: int, rng: np.random.Generator) -> Floats:
    """(n,) how often each prompt is drawn in n draws."""
    return rng.multinomial(n, np.full(n, 1 / n)).astype(float)


def _curves(arms: tuple[_Coded, _Coded], fold: Ints, sizes: Ints, times: Floats) -> Floats:
    """(2, sizes) held-out log loss of the active and the random arm, mean over the folds; prompts count `times`."""
    losses = np.zeros((2, len(sizes)))
    random = arms[1]
    for held_out in range(N_FOLDS):
        is_asked = fold[random.code] == held_out
        asked = random.arm.delta[is_asked]
        weight = random.arm.weight[is_asked] * times[random.code[is_asked]]
        for row, coded in enumerate(arms):
            is_seen = fold[coded.code] != held_out
            losses[row] += _learn(coded.arm.delta[is_seen], times[coded.code[is_seen]], sizes, asked, weight)
    return losses / N_FOLDS


def _learn(delta: Floats, times: Floats, sizes: Ints, asked: Floats, weight: Floats) -> Floats:
    """(sizes,) loss on `asked` after the first so many of `delta`; each size starts from the one before."""
    theta = np.zeros(delta.shape[1])
    losses = []
    for size in sizes:
        theta = linear.fit(delta[:size], times[:size], start=theta)
        losses.append(float(weight @ linear.log_loss(asked, theta)) / max(float(weight.sum()), 1e-12))
    return np.array(losses)


def _ahead(curves: Floats, sizes: Ints) -> float:
    """log of the factor by which the active arm is ahead; NaN when neither arm learned anything."""
    x = np.log(sizes) - np.log(sizes).mean()
    slope = -float(x @ curves.mean(axis=0)) / float(x @ x)
    if slope <= 0:
        return np.nan
    gap = float((curves[1] - curves[0]).mean())
    return float(np.clip(gap / slope, -np.log(MAX_FACTOR), np.log(MAX_FACTOR)))


def _conclude(saving: Saving, sizes: Ints, curves: Floats, resampled: Floats) -> Saving:
    known = resampled[~np.isnan(resampled)]
    ahead = _ahead(curves, sizes)
    drawn = replace(
        saving,
        sizes=tuple(sizes.tolist()),
        active=tuple(curves[0].tolist()),
        random=tuple(curves[1].tolist()),
    )
    if np.isnan(ahead) or len(known) < MIN_SHARE_DEFINED * len(resampled):
        return drawn
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return replace(drawn, saved=_saved(ahead), low=_saved(low), high=_saved(high))


def _saved(ahead: float) -> float:
    return float(1 - np.exp(-ahead))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "−")
