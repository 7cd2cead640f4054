"""The curves of a run: which of its metrics are drawn together, thinned so that long runs stay quick to load and read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.db.models import F, Max, Min, Q
from django.utils.translation import gettext_lazy as _
from numpy.typing import NDArray

from training.models import Run

MAX_POINTS = 1000  # of one curve: about what a wide screen can show
READ_PER_POINT = 5  # lines that are read for each; among them the most telling are chosen
RARE = ["heldout_accuracy", "kl_fresh", "fresh_length", "repetition"]  # not of every step
# In a query: the lines of which `alarms` says something.
HAS_ALARM = Q(values__is_skipped=True) | Q(values__has_key="alarms") & ~Q(values__alarms=[])
STAYS = {"step", "n_pairs", "tokens", "seconds", "is_skipped", "alarms"}  # of a line: no curves

Line = dict[str, Any]  # one line of metrics.jsonl


@dataclass(frozen=True)
class Curve:
    """One metric by step; `words` names it beside others of its chart."""

    key: str
    words: Any


@dataclass(frozen=True)
class Chart:
    """Curves on one pair of axes. `low` and `high` are bounds that are always in view; digits are after the point."""

    key: str
    title: Any
    curves: tuple[Curve, ...]
    digits: int = 3
    low: float | None = None
    high: float | None = None
    is_log: bool = False
    is_exact: bool = False  # free of noise: never smoothed


def chart(key: str, title: Any, *more: Curve, words: Any = "", **options: Any) -> Chart:
    return Chart(key, title, (Curve(key, words or title), *more), **options)


CHARTS = (
    chart("loss", _("Loss")),
    chart(
        "accuracy",
        _("Accuracy"),
        Curve("heldout_accuracy", _("held out")),
        words=_("training"),
        low=0.0,
        high=1.0,
    ),
    chart("margin", _("Reward margin"), Curve("margin_p90", _("90th percentile")), words=_("mean")),
    chart("chosen_reward", _("Rewards"), Curve("rejected_reward", _("rejected")), words=_("chosen")),
    chart("grad_norm", _("Gradient norm"), is_log=True),
    chart("learning_rate", _("Learning rate"), digits=6, low=0.0, is_exact=True),
    chart(
        "kl_chosen",
        _("Log-ratio to the reference, nats a token"),
        Curve("kl_fresh", _("of fresh samples: the KL")),
        words=_("of chosen responses"),
    ),
    chart("entropy", _("Entropy, nats a token")),
    chart("fresh_length", _("Length of fresh samples, tokens"), digits=0, low=0.0),
    chart("repetition", _("Repetition in fresh samples"), low=0.0),
    chart("logp_chosen", _("Log-probability of chosen"), digits=1),
    chart("tokens_per_s", _("Tokens a second"), digits=0, low=0.0),
    chart(
        "rss_mb", _("Memory, MB"), Curve("gpu_mb", _("GPU")), words=_("main memory"), digits=0, low=0.0, is_exact=True
    ),
)


def of_run(run: Run, n: int = MAX_POINTS) -> dict[str, Any]:
    """Everything that the run page draws, ready for JSON: charts of at least one value, alarms, the last step.

    A curve has at most `n` points, and those at which an alarm was raised.
    """
    lines = read(run, READ_PER_POINT * n)
    return {
        "run": run.pk,
        "name": str(run),
        "last_step": lines[-1]["step"] if lines else 0,
        "charts": list(drawn(lines, n)),
        "alarms": alarms(lines),
    }


def read(run: Run, most: int) -> list[Line]:
    """The run's lines by step. Of a run with more than `most`, every k-th, and all those that the others cannot stand for:
    with an alarm, with what is measured only now and then, and the ends.
    """
    every = -(-run.metrics.count() // most)
    rows = run.metrics.all()
    if every > 1:
        ends = rows.aggregate(first=Min("step"), last=Max("step"))
        is_rare = Q(values__has_any_keys=RARE) | Q(step__in=ends.values())
        rows = rows.alias(place=F("step") % every).filter(Q(place=0) | HAS_ALARM | is_rare)
    return list(rows.values_list("values", flat=True).iterator(chunk_size=2000))


def drawn(lines: Sequence[Line], n: int) -> Iterable[dict[str, Any]]:
    """The charts in their order, then one for each metric that no chart knows."""
    lines = [with_rate(line) for line in lines]
    marked = {alarm["step"] for alarm in alarms(lines)}
    for each in (*CHARTS, *_others(lines)):
        curves = [_thinned(curve, lines, n, marked) for curve in each.curves]
        if any(curve["steps"] for curve in curves):
            yield {
                "key": each.key,
                "title": str(each.title),
                "digits": each.digits,
                "low": each.low,
                "high": each.high,
                "is_log": each.is_log,
                "is_exact": each.is_exact,
                "curves": [curve for curve in curves if curve["steps"]],
            }


def with_rate(line: Line) -> Line:
    """The line with `tokens_per_s`, which follows from its tokens and seconds."""
    tokens, seconds = line.get("tokens"), line.get("seconds")
    if "tokens_per_s" in line or not _is_number(tokens) or not _is_number(seconds) or not seconds:
        return line
    return {**line, "tokens_per_s": round(tokens / seconds, 1)}


def alarms(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """What the monitor said, oldest first; a step that was skipped without a word of it is said as well."""
    found = []
    for line in lines:
        raised = line.get("alarms")
        said = [alarm for alarm in raised if isinstance(alarm, dict)] if isinstance(raised, list) else []
        if line.get("is_skipped") and not said:
            said = [{"signal": "not_finite", "action": "skip_step", "message": str(NOT_FINITE)}]
        found += [{**alarm, "step": line["step"]} for alarm in said]
    return found


NOT_FINITE = _("The loss or the gradient was not a finite number.")


def lttb(x: NDArray[np.float64], y: NDArray[np.float64], n: int) -> NDArray[np.intp]:
    """Indices of `n` points that keep the curve's look: largest triangle three buckets.

    x, y: (m,), x ascending. The first and the last point stay; of every bucket between them, the point that spans the
    largest triangle with the one chosen before it and the mean of the next bucket (Steinarsson 2013, section 4.2).
    """
    m = len(x)
    if n >= m or n < 3:
        return np.arange(m)
    edges = np.linspace(1, m - 1, n - 1).astype(int)  # (n − 1,): bucket i is edges[i] to edges[i + 1]
    chosen = [0]
    for i in range(n - 2):
        low, high = edges[i], edges[i + 1]
        after = slice(high, edges[i + 2] if i + 2 < len(edges) else m)
        at, mean_x, mean_y = chosen[-1], x[after].mean(), y[after].mean()
        area = np.abs((x[at] - mean_x) * (y[low:high] - y[at]) - (x[at] - x[low:high]) * (mean_y - y[at]))
        chosen.append(low + int(area.argmax()))
    return np.array([*chosen, m - 1])


def _thinned(curve: Curve, lines: Sequence[Line], n: int, marked: set[int]) -> dict[str, Any]:
    points = [(line["step"], line[curve.key]) for line in lines if _is_number(line.get(curve.key))]
    steps = np.array([step for step, _value in points], dtype=np.float64)  # (m,)
    values = np.array([value for _step, value in points], dtype=np.float64)  # (m,)
    kept = set(lttb(steps, values, n)) | {i for i, (step, _value) in enumerate(points) if step in marked}
    shown = [points[i] for i in sorted(kept)]
    return {
        "key": curve.key,
        "words": str(curve.words),
        "steps": [step for step, _value in shown],
        "values": [value for _step, value in shown],
        "n_points": len(points),
    }


def _others(lines: Sequence[Line]) -> list[Chart]:
    known = {curve.key for each in CHARTS for curve in each.curves} | STAYS
    names = {name for line in lines for name, value in line.items() if name not in known and _is_number(value)}
    return [chart(name, name.replace("_", " ")) for name in sorted(names)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
