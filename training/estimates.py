"""What a run would learn from, and how long it would take, before anybody starts it."""

import math
from dataclasses import dataclass
from typing import Any

from django.core.cache import cache
from django.db.models import Count, Max

from labeling import judgments
from labeling.models import Campaign
from training import catalog, lines, snapshots
from training.models import Run
from training.split import is_heldout

KEPT_SECONDS = 3600


@dataclass(frozen=True)
class Available:
    """What a campaign's judgments in force give, by what methods learn from, held-out lines left out."""

    counts: dict[str, Any]  # of the snapshot that would be frozen now
    pairs: int  # decided ones
    pairs_with_ties: int
    unpaired: int  # single responses
    edits: int
    waiting: int  # judgments since the last successful run

    @property
    def n_ties(self) -> int:
        return self.pairs_with_ties - self.pairs


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
    """What a run with these parameters would do now."""
    values = catalog.to_dict(method.params()) | params
    found = available(campaign)
    n = _n_of(found, method.source, values)
    n_steps = math.ceil(n * values["epochs"] / values["batch_pairs"])
    measured = _measured(method)
    seconds = None
    if measured is not None:
        seconds = _seconds_each(measured) * n * values["epochs"] + _overhead(measured)
    missing = max(0, lines.MIN_LINES - n)
    return Estimate(found, catalog.SOURCES[method.source], n, n_steps, seconds, measured, missing)


def available(campaign: Campaign) -> Available:
    """Counted once for the same judgments, however often a form asks."""
    state = judgments.learnable().filter(comparison__campaign=campaign).aggregate(n=Count("pk"), last=Max("pk"))
    key = f"training.estimates.{campaign.pk}.{state['n']}.{state['last']}"
    counted = cache.get(key)
    if counted is None:
        counted = _count(campaign)
        cache.set(key, counted, KEPT_SECONDS)
    return Available(**counted, waiting=snapshots.waiting(campaign))


def _count(campaign: Campaign) -> dict[str, Any]:
    made, counts = snapshots.preview(campaign)
    pairs, unpaired, edits = (
        [line for line in kind if not is_heldout(line["prompt_sha256"])]
        for kind in (made.pairs, made.unpaired, made.edits)
    )
    return {
        "counts": counts,
        "pairs": lines.count_usable(pairs, "pairs"),
        "pairs_with_ties": lines.count_usable(pairs, "pairs_with_ties"),
        "unpaired": len(unpaired),
        "edits": len(edits),
    }


def _n_of(found: Available, source: str, values: dict[str, Any]) -> int:
    """Of one pass. A pair can be split into two responses; what continues a version learns new lines and replays old ones."""
    n: int = getattr(found, source)
    n += 2 * found.pairs if values.get("splits_pairs") else 0
    if values["start"] == "incumbent":
        return min(n, math.ceil(min(found.waiting, n) * (1 + values["replay"])))
    return n


def _measured(method: catalog.Method) -> Run | None:
    """The newest run that tells how long training takes here, of this method if there is one."""
    done = Run.objects.filter(status=Run.Status.SUCCEEDED, n_steps__gt=0, timings__training__gt=0).order_by("-id")
    return done.filter(method=method.name).first() or done.first()


def _seconds_each(run: Run) -> float:
    """Of one pair."""
    return float(run.timings["training"] / (run.n_steps * run.params.get("batch_pairs", 1)))


def _overhead(run: Run) -> float:
    return float(sum(run.timings.get(stage, 0) for stage in ("snapshot", "startup", "evaluation", "save", "register")))
