"""What can go wrong while a model learns, as the figures show it: each signal is one pure function, with its limits.

A signal sees what is remembered of the steps before, the step's figures (absent ones are not looked at) and the limits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

Figures = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """Thresholds. "Measured": between clean and broken runs, `benchmarks.faults`, figures in docs/log.md."""

    history: int = 4  # steps before a mean says anything
    spike: float = 10.0  # times the mean gradient norm; clipping at 1 hides all below (as PaLM, arXiv 2204.02311, 5.1)
    spike_deviations: float = 5.0  # of the norm's logarithm
    loss_drift: float = 1.0  # deviations above the mean that a loss may lie for good (Page 1954, CUSUM's k)
    loss_sum: float = 8.0  # deviations beyond that, summed up: false alarms are rarer than one in 10⁵ steps
    loss_floor: float = 0.15  # least deviation as a share of the mean: batches are small, early losses all alike
    displaced: float = -0.5  # nats per token of the chosen while margins grow (arXiv 2502.07599); measured
    drifted: float = -1.5  # nats per token of the chosen, whatever the margin does: soon beyond repair; measured
    kl_fresh: float = 1.0  # nats per token of fresh samples above the start; healthy runs stay under 0.3; measured
    kl_broken: float = 3.0  # and where no ladder is climbed any more
    margin: float = 10.0  # nats of reward: σ is 1 to 5 digits, what still grows is over-optimisation
    heldout_drop: float = 0.04  # of the mean held-out probability below the best seen
    certain: float = 3.0  # standard errors that a difference on the same held-out pairs must have
    entropy_low: float = 0.5  # of the start's
    entropy_high: float = 1.5
    repetition: float = 0.3  # share of repeated 4-grams in fresh samples above the start
    end_logratio: float = -1.5  # nats: ends of held-out responses have become 4.5 times less likely; measured
    length_bias: float = 0.4  # how much more often than people it prefers the longer response
    growth: float = 2.0  # length of fresh samples over that of the start, or its inverse
    anchor_step: float = 0.5  # first weight of the NLL; Pang et al. 2024, arXiv 2404.19733, use 1
    anchor_most: float = 2.0
    exam_gap: int = 4  # least number of steps from an exam to one out of turn, which costs as much as a step
    calm: int = 20  # steps without an alarm before a rung is taken back
    settle: int = 5  # steps without an alarm before a state counts as good
    most_roll_backs: int = 6


@dataclass
class Mean:
    """Exponentially weighted mean and deviation of the last 1/(1 − decay) values or so; exact for few."""

    decay: float = 0.9
    n: int = 0
    weight: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, x: float) -> None:
        self.n += 1
        self.weight = self.decay * self.weight + (1 - self.decay)
        self.total = self.decay * self.total + (1 - self.decay) * x
        self.squares = self.decay * self.squares + (1 - self.decay) * x * x

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else 0.0

    @property
    def deviation(self) -> float:
        return math.sqrt(max(0.0, self.squares / self.weight - self.value**2)) if self.weight else 0.0


def fast() -> Mean:
    return Mean(decay=0.7)


@dataclass
class State:
    """Everything that changes, in plain values: it goes into the checkpoint."""

    rate: float = 1.0  # factor on the schedule's rate
    ceiling: float = 1.0  # what `rate` may return to: a roll-back lowers it for good
    anchor: float = 0.0
    n_roll_backs: int = 0
    n_back_in_a_row: int = 0  # roll-backs since the last good state
    alarmed_at: dict[str, list[int]] = field(default_factory=dict)  # signal -> the steps of its last alarms
    quiet_since: int = 0  # step of the last alarm or change
    examined_at: int = 0  # step of the last exam
    norm: Mean = field(default_factory=Mean)  # of the logarithm of the gradient's norm
    loss: Mean = field(default_factory=Mean)
    loss_sum: float = 0.0
    kl_fast: Mean = field(default_factory=fast)
    kl_slow: Mean = field(default_factory=Mean)
    margin_fast: Mean = field(default_factory=fast)
    margin_slow: Mean = field(default_factory=Mean)
    accuracy: Mean = field(default_factory=Mean)
    start: dict[str, Any] = field(default_factory=dict)  # the first value of each figure of an exam
    best: list[float] = field(default_factory=list)  # held-out probabilities where their mean was highest

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """The inverse of asdict."""
        state = cls()
        for name, value in values.items():
            setattr(state, name, Mean(**value) if isinstance(getattr(state, name), Mean) else value)
        return state


# An exam's figures: absent where none was held, None where it came out as no number.
EXAMINED = (
    "heldout_accuracy", "heldout_scores", "length_excess", "end_logps",
    "kl_fresh", "entropy", "fresh_length", "fresh_lengths", "repetition",
)  # fmt: skip

Finding = tuple[float | None, float, str]  # value, limit, what is wrong


def non_finite(state: State, figures: Figures, limits: Limits) -> Finding | None:
    if all(figures.get(name, 0.0) is not None for name in ("loss", "grad_norm")):
        return None
    return None, 0.0, "The loss or its gradient is not a finite number"


def finite(figures: Figures) -> Figures:
    """The figures with None in place of what is not a finite number, or a list that has one such in it."""
    return {name: value if _is_finite(value) else None for name, value in figures.items()}


def _is_finite(value: Any) -> bool:
    return value is not None and all(map(math.isfinite, value if isinstance(value, list) else [value]))


def broken(state: State, figures: Figures, limits: Limits) -> Finding | None:
    """What an exam measures is no number: the parameters themselves are broken, and no skipped step repairs them."""
    if all(figures.get(name, 0.0) is not None for name in EXAMINED):
        return None
    return None, 0.0, "What the model says of held-out or fresh responses is not a finite number: it is broken"


def gradient_spike(state: State, figures: Figures, limits: Limits) -> Finding | None:
    norm = figures.get("grad_norm")
    limit = math.exp(state.norm.value + spike_room(state, limits))
    if not norm or state.norm.n < limits.history or norm <= limit:
        return None
    times = norm / math.exp(state.norm.value)
    return norm, limit, f"The gradient is {times:.0f} times as large as in the steps before"


def spike_room(state: State, limits: Limits) -> float:
    """How far above its mean the logarithm of a norm may lie: runs whose norms vary much get more room."""
    return max(math.log(limits.spike), limits.spike_deviations * state.norm.deviation)


def loss_rising(state: State, figures: Figures, limits: Limits) -> Finding | None:
    total = loss_sum_after(state, figures, limits)
    if total <= limits.loss_sum:
        return None
    what = f"The loss has risen to {figures['loss']:.3g} from a mean of {state.loss.value:.3g}"
    return total, limits.loss_sum, f"{what}: the rate is too high, or the judgments contradict the earlier ones"


def loss_sum_after(state: State, figures: Figures, limits: Limits) -> float:
    """Page's cumulative sum after this step; an outlier counts for at most four deviations."""
    if figures.get("loss") is None or state.loss.n < 2 * limits.history:
        return 0.0
    before = state.loss.value
    deviation = max(state.loss.deviation, limits.loss_floor * abs(before), 0.05)
    return max(0.0, state.loss_sum + min(4.0, (figures["loss"] - before) / deviation) - limits.loss_drift)


