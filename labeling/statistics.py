"""Keeps a campaign's figures (labeling.figures) in its Statistics row. The only writer of those rows.

Beat asks every few seconds; a campaign is computed anew when judgments came, at most once a minute and never for more than a
twentieth of the time, and once an hour in any case, because forecasts age. A small campaign is computed when a page asks.
"""

import time
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from django.db.models import F, Max

from labeling import figures, savings
from labeling.models import Campaign, Judgment, Statistics

EVERY = timedelta(minutes=1)
AT_LEAST_EVERY = timedelta(hours=1)
PATIENCE = 20  # times as long as computing took
SMALL = 2_000  # judgments; so few take less than a second
SMALL_EVERY = timedelta(seconds=5)


def of(campaign: Campaign, now: datetime) -> Statistics | None:
    """The newest figures; None while those of a large campaign were never computed (beat does it soon)."""
    row = _readable(Statistics.objects.filter(campaign=campaign).first())
    is_old = row is None or now - row.computed_at >= SMALL_EVERY
    if is_old and _is_small(campaign) and (row is None or _has_changed(row, now)):
        return refresh(campaign, now)
    return row


def refresh(campaign: Campaign, now: datetime, *, in_background: bool = False) -> Statistics:
    """Computes and stores. The random numbers of the intervals are the same every time: figures do not flicker.

    What active choice saved takes seconds to measure: it is measured in the background only, once an hour.
    """
    newest = _newest()  # before reading: what comes meanwhile is looked at next time
    started = time.perf_counter()
    data = figures.compute(campaign, now, np.random.default_rng(campaign.pk))
    data["savings"] = _savings(campaign, now, in_background)
    data["seconds"] = time.perf_counter() - started
    fields = {"data": data, "last_judgment": newest, "computed_at": now}
    row, _ = Statistics.objects.update_or_create(campaign=campaign, defaults=fields)
    return row


def _savings(campaign: Campaign, now: datetime, in_background: bool) -> dict[str, Any]:
    """{"at": when, "report": savings.Saving as stored}: the last one, or a new one."""
    row = Statistics.objects.filter(campaign=campaign).first()
    last: dict[str, Any] = (row.data.get("savings") if row else None) or {"at": None, "report": None}
    is_recent = last["at"] is not None and now - datetime.fromisoformat(last["at"]) < AT_LEAST_EVERY
    if not in_background or is_recent:
        return last
    report = savings.report(campaign, np.random.default_rng(campaign.pk))
    return {"at": now.isoformat(), "report": figures.plain(report)}


def refresh_due(now: datetime) -> list[Campaign]:
    """Refreshes every campaign that has to be; returns them."""
    done = []
    rows = {row.campaign_id: row for row in Statistics.objects.all()}
    for campaign in Campaign.objects.order_by("pk"):
        row = _readable(rows.get(campaign.pk))
        if row is None or (_may(row, now) and _has_changed(row, now)):
            refresh(campaign, now, in_background=True)
            done.append(campaign)
    return done


def mark_stale(campaign: Campaign) -> None:
    """What the figures rest on has changed by something else than a judgment: an answer is known now, say."""
    Statistics.objects.filter(campaign=campaign).update(computed_at=F("computed_at") - AT_LEAST_EVERY)


def _readable(row: Statistics | None) -> Statistics | None:
    """None for figures that an older release computed: they are computed anew."""
    return row if row and row.data.get("format") == figures.FORMAT else None


def _may(row: Statistics, now: datetime) -> bool:
    pause = max(EVERY, timedelta(seconds=PATIENCE * row.data.get("seconds", 0)))
    return now - row.computed_at >= pause


def _has_changed(row: Statistics, now: datetime) -> bool:
    """Whether a judgment came since, of which none is older than this row: the look is short in a long table."""
    if now - row.computed_at >= AT_LEAST_EVERY:
        return True
    later = Judgment.objects.filter(pk__gt=row.last_judgment)
    if later.filter(comparison__campaign=row.campaign_id).exists():
        return True
    Statistics.objects.filter(pk=row.pk).update(last_judgment=max(_newest(), row.last_judgment))
    return False


def _newest() -> int:
    return Judgment.objects.aggregate(newest=Max("pk"))["newest"] or 0


def _is_small(campaign: Campaign) -> bool:
    return Judgment.objects.filter(comparison__campaign=campaign)[:SMALL].count() < SMALL
