"""What a run would learn from, and how long it would take, before anybody starts it."""

import math
from dataclasses import dataclass
from typing import Any

from django.core.cache import cache
from django.db.models import Count, Max

from labeling import judgments
from labeling.models import Campaign
from serving import adapters
from serving.models import Adapter, Deployment
from training import catalog, lines, retractions, snapshots
from training.models import Run
from training.split import is_heldout

KEPT_SECONDS = 3600
COUNTING_SECONDS = 120  # after which whoever began to count is taken for dead


class StillCounting(Exception):
    """Another request counts this campaign's judgments just now: ask again in a moment."""


@dataclass(frozen=True)
class Available:
    """What a campaign's judgments in force give, by source (of `training.catalog`), held-out lines left out."""

    counts: dict[str, Any]  # of the snapshot that would be frozen now
    usable: dict[str, int]  # lines that `snapshots.freeze` asks for
    lines: dict[str, int]  # a source's own: decided pairs; pairs, ties among them; single responses; edits
    new: dict[str, int]  # those of `lines` that the current version has not learned from
    waiting: int  # judgments since the last successful run

    @property
    def n_ties(self) -> int:
        return self.lines["pairs_with_ties"] - self.lines["pairs"]


@dataclass(frozen=True)
class Estimate:
    """`n` is what one pass sees: pairs, or single responses. `seconds` is None before any run was measured."""

    available: Available
    source: str
    n: int
    n_steps: int
    seconds: float | None
    measured_in: Run | None
    missing: int  # of what the method learns from, before a run can start


def of_run(campaign: Campaign, method: catalog.Method, params: dict[str, Any]) -> Estimate:
    """What a run with these parameters would do now. Raises StillCounting."""
    incumbent = _current()
    values = catalog.to_dict(method.params()) | params
    values = retractions.start_clean(values, incumbent) if incumbent else values
    found = available(campaign, incumbent)
    n = _n_of(found, method.source, values)
    n_steps = math.ceil(n * values["epochs"] / values["batch_pairs"])
    measured = _measured(method)
    seconds = None
    if measured is not None:
        seconds = _seconds_each(measured) * n * values["epochs"] + _overhead(measured)
    # What is asked when the judgments are frozen, and that a pass is no empty one.
    missing = max(0, lines.MIN_LINES - found.usable[method.source], 1 - _n_in(found.lines, method.source, values))
    return Estimate(found, catalog.SOURCES[method.source], n, n_steps, seconds, measured, missing)


def available(campaign: Campaign, incumbent: Adapter | None = None) -> Available:
    """Counted once for the same judgments, however often a form asks, and by one request at a time. Raises StillCounting."""
    state = judgments.learnable().filter(comparison__campaign=campaign).aggregate(n=Count("pk"), last=Max("pk"))
    key = f"training.estimates.{campaign.pk}.{state['n']}.{state['last']}.{incumbent.pk if incumbent else 0}"
    counted = cache.get(key)
    if counted is None:
        counted = _count_alone(campaign, incumbent)
        cache.set(key, counted, KEPT_SECONDS)
    return Available(**counted, waiting=snapshots.waiting(campaign))


def _count_alone(campaign: Campaign, incumbent: Adapter | None) -> dict[str, Any]:
    lock = f"training.estimates.{campaign.pk}.counting"
    if not cache.add(lock, True, COUNTING_SECONDS):
        raise StillCounting
    try:
        return _count(campaign, incumbent)
    finally:
        cache.delete(lock)


def _count(campaign: Campaign, incumbent: Adapter | None) -> dict[str, Any]:
    made, counts = snapshots.preview(campaign, incumbent)
    every = [*made.pairs, *made.unpaired, *made.edits]
    train = [line for line in every if not is_heldout(line["prompt_sha256"])]
    return {
        "counts": counts,
        "usable": {source: lines.count_usable(train, source) for source in catalog.SOURCES},
        "lines": _by_source(train),
        "new": _by_source([line for line in train if line["is_new"]]),
    }


def _by_source(found: list[lines.Line]) -> dict[str, int]:
    counted = {source: lines.count_usable(found, source) for source in catalog.SOURCES}
    return counted | {"unpaired": sum("desirable" in line for line in found)}  # without pairs, which may be split


def _n_of(found: Available, source: str, values: dict[str, Any]) -> int:
    """Of one pass, as `training.ml.data.choose` has it: what continues a version learns new lines and replays old ones."""
    n, n_new = (_n_in(counted, source, values) for counted in (found.lines, found.new))
    return n_new + min(n - n_new, round(values["replay"] * n_new)) if values["start"] == "incumbent" else n


def _n_in(counted: dict[str, int], source: str, values: dict[str, Any]) -> int:
    """A pair can be split into two responses."""
    return counted[source] + (2 * counted["pairs"] if values.get("splits_pairs") else 0)


def _current() -> Adapter | None:
    """The version that a run would be compared with; None before anything was in chat."""
    row = Deployment.objects.filter(alias=adapters.CURRENT).select_related("adapter").first()
    return row.adapter if row else None


def _measured(method: catalog.Method) -> Run | None:
    """The newest run that tells how long training takes here, of this method if there is one."""
    done = Run.objects.filter(status=Run.Status.SUCCEEDED, n_steps__gt=0, timings__training__gt=0).order_by("-id")
    return done.filter(method=method.name).first() or done.first()


def _seconds_each(run: Run) -> float:
    """Of one pair."""
    return float(run.timings["training"] / (run.n_steps * run.params.get("batch_pairs", 1)))


def _overhead(run: Run) -> float:
    return float(sum(run.timings.get(stage, 0) for stage in ("snapshot", "startup", "evaluation", "save", "register")))