def displacement(state: State, figures: Figures, limits: Limits) -> Finding | None:
    """Razin et al. 2024, arXiv 2410.05779; Yang et al. 2025, arXiv 2502.07599: margins grow by forgetting the chosen."""
    if state.kl_slow.n < limits.history or state.kl_fast.value >= limits.displaced:
        return None
    is_worse = state.kl_fast.value < state.kl_slow.value and state.margin_fast.value > state.margin_slow.value
    what = "Chosen responses become less likely while the margin grows (likelihood displacement)"
    return (state.kl_fast.value, limits.displaced, what) if is_worse else None


def drift(state: State, figures: Figures, limits: Limits) -> Finding | None:
    kl = figures.get("kl_chosen")
    if kl is None or kl >= limits.drifted:
        return None
    return kl, limits.drifted, f"Chosen responses lost {-kl:.1f} nats a token: the model is not itself any more"


def saturation(state: State, figures: Figures, limits: Limits) -> Finding | None:
    if state.margin_fast.n < 2 * limits.history or state.accuracy.value < 0.98:
        return None
    if state.margin_fast.value <= limits.margin:
        return None
    return (
        state.margin_fast.value,
        limits.margin,
        "Every pair is decided by a wide margin; there is nothing left to learn",
    )


def heldout_drop(state: State, figures: Figures, limits: Limits) -> Finding | None:
    now = figures.get("heldout_scores")
    if not now or len(now) != len(state.best):
        return None
    drops = [best - new for best, new in zip(state.best, now, strict=True)]
    if mean(drops) <= limits.heldout_drop or mean(drops) <= limits.certain * error(drops):
        return None
    what = f"Held-out pairs are judged worse than before ({mean(now):.0%} instead of {mean(state.best):.0%})"
    return mean(drops), limits.heldout_drop, what


