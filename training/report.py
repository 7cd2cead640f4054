"""What the pages say of a run: its stages, parameters and machine, and the gate's evidence put into rows.

Evidence is kept for ever, so that of older versions has other figures than today's: what is not there is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext_lazy

from training import catalog, reward_models, supervisor
from training.models import Evaluation, RewardModel, Run

STAGES = {
    "snapshot": gettext_lazy("freeze the judgments"),
    "startup": gettext_lazy("load the model"),
    "reference": gettext_lazy("reference scores"),
    "training": gettext_lazy("training"),
    "evaluation": gettext_lazy("evaluation"),
    "save": gettext_lazy("save the adapter"),
    "register": gettext_lazy("register the version"),
    "gate": gettext_lazy("gate"),
    "publish": gettext_lazy("publish, with the self-test"),
}
SYSTEM = {
    "rss_mb": (gettext_lazy("memory"), "MB"),
    "rss_peak_mb": (gettext_lazy("memory at most"), "MB"),
    "cpu_percent": (gettext_lazy("processor, 100 = one core"), "%"),
    "n_threads": (gettext_lazy("threads"), ""),
    "gpu_mb": (gettext_lazy("GPU memory"), "MB"),
    "gpu_peak_mb": (gettext_lazy("GPU memory at most"), "MB"),
}
# What the monitor did, by the name in its alarm.
ACTIONS = {
    "none": gettext_lazy("nothing done: as the run was set up"),
    "relax": gettext_lazy("tied less closely again: it has been calm since"),
    "skip_step": gettext_lazy("step skipped"),
    "halve_rate": gettext_lazy("rate halved"),
    "raise_anchor": gettext_lazy("tied closer to what is known to be good"),
    "roll_back": gettext_lazy("rolled back to the last good checkpoint"),
    "stop": gettext_lazy("run stopped"),
}


@dataclass(frozen=True)
class Stage:
    name: str
    words: Any
    seconds: float
    share: float  # of all stages, in per cent


@dataclass(frozen=True)
class Parameter:
    name: str
    value: Any
    default: Any

    @property
    def is_changed(self) -> bool:
        return bool(self.value != self.default)


@dataclass(frozen=True)
class Figure:
    name: str
    words: Any
    value: Any
    unit: str = ""


@dataclass(frozen=True)
class Guard:
    """One thing that the gate asked for, and whether it found it."""

    name: str
    words: str
    value: Any
    limit: Any
    is_passed: bool
    refusal: str = ""  # what is wrong where it was refused


@dataclass(frozen=True)
class Sample:
    """What three versions answered to the same prompt; None where one was not asked."""

    prompt: str
    base: str | None
    incumbent: str | None
    new: str | None


def stages(run: Run) -> list[Stage]:
    """In the order of events; a stage that took no time at all is left out."""
    seconds = {name: run.timings[name] for name in supervisor.STAGES if run.timings.get(name)}
    total = sum(seconds.values()) or 1.0
    return [Stage(name, STAGES.get(name, name), value, 100 * value / total) for name, value in seconds.items()]


def parameters(run: Run) -> list[Parameter]:
    """The run's parameters, those that differ from the method's defaults first."""
    method = catalog.METHODS.get(run.method)
    defaults = catalog.to_dict(method.params()) if method else {}
    found = [Parameter(name, value, defaults.get(name, value)) for name, value in run.params.items()]
    return sorted(found, key=lambda parameter: not parameter.is_changed)


def system(run: Run) -> list[Figure]:
    """Every figure there may be; a value of None is one that the trainer has not told (yet)."""
    return [Figure(name, words, run.system.get(name), unit) for name, (words, unit) in SYSTEM.items()]


def guards(evaluation: Evaluation) -> list[Guard]:
    """Refused ones first."""
    rows = evaluation.evidence.get("guards")
    found = [
        Guard(
            name=str(row.get("name", "")),
            words=str(row.get("words") or row.get("name", "")),
            value=row.get("value"),
            limit=row.get("limit"),
            is_passed=bool(row.get("passed")),
            refusal="" if row.get("passed") else str(row.get("refusal") or ""),
        )
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    ]
    return sorted(found, key=lambda guard: guard.is_passed)


def samples(evaluation: Evaluation) -> list[Sample]:
    evidence = evaluation.evidence
    policy = evidence.get("policy")
    rows = evidence.get("samples") or (policy.get("samples") if isinstance(policy, dict) else None)
    return list(_samples(rows)) if isinstance(rows, list) else []


def _samples(rows: list[Any]) -> Iterator[Sample]:
    for row in rows:
        if isinstance(row, dict):
            yield Sample(_prompt(row.get("prompt")), *(_text(row.get(name)) for name in ("base", "incumbent", "new")))


def _prompt(prompt: Any) -> str:
    """A text, or messages one below the other."""
    if isinstance(prompt, list):
        return "\n\n".join(str(turn.get("content", "")) for turn in prompt if isinstance(turn, dict))
    return str(prompt or "")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def verdict(run: Run) -> str:
    """What the gate, or the judge of reward models, said in words; else why the run failed. Empty without either."""
    judged = getattr(run, "evaluation", None) or getattr(run, "reward_model", None)
    return str(judged.verdict) if judged else run.error


def evidence(run: Run) -> dict[str, Any]:
    """What the gate found; of a reward model the same figures by the same names, and the 95 % interval of its `accuracy` as
    `accuracy_low` and `accuracy_high`. Empty for a run that was not judged.
    """
    evaluation, reward_model = getattr(run, "evaluation", None), getattr(run, "reward_model", None)
    if evaluation is not None:
        return dict(evaluation.evidence)
    return _evidence_of(reward_model) if reward_model is not None else {}


def _evidence_of(reward_model: RewardModel) -> dict[str, Any]:
    found, figures = reward_model.evidence, reward_model.figures
    before, after = _calibration(figures, "before"), _calibration(figures, "after")
    change = found.get("change")
    low, high = found.get("low"), found.get("high")  # of what it is better than chance by
    return {
        "accuracy": found.get("accuracy"),
        "accuracy_low": None if low is None else reward_models.CHANCE + low,
        "accuracy_high": None if high is None else reward_models.CHANCE + high,
        "difference": change.get("difference") if isinstance(change, dict) else None,
        "n_pairs": found.get("n_pairs"),
        "n_prompts": found.get("n_prompts"),
        "brier": after.get("brier"),
        "ece": after.get("ece"),
        "uncalibrated_ece": before.get("ece"),
        "temperature": figures.get("temperature"),
    }


def _calibration(figures: dict[str, Any], when: str) -> dict[str, Any]:
    calibration = figures.get("calibration")
    found = calibration.get(when) if isinstance(calibration, dict) else None
    return found if isinstance(found, dict) else {}
