"""The stability monitor: reads a step's figures, says what is wrong and what to do about it. No torch, no files.

What it does climbs a ladder: skip the step, halve the rate, raise the anchor (the NLL mixed into every loss), roll back
to the last good state, stop. A signal begins on its own lowest rung and climbs when it comes back within its window;
what was changed is taken back when the run has been calm for a while. Every rung taken is an alarm in the metrics.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from training.ml import signals
from training.ml.signals import Figures, Finding, Limits, Mean, State, fast, loss_sum_after, mean

SKIP, HALVE, ANCHOR, BACK, STOP = ACTIONS = ("skip_step", "halve_rate", "raise_anchor", "roll_back", "stop")
NOTHING, RELAX = "none", "relax"  # an alarm that changes nothing; the way back down


@dataclass(frozen=True)
class Alarm:
    """One line for people. `value` is None where it is no finite number, which JSON cannot hold."""

    signal: str
    value: float | None
    limit: float
    action: str
    message: str


@dataclass(frozen=True)
class Signal:
    """`rungs`: what is done the first, second … time within `window` steps; silent for `patience` steps after each."""

    look: Callable[[State, Figures, Limits], Finding | None]
    rungs: tuple[str, ...]
    window: int = 40
    patience: int = 3
    spoils_update: bool = False  # this step's gradient must not be used, whatever else is done

    @property
    def name(self) -> str:
        return self.look.__name__


GENTLE = (ANCHOR, HALVE, BACK, STOP)
SIGNALS = (
    Signal(signals.non_finite, (SKIP, SKIP, BACK, SKIP, STOP), window=1, patience=0, spoils_update=True),
    Signal(signals.broken, (BACK, BACK, BACK, STOP), patience=0),
    Signal(signals.gradient_spike, (SKIP, SKIP, HALVE, SKIP, BACK, SKIP, STOP), patience=0, spoils_update=True),
    Signal(signals.loss_rising, (HALVE, BACK, BACK, STOP)),
    Signal(signals.displacement, GENTLE),
    Signal(signals.drift, (BACK, BACK, BACK, BACK, BACK, STOP), patience=0),
    Signal(signals.saturation, (HALVE, HALVE, STOP), patience=10),
    Signal(signals.heldout_drop, (BACK, STOP), patience=0),
    Signal(signals.fresh_kl, GENTLE, patience=0),
    Signal(signals.fresh_broken, (BACK, BACK, BACK, STOP), patience=0),
    Signal(signals.entropy, GENTLE, patience=0),
    Signal(signals.repetition, (ANCHOR, BACK, STOP), patience=0),
    Signal(signals.endless, (ANCHOR, BACK, STOP), patience=0),
    Signal(signals.length_bias, (ANCHOR, BACK, STOP), patience=0),
    Signal(signals.fresh_length, (ANCHOR, BACK, STOP), patience=0),
)
REMEDIES = {
    SKIP: "the step is skipped",
    HALVE: "the learning rate is halved",
    ANCHOR: "the chosen responses' own likelihood is given more weight",
    BACK: "back to the last good state, with a lower rate",
    STOP: "training stops there",
    NOTHING: "nothing is done",
}


def without_anchor(rungs: tuple[str, ...]) -> tuple[str, ...]:
    """The ladder where there is nothing to anchor: it begins with halving the rate."""
    return (HALVE, *(rung for rung in rungs if rung not in (ANCHOR, HALVE))) if ANCHOR in rungs else rungs


@dataclass(frozen=True)
class Verdict:
    """What the loop has to do before this step's update."""

    alarms: list[Alarm]
    is_skipped: bool = False  # there is no update
    is_good: bool = False  # the parameters as they are now are worth returning to

    @property
    def rolls_back(self) -> bool:
        return any(alarm.action in (BACK, STOP) for alarm in self.alarms)

    @property
    def stops(self) -> str | None:
        """Why the run is to end here."""
        return next((alarm.message for alarm in self.alarms if alarm.action == STOP), None)