def fresh_kl(state: State, figures: Figures, limits: Limits) -> Finding | None:
    limit = limits.kl_fresh + max(0.0, state.start.get("kl_fresh") or 0.0)
    kl = figures.get("kl_fresh")
    if kl is None or kl <= limit:
        return None
    return kl, limit, f"What the model writes moved {kl:.2f} nats a token away from the reference"


def fresh_broken(state: State, figures: Figures, limits: Limits) -> Finding | None:
    limit = limits.kl_broken + max(0.0, state.start.get("kl_fresh") or 0.0)
    kl = figures.get("kl_fresh")
    if kl is None or kl <= limit:
        return None
    return kl, limit, f"What the model writes would surprise the reference by {kl:.1f} nats a token"


def entropy(state: State, figures: Figures, limits: Limits) -> Finding | None:
    now, start = figures.get("entropy"), state.start.get("entropy")
    if now is None or not start or limits.entropy_low <= now / start <= limits.entropy_high:
        return None
    limit = start * (limits.entropy_low if now < start else limits.entropy_high)
    what = "always writes the same" if now < start else "writes at random"
    return now, limit, f"The model {what}: entropy went from {start:.2f} to {now:.2f} nats a token"


def repetition(state: State, figures: Figures, limits: Limits) -> Finding | None:
    limit = limits.repetition + (state.start.get("repetition") or 0.0)
    now = figures.get("repetition")
    return None if now is None or now <= limit else (now, limit, f"{now:.0%} of what the model writes repeats itself")


def endless(state: State, figures: Figures, limits: Limits) -> Finding | None:
    now, start = figures.get("end_logps"), state.start.get("end_logps")
    if not now or not start or len(now) != len(start):
        return None
    change = [new - old for new, old in zip(now, start, strict=True)]
    if mean(change) >= limits.end_logratio or mean(change) >= -limits.certain * error(change):
        return None
    what = f"Responses end {math.exp(min(50.0, -mean(change))):.0f} times less readily: it learns to write long"
    return mean(change), limits.end_logratio, what


def length_bias(state: State, figures: Figures, limits: Limits) -> Finding | None:
    excess = figures.get("length_excess") or []
    bias = mean(excess)
    if len(excess) < 8 or abs(bias) <= limits.length_bias or abs(bias) <= limits.certain * error(excess):
        return None
    which = "longer" if bias > 0 else "shorter"
    limit = math.copysign(limits.length_bias, bias)
    return bias, limit, f"The {which} held-out response wins {abs(bias):.0%} more often than with people"


def fresh_length(state: State, figures: Figures, limits: Limits) -> Finding | None:
    now, start = figures.get("fresh_lengths"), state.start.get("fresh_lengths")
    if not now or not start or len(now) != len(start):
        return None
    growth = [math.log(new / old) for new, old in zip(now, start, strict=True)]
    size, limit = abs(mean(growth)), math.log(limits.growth)
    if size <= limit or size <= (limits.certain + 1) * error(growth):
        return None
    times = math.exp(mean(growth))
    return times, limits.growth ** math.copysign(1, mean(growth)), f"Fresh samples are {times:.1f} times as long"


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    if len(values) < 2:
        return math.inf
    middle = mean(values)
    return math.sqrt(math.fsum((x - middle) ** 2 for x in values) / (len(values) - 1) / len(values))
