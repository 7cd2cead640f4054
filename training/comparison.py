"""Several runs beside each other: what differs in how they were made, and what came of it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext_lazy as _

from training import curves, report
from training.models import Run

FEWEST, MOST = 2, 6
LAST_STEPS = 10  # whose mean is shown as where a curve ended
HIGHER, LOWER = 1, -1


@dataclass(frozen=True)
class Row:
    """One line of the table; `values` in the order of the runs. `best` is the place of the best one, if one is."""

    name: str
    words: Any
    values: list[Any]
    best: int | None = None

    @property
    def differs(self) -> bool:
        return any(value != self.values[0] for value in self.values)


@dataclass(frozen=True)
class SampleRow:
    """One prompt and what each run's version answered; None where it was not asked."""

    prompt: str
    base: str | None
    answers: list[str | None]


def made_with(runs: Sequence[Run]) -> list[Row]:
    """Method, judgments and parameters: those that differ first, then in the order of the forms."""
    rows = [
        Row("method", _("method"), [run.method for run in runs]),
        Row("campaign", _("campaign"), [str(run.campaign) for run in runs]),
        Row("snapshot", _("snapshot"), [run.snapshot.sha256[:12] if run.snapshot else None for run in runs]),
        Row("incumbent", _("compared with"), [str(run.incumbent) if run.incumbent else None for run in runs]),
    ]
    names = dict.fromkeys(name for run in runs for name in run.params)
    rows += [Row(name, name, [run.params.get(name) for run in runs]) for name in names]
    return sorted(rows, key=lambda row: not row.differs)


def results(runs: Sequence[Run]) -> list[Row]:
    """What came of them: judged by the gate (or as a reward model), measured at the end, and how long it took."""
    ends = [_end_of(run) for run in runs]
    rows = [
        _row("accuracy", _("held-out accuracy, %"), [_evidence(run, "accuracy", 100) for run in runs], HIGHER),
        _row("difference", _("better than the incumbent by, points"), [_evidence(run, "difference", 100) for run in runs], HIGHER),
        Row("verdict", _("verdict"), [report.verdict(run) or None for run in runs]),
        _row("brier", _("Brier score"), [_evidence(run, "brier", 1) for run in runs], LOWER),
        _row("ece", _("calibration error"), [_evidence(run, "ece", 1) for run in runs], LOWER),
        _row("temperature", _("temperature of its margins"), [_evidence(run, "temperature", 1) for run in runs]),
        _row("n_pairs", _("held-out pairs"), [_evidence(run, "n_pairs", 1) for run in runs]),
        *(
            _row(curve.key, f"{each.title}: {curve.words}" if len(each.curves) > 1 else each.title, [end.get(curve.key) for end in ends])
            for each in curves.CHARTS
            if not each.is_exact
            for curve in each.curves
        ),
        _row("alarms", _("alarms"), [end.get("alarms") for end in ends], LOWER),
        _row("steps", _("steps"), [run.step for run in runs]),
        _row("training", _("training, seconds"), [run.timings.get("training") for run in runs], LOWER),
        _row("rss_peak_mb", _("memory at most, MB"), [run.system.get("rss_peak_mb") for run in runs], LOWER),
    ]  # fmt: skip
    return [row for row in rows if any(value is not None for value in row.values)]


def samples(runs: Sequence[Run]) -> list[SampleRow]:
    """Every prompt that some run's version was asked, in their order."""
    found = [
        {sample.prompt: sample for sample in report.samples(run.evaluation)} if hasattr(run, "evaluation") else {}
        for run in runs
    ]
    rows = []
    for prompt in dict.fromkeys(prompt for asked in found for prompt in asked):
        asked = [each.get(prompt) for each in found]
        base = next((sample.base for sample in asked if sample), None)
        rows.append(SampleRow(prompt, base, [sample.new if sample else None for sample in asked]))
    return rows


def _row(name: str, words: Any, values: list[Any], direction: int = 0) -> Row:
    return Row(name, words, values, _best(values, direction) if direction else None)


def _best(values: Sequence[Any], direction: int) -> int | None:
    """The place of the highest (or lowest) value; None when no single one is, or one is not known."""
    if any(value is None for value in values):
        return None
    key: Callable[[Any], Any] = lambda value: direction * value  # noqa: E731
    best = max(values, key=key)
    return list(values).index(best) if list(values).count(best) == 1 else None


def _evidence(run: Run, name: str, factor: float) -> float | None:
    value = report.evidence(run).get(name)
    return round(value * factor, 4) if isinstance(value, int | float) else None


def _end_of(run: Run) -> dict[str, Any]:
    """The mean of every metric over the last steps, and how many alarms there were."""
    last = [
        curves.with_rate(line) for line in run.metrics.order_by("-step").values_list("values", flat=True)[:LAST_STEPS]
    ]
    if not last:
        return {}
    names = dict.fromkeys(name for line in last for name in line)
    means = {name: _mean(line.get(name) for line in last) for name in names}
    alarming = run.metrics.filter(curves.HAS_ALARM).values_list("values", flat=True)
    return {**means, "alarms": len(curves.alarms(alarming))}


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return sum(numbers) / len(numbers) if numbers else None
