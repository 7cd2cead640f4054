"""The monitor alone: a dict of figures per step goes in, alarms come out."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest

from training import catalog
from training.ml import monitor as ladder
from training.ml import signals
from training.ml.monitor import Monitor, Verdict


def calm(step: int, **changes: Any) -> dict[str, Any]:
    """What a healthy step looks like, with a batch's noise."""
    rng = random.Random(step)
    return {
        "step": step,
        "loss": 0.6 + rng.gauss(0, 0.05),
        "grad_norm": 2 * math.exp(rng.gauss(0, 0.3)),
        "accuracy": 0.7,
        "margin": 0.2,
        "kl_chosen": -0.02,
    } | changes


def after(n_steps: int, mode: str = "act") -> Monitor:
    watched = Monitor(mode)
    for step in range(1, n_steps + 1):
        assert watched.judge(calm(step)).alarms == []
    return watched


def actions(verdict: Verdict) -> list[tuple[str, str]]:
    return [(alarm.signal, alarm.action) for alarm in verdict.alarms]


def scores(n: int = 16, mean: float = 0.7, spread: float = 0.1) -> list[float]:
    return [mean + spread * math.sin(i) for i in range(n)]


EXAM: dict[str, Any] = {
    "kl_fresh": 0.0,
    "entropy": 3.0,
    "repetition": 0.05,
    "end_logps": [-1.0 + 0.1 * math.sin(i) for i in range(16)],
    "fresh_lengths": [30, 31, 32, 33],
    "heldout_scores": scores(),
    "length_excess": [0.0] * 16,
}
FAULTS: dict[str, dict[str, Any]] = {
    "non_finite": {"loss": None},
    "broken": {"heldout_accuracy": None},
    "gradient_spike": {"grad_norm": 900.0},
    "drift": {"kl_chosen": -2.0},
    "heldout_drop": {"heldout_scores": scores(mean=0.5)},
    "fresh_kl": {"kl_fresh": 1.4},
    "fresh_broken": {"kl_fresh": 3.5},
    "entropy": {"entropy": 1.0},
    "repetition": {"repetition": 0.6},
    "endless": {"end_logps": [-4.0 + 0.1 * math.cos(i) for i in range(16)]},
    "length_bias": {"length_excess": [1.0] * 10 + [0.0] * 6},
    "fresh_length": {"fresh_lengths": [90, 91, 92, 93]},
}
# What shows over several steps: the figures of step n after the fault.
LASTING: dict[str, Callable[[int], dict[str, Any]]] = {
    "loss_rising": lambda n: {"loss": 1.3},
    "displacement": lambda n: {"kl_chosen": -0.3 - 0.1 * n, "margin": 0.5 + 0.1 * n},
    "saturation": lambda n: {"margin": 14.0, "accuracy": 1.0, "loss": 0.0},
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_sees_a_fault_in_the_step_that_shows_it(name: str) -> None:
    watched = after(12)
    watched.judge(calm(13, **EXAM))
    found = watched.judge(calm(14) | EXAM | FAULTS[name])
    first = next(signal.rungs[0] for signal in ladder.SIGNALS if signal.name == name)
    assert (name, first) in actions(found)
    assert json.dumps(list(map(asdict, found.alarms)), allow_nan=False)
    assert all(alarm.message.endswith(".") for alarm in found.alarms)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("name", ["kl_fresh", "entropy", "repetition", "end_logps", "heldout_scores", "fresh_lengths"])
def test_it_goes_back_when_an_exam_gives_no_number(name: str, value: float) -> None:
    """Whether at the first exam or later, and whatever the exam measures; JSON can hold what it says."""
    for n_before in (0, 1):
        watched = after(12)
        for step in range(13, 13 + n_before):
            watched.judge(calm(step) | EXAM)
        found = watched.judge(calm(14) | EXAM | {name: [0.5, value] if isinstance(EXAM[name], list) else value})
        assert actions(found) == [("broken", "roll_back")]
        assert (found.rolls_back, found.is_good) == (True, False)
        assert json.dumps([list(map(asdict, found.alarms)), watched.state_dict()], allow_nan=False)


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_it_skips_a_step_whose_figures_are_no_numbers(name: str) -> None:
    found = after(10).judge(calm(11) | {name: math.nan})
    assert actions(found) == [("non_finite", "skip_step")]
    assert json.dumps(list(map(asdict, found.alarms)), allow_nan=False)


@pytest.mark.parametrize("name", LASTING)
def test_it_sees_within_thirty_steps_what_creeps_in(name: str) -> None:
    watched = after(20)
    found = [watched.judge(calm(20 + n) | LASTING[name](n)) for n in range(1, 31)]
    assert name in [alarm.signal for verdict in found for alarm in verdict.alarms]


def test_it_has_a_fault_for_every_signal() -> None:
    assert {signal.name for signal in ladder.SIGNALS} == FAULTS.keys() | LASTING.keys()
    assert set().union(*(signal.rungs for signal in ladder.SIGNALS)) == set(ladder.ACTIONS)


@pytest.mark.parametrize("seed", range(10))
def test_it_is_silent_over_ten_clean_runs_of_three_hundred_steps(seed: int) -> None:
    watched, rng = Monitor(examines=True), random.Random(seed)
    for step in range(1, 301):
        t = step / 300
        figures: dict[str, Any] = {
            "step": step,
            "loss": math.log(2) * (1 - 0.4 * t) + rng.gauss(0, 0.2 * min(1, 10 * t)),
            "grad_norm": 3 * math.exp(rng.gauss(0, 0.5) - t),
            "accuracy": 0.5 + 0.3 * t,
            "margin": t,
            "kl_chosen": -0.2 * t + rng.gauss(0, 0.05),
        }
        if step % 10 == 1:
            exam = {"heldout_scores": [0.5 + 0.1 * t + rng.gauss(0, 0.03) for _ in range(24)], "kl_fresh": 0.2 * t}
            figures |= exam | {"entropy": 3 - 0.3 * t, "repetition": rng.random() / 5}
        assert watched.judge(figures).alarms == []


def test_it_skips_only_the_steps_that_are_not_finite() -> None:
    watched = after(10)
    assert watched.judge(calm(11, loss=None)).is_skipped
    assert not watched.judge(calm(12)).is_skipped


def test_it_climbs_from_skipping_over_going_back_to_stopping() -> None:
    watched = after(10)
    found = [watched.judge(calm(step, grad_norm=None)) for step in range(11, 16)]
    assert [actions(verdict)[0][1] for verdict in found] == [
        "skip_step",
        "skip_step",
        "roll_back",
        "skip_step",
        "stop",
    ]
    assert all(verdict.is_skipped for verdict in found)
    assert found[-1].stops is not None


def test_it_halves_the_rate_after_repeated_spikes_and_uses_none_of_them() -> None:
    watched = after(10)
    found = [watched.judge(calm(step, grad_norm=2000.0)) for step in (11, 13, 15)]
    assert [actions(verdict) for verdict in found][-1] == [("gradient_spike", "halve_rate")]
    assert all(verdict.is_skipped for verdict in found)
    assert watched.state.rate == 0.5


def test_it_accepts_a_lasting_change_of_the_gradients_size() -> None:
    watched = after(10)
    skipped = [watched.judge(calm(step, grad_norm=50.0)).is_skipped for step in range(11, 31)]
    assert skipped[0]
    assert not any(skipped[-10:])


def test_it_takes_measures_back_when_the_run_is_calm() -> None:
    watched = after(10)
    watched.judge(calm(11) | EXAM)
    watched.judge(calm(12) | EXAM | {"repetition": 0.7})
    assert watched.state.anchor == 0.5
    found = [alarm for step in range(13, 60) for alarm in watched.judge(calm(step)).alarms]
    assert [alarm.action for alarm in found] == ["relax", "relax"]
    assert watched.state.anchor == 0.0


def test_it_lowers_the_rate_more_each_time_it_goes_back_to_the_same_state() -> None:
    watched = after(10)
    rates = []
    for step in range(11, 14):
        watched.judge(calm(step, kl_chosen=-3.0))
        rates.append(watched.state.rate)
    assert rates == [1 / 2, 1 / 8, 1 / 64]


def test_it_halves_the_rate_where_there_is_nothing_to_anchor() -> None:
    watched = Monitor(has_anchor=False)
    for step in range(1, 13):
        watched.judge(calm(step) | (EXAM if step == 12 else {}))
    found = [watched.judge(calm(step) | EXAM | FAULTS["length_bias"]) for step in (13, 14, 15)]
    assert [actions(verdict) for verdict in found] == [
        [("length_bias", action)] for action in ("halve_rate", "roll_back", "stop")
    ]
    assert watched.state.anchor == 0.0


@pytest.mark.parametrize("signal", ladder.SIGNALS, ids=lambda signal: signal.name)
def test_it_has_a_ladder_without_the_anchor_for_every_signal(signal: ladder.Signal) -> None:
    rungs = ladder.without_anchor(signal.rungs)
    assert ladder.ANCHOR not in rungs
    assert rungs[-1] == ladder.STOP
    assert rungs == signal.rungs or (ladder.ANCHOR in signal.rungs and rungs[0] == ladder.HALVE)


def test_it_asks_for_no_exam_right_after_another() -> None:
    watched = after(20)
    asked = []
    for step in range(21, 41):
        is_asked = watched.is_suspicious(step)
        watched.judge(calm(step, loss=0.75) | (EXAM if is_asked else {}))
        watched.state.loss_sum = 6.0  # it stays suspicious
        asked += [step] if is_asked else []
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert gaps == [watched.limits.exam_gap] * len(gaps)
    assert len(gaps) >= 3


def test_it_stops_rather_than_go_back_for_ever() -> None:
    watched = after(10)
    found = [watched.judge(calm(step, kl_chosen=-3.0)) for step in range(11, 20)]
    assert [verdict.stops is not None for verdict in found][:6] == [False] * 5 + [True]


def test_it_takes_a_state_for_good_only_after_a_good_exam() -> None:
    watched = Monitor(examines=True)
    assert watched.judge(calm(1) | EXAM).is_good
    assert not watched.judge(calm(2)).is_good
    assert watched.judge(calm(3) | EXAM | {"heldout_scores": scores(mean=0.72)}).is_good
    assert not watched.judge(calm(4) | EXAM | {"heldout_scores": scores(mean=0.69)}).is_good
    assert not watched.judge(calm(5, loss=None) | EXAM | {"heldout_scores": scores(mean=0.9)}).is_good


@pytest.mark.parametrize(
    ("mode", "expected"), [("act", [("drift", "roll_back")]), ("watch", [("drift", "none")]), ("off", [])]
)
def test_it_acts_only_where_it_may(mode: str, expected: list[tuple[str, str]]) -> None:
    watched = Monitor(mode)
    for step in range(1, 11):
        watched.judge(calm(step))
    found = watched.judge(calm(11, kl_chosen=-3.0))
    assert actions(found) == expected
    assert (found.is_skipped, found.rolls_back) == (mode == "act", mode == "act")
    assert watched.state.rate == (0.5 if mode == "act" else 1.0)


def test_it_skips_what_is_not_finite_even_when_it_only_watches() -> None:
    assert [Monitor(mode).judge(calm(1, loss=None)).is_skipped for mode in ("act", "watch", "off")] == [
        True,
        True,
        False,
    ]


def test_it_goes_on_from_its_state_as_if_nothing_had_happened() -> None:
    watched = after(10)
    watched.judge(calm(11) | EXAM)
    watched.judge(calm(12, grad_norm=5000.0, kl_chosen=-3.0))
    again = Monitor()
    again.load_state_dict(json.loads(json.dumps(watched.state_dict())))
    for step in range(13, 80):
        figures = calm(step, loss=1.5 if step > 40 else 0.6) | (EXAM if step % 5 == 0 else {})
        assert watched.judge(figures) == again.judge(figures)
    assert watched.state == again.state


def test_it_needs_no_figure_but_the_step() -> None:
    watched = Monitor()
    assert all(watched.judge({"step": step}).alarms == [] for step in range(1, 50))


def test_it_has_the_modes_of_the_menu() -> None:
    assert catalog.Common.__dataclass_fields__["monitor"].metadata["choices"] == ("act", "watch", "off")


def test_it_forgets_old_values_exponentially() -> None:
    kept = signals.Mean(decay=0.5)
    for x in (1.0, 2.0, 4.0):
        kept.add(x)
    weights = [0.125, 0.25, 0.5]
    expected = sum(w * x for w, x in zip(weights, (1, 2, 4), strict=True)) / sum(weights)
    assert kept.value == pytest.approx(expected)
    variance = sum(w * (x - expected) ** 2 for w, x in zip(weights, (1, 2, 4), strict=True)) / sum(weights)
    assert kept.deviation == pytest.approx(math.sqrt(variance))