class Monitor:
    """One run's. `mode` is the catalog's: "act"; "watch" changes nothing but skips what is not finite; "off".

    `has_anchor`: whether the loss has a likelihood that can be given more weight; a reward model's has none.
    """

    def __init__(
        self, mode: str = "act", limits: Limits | None = None, *, examines: bool = False, has_anchor: bool = True
    ) -> None:
        self.mode, self.limits, self.examines, self.has_anchor = mode, limits or Limits(), examines, has_anchor
        self.state = State()

    def judge(self, figures: Figures) -> Verdict:
        """Takes one step's figures, all of the parameters before its update; absent ones are not looked at."""
        if self.mode == "off":
            return Verdict([])
        figures = signals.finite(figures)
        if any(name in figures for name in signals.EXAMINED):
            self.state.examined_at = figures["step"]
        self._remember_start(figures)
        found = [(signal, finding) for signal in SIGNALS if (finding := self._look(signal, figures))]
        alarms = [self._alarm(signal, finding, figures["step"]) for signal, finding in found]
        self._learn(figures)
        if not any(alarm.action != NOTHING for alarm in alarms):
            alarms += self._relax(figures["step"])
        for action in dict.fromkeys(alarm.action for alarm in alarms):
            self._change(action)
        is_skipped = any(
            alarm.action in (SKIP, BACK, STOP) or (signal.spoils_update and alarm.action != NOTHING)
            for (signal, _), alarm in zip(found, alarms, strict=False)
        )
        return Verdict(alarms, is_skipped, self._is_good(figures, bool(found)))

    def is_suspicious(self, step: int) -> bool:
        """Whether an exam out of turn would help to tell: not when the last one was only just held."""
        is_due = step - self.state.examined_at >= self.limits.exam_gap
        return self.mode != "off" and is_due and self.state.loss_sum > self.limits.loss_sum / 2

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.state)

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.state = State.of(values)

    def _remember_start(self, figures: Figures) -> None:
        for name in ("kl_fresh", "entropy", "repetition", "end_logps", "fresh_lengths", "heldout_scores"):
            if figures.get(name) is not None:
                self.state.start.setdefault(name, figures[name])

    def _look(self, signal: Signal, figures: Figures) -> Finding | None:
        last = self.state.alarmed_at.get(signal.name, [])
        if last and figures["step"] - last[-1] <= signal.patience:
            return None
        return signal.look(self.state, figures, self.limits)

    def _alarm(self, signal: Signal, finding: Finding, step: int) -> Alarm:
        value, limit, what = finding
        value = value if value is not None and math.isfinite(value) else None
        steps = self.state.alarmed_at.get(signal.name, [])
        # A window reaches from one alarm to the next, so that what comes back again and again climbs on.
        steps = [*steps, step] if steps and step - steps[-1] <= signal.window else [step]
        self.state.alarmed_at[signal.name] = steps
        self.state.quiet_since = step
        rungs = signal.rungs if self.has_anchor else without_anchor(signal.rungs)
        action = rungs[min(len(steps), len(rungs)) - 1]
        if action == BACK and self.state.n_roll_backs >= self.limits.most_roll_backs:
            action = STOP
        if self.mode == "watch" and signal.look is not signals.non_finite:
            action = NOTHING
        elif self.mode == "watch":
            action = SKIP
        return Alarm(signal.name, value, limit, action, f"{what}; {REMEDIES[action]}.")

    def _learn(self, figures: Figures) -> None:
        """Takes the step into the means; an outlier enters cut down, so that a lasting change is accepted in time."""
        state, limits = self.state, self.limits
        if norm := figures.get("grad_norm"):
            most = state.norm.value + math.log(limits.spike) / 2 if state.norm.n >= limits.history else math.inf
            state.norm.add(min(math.log(norm), most))
        if (loss := figures.get("loss")) is not None:
            state.loss_sum = loss_sum_after(state, figures, limits)
            most = (
                state.loss.value + 2 * max(state.loss.deviation, 0.05) if state.loss.n >= limits.history else math.inf
            )
            state.loss.add(min(loss, most))
        for name, means in (
            ("kl_chosen", (state.kl_fast, state.kl_slow)),
            ("margin", (state.margin_fast, state.margin_slow)),
            ("accuracy", (state.accuracy,)),
        ):
            for kept in means:
                if figures.get(name) is not None:
                    kept.add(figures[name])

    def _relax(self, step: int) -> list[Alarm]:
        state = self.state
        if step - state.quiet_since < self.limits.calm or (state.rate >= state.ceiling and not state.anchor):
            return []
        state.quiet_since = step
        what = f"{self.limits.calm} steps without an alarm; the last measure is taken back by half."
        return [Alarm("calm", float(self.limits.calm), float(self.limits.calm), RELAX, what)]

    def _change(self, action: str) -> None:
        state, limits = self.state, self.limits
        if action == HALVE:
            state.rate /= 2
            state.loss_sum = 0.0
        elif action == ANCHOR:
            state.anchor = min(limits.anchor_most, max(limits.anchor_step, 2 * state.anchor))
            state.loss, state.loss_sum = Mean(), 0.0  # it has another term now
        elif action in (BACK, STOP):
            state.n_roll_backs += 1
            state.n_back_in_a_row += 1
            # From the same state with the same rate the same would happen: 1/2, 1/8, 1/64 …
            state.rate *= 0.5**state.n_back_in_a_row
            state.ceiling = state.rate
            state.loss_sum = 0.0
            state.kl_fast, state.kl_slow, state.margin_fast, state.margin_slow = fast(), Mean(), fast(), Mean()
        elif action == RELAX:
            state.rate = min(state.ceiling, 2 * state.rate)
            state.loss = Mean() if state.anchor else state.loss
            state.anchor = state.anchor / 2 if state.anchor > limits.anchor_step / 2 else 0.0

    def _is_good(self, figures: Figures, is_alarmed: bool) -> bool:
        """After an exam that went as well as any before; without exams, every tenth step of a calm run."""
        state, step, scores = self.state, figures["step"], figures.get("heldout_scores")
        is_calm = not is_alarmed and (not state.alarmed_at or step - state.quiet_since > self.limits.settle)
        if not is_calm or (scores is None and (self.examines or step % 10)):
            return False
        if scores is not None:
            if state.best and mean(scores) < mean(state.best) - self.limits.heldout_drop / 2:
                return False
            state.best = scores if mean(scores) >= mean(state.best) or not state.best else state.best
        state.n_back_in_a_row = 0
        return True
