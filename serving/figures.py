"""How versions are doing: what the request log says of the last hour, by version."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from django.db.models import Count, F, Q, Sum

from serving.models import Adapter, ServedRequest

HOUR = timedelta(hours=1)
MAX_SAMPLED = 2000  # of the newest requests, for medians

Outcome = ServedRequest.Outcome


@dataclass(frozen=True)
class Figures:
    """The requests of one version since a point in time."""

    n: int = 0
    n_failed: int = 0
    n_refused: int = 0
    n_cancelled: int = 0
    tokens_per_second: float | None = None  # while an answer is written; None: nothing was
    seconds_to_first_token: float | None = None  # median of the newest; None: there was none

    @property
    def failed_percent(self) -> float:
        """Of the requests that the engine was to answer: those that were refused or left are not counted."""
        n_judged = self.n - self.n_refused - self.n_cancelled
        return 100 * self.n_failed / n_judged if n_judged else 0.0


def last_hour(versions: Iterable[Adapter], now: datetime) -> dict[int, Figures]:
    """Adapter id → its figures. Two queries."""
    rows = ServedRequest.objects.filter(adapter__in=list(versions), at__gte=now - HOUR).order_by()
    waits: dict[int, list[float]] = defaultdict(list)
    begun = rows.filter(seconds_to_first_token__isnull=False)
    newest = begun.order_by("-at").values_list("adapter", "seconds_to_first_token")[:MAX_SAMPLED]
    for pk, seconds in newest:
        waits[pk].append(seconds or 0.0)
    counted = rows.values("adapter").annotate(
        n=Count("pk"),
        **{f"n_{end}": Count("pk", filter=Q(outcome=end)) for end in ("failed", "refused", "cancelled")},
        tokens=Sum("completion_tokens", filter=Q(seconds_to_first_token__isnull=False)),
        writing=Sum(F("seconds") - F("seconds_to_first_token")),
    )
    return {row["adapter"]: _figures(row, waits[row["adapter"]]) for row in counted}


def _figures(row: Mapping[str, Any], waits: list[float]) -> Figures:
    return Figures(
        n=row["n"],
        n_failed=row["n_failed"],
        n_refused=row["n_refused"],
        n_cancelled=row["n_cancelled"],
        tokens_per_second=row["tokens"] / row["writing"] if row["writing"] and row["tokens"] else None,
        seconds_to_first_token=median(waits) if waits else None,
    )
