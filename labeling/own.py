"""What people are told of their own work. Nothing here tells gold pairs or repeats from others, or one vote from another."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from django.contrib.auth.models import User
from django.db.models import Count, Q, QuerySet
from django.db.models.functions import TruncDate

from labeling import access, dashboard, judgments
from labeling.charts import Columns
from labeling.dashboard import Figure
from labeling.models import Campaign, Judgment, Statistics

MIN_MAJORITY = 20  # decided votes that others voted on, before the share is told: a few would tell single votes
N_RECENT = 500  # judgments that the median time is taken of


@dataclass(frozen=True)
class CampaignLine:
    """One campaign: how many I judged, and how often I side with the majority; None with too few such votes."""

    campaign: Campaign
    n: int
    n_skips: int
    majority: Figure | None


@dataclass(frozen=True)
class Own:
    n: int
    n_today: int
    n_week: int
    n_skips: int
    median_seconds: float | None
    days: Columns
    lines: list[CampaignLine]


def of(user: User, now: datetime) -> Own:
    """Six queries, whatever the number of judgments and campaigns."""
    said = judgments.in_force().filter(annotator=user).order_by()
    done = said.exclude(verdict=Judgment.Verdict.SKIP)
    per_day = daily(done, now)
    dates = [(now.date() - timedelta(days=k)).isoformat() for k in range(7)]
    lines = _lines(user, said)
    times = done.filter(shown_ms__isnull=False).order_by("-pk").values_list("shown_ms", flat=True)[:N_RECENT]
    recent = [ms for ms in times if ms is not None]
    return Own(
        n=sum(line.n for line in lines),
        n_today=per_day.get(dates[0], 0),
        n_week=sum(per_day.get(date, 0) for date in dates),
        n_skips=sum(line.n_skips for line in lines),
        median_seconds=float(np.median(recent)) / 1000 if recent else None,
        days=dashboard.daily(per_day, now),
        lines=lines,
    )


def daily(said: QuerySet[Judgment], now: datetime) -> dict[str, int]:
    """Judgments per day (UTC) of the days that a chart shows."""
    recent = said.filter(created_at__gt=now - timedelta(days=dashboard.N_DAYS + 1)).order_by()
    return {day.isoformat(): n for day, n in recent.values_list(TruncDate("created_at")).annotate(Count("pk"))}


def _lines(user: User, said: QuerySet[Judgment]) -> list[CampaignLine]:
    is_skip = Q(verdict=Judgment.Verdict.SKIP)
    rows = said.values_list("comparison__campaign").annotate(
        n=Count("pk", filter=~is_skip), n_skips=Count("pk", filter=is_skip)
    )
    counts = {campaign: (n, n_skips) for campaign, n, n_skips in rows}
    mine = access.campaigns(user).filter(pk__in=counts)
    stored = Statistics.objects.filter(campaign__in=mine)
    people = {row.campaign_id: _row_of(row, user) for row in stored}
    return [CampaignLine(campaign, *counts[campaign.pk], _majority(people.get(campaign.pk))) for campaign in mine]


def _row_of(stored: Statistics, user: User) -> dict | None:
    return next((row for row in stored.data.get("people", []) if row["user"] == user.pk), None)


def _majority(row: dict | None) -> Figure | None:
    if row is None or row["majority"]["n"] < MIN_MAJORITY:
        return None
    return dashboard.share("", row["majority"])
