"""What the managers' pages show of a campaign's figures: charts, rows and sentences made of the stored values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from django.utils.dateparse import parse_datetime
from django.utils.formats import date_format
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from labeling import charts, ratings, savings
from labeling.charts import Columns, Curve, Interval

N_DAYS = 30
N_COLLEAGUES = 8
ALPHA_STEPS = (0, 0.25, 0.5, 0.75, 1)
RELIABLE, TENTATIVE = 0.8, 0.667  # Krippendorff 2004, "Content Analysis", chapter 11
ODDS_LIMIT = 1.0  # logits at the ends of the plot of coefficients
COEFFICIENTS = {
    "side": gettext_lazy("shown on the left"),
    "length": gettext_lazy("longer"),
    "headers": gettext_lazy("more headings"),
    "lists": gettext_lazy("more list items"),
    "bold": gettext_lazy("more bold text"),
}
SKIP_REASONS = {
    "unsure": gettext_lazy("cannot tell"),
    "too_long": gettext_lazy("too long"),
    "language": gettext_lazy("not their language"),
    "expertise": gettext_lazy("not their field"),
    "uncomfortable": gettext_lazy("would rather not read it"),
    "other": gettext_lazy("something else"),
    "unsaid": gettext_lazy("no reason given"),
}
Data = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A value with what it rests on. `text` is None when there is nothing yet."""

    name: str | Promise
    text: str | None
    range: str
    n: int
    interval: Interval | None
    is_off: bool = False  # the interval leaves out the reference


def share(name: str | Promise, data: Data | None, reference: float | None = None) -> Figure:
    """A `bias.Share` as stored."""
    if not data or data["value"] is None:
        return Figure(name, None, "", 0, None)
    drawn = charts.interval(data["value"], data["low"], data["high"], 0, 1, reference)
    is_off = reference is not None and not data["low"] <= reference <= data["high"]
    return Figure(
        name, percent(data["value"]), f"{percent(data['low'])} – {percent(data['high'])}", data["n"], drawn, is_off
    )


def estimate(name: str | Promise, data: Data | None, *, as_percent: bool = False, least: float = 0) -> Figure:
    """An `agreement.Estimate` as stored, on an axis from `least` to 1; `n` are pairs."""
    if not data:
        return Figure(name, None, "", 0, None)
    shown = percent if as_percent else _two_digits
    limits = "" if data["low"] is None else f"{shown(data['low'])} – {shown(data['high'])}"
    drawn = charts.interval(data["value"], data["low"], data["high"], least, 1, 0 if least < 0 else None)
    return Figure(name, shown(data["value"]), limits, data["n_items"], drawn)


def percent(value: float) -> str:
    return _("%(n)s %%") % {"n": f"{100 * value:.0f}"}


def _two_digits(value: float) -> str:
    return f"{value:.2f}"


def overview(data: Data, now: datetime) -> dict[str, Any]:
    """Context of templates/labeling/_dashboard.html."""
    return {
        "forecast": forecast_sentence(data["forecast"], now),
        "work": work_sentence(data["forecast"]),
        "days": daily(dict(data["throughput"]["days"]), now),
        "n_last_day": sum(n for _, n in data["throughput"]["hours"][-24:]),
        "agreement": _agreement(data["agreement"]),
        "alpha_reading": alpha_reading(data["agreement"]["alpha"]),
        "over_time": over_time(data["over_time"]),
        "colleagues": _colleagues(data),
        "trust": _trust(data),
        "coefficients": coefficients(data["coefficients"]),
        "domains": data["domains"],
        "verdicts": _verdicts(data["verdicts"]),
        "saving": _saving(data.get("savings")),
        "suspects": [row for row in data["people"] if row["suspicions"]],
    }


def daily(per_day: Mapping[str, int], now: datetime) -> Columns:
    """The last 30 days, today's last."""
    days = [now.date() - timedelta(days=N_DAYS - 1 - k) for k in range(N_DAYS)]
    return charts.columns([(_day(day), per_day.get(day.isoformat(), 0)) for day in days])


def _day(day: date) -> str:
    return date_format(day, "MONTH_DAY_FORMAT") if day.day == 1 else date_format(day, "j N")


def forecast_sentence(data: Data, now: datetime) -> str:
    """When the campaign will be done, with an honest range; or why that cannot be told."""
    if not data["remaining"]:
        return _("Every pair has the judgments that it needs.")
    end = data["end"]
    if end is None:
        return _("How long it will take can be told after three days of labeling.")
    if end["low"] is None:
        return _("At the pace of the last weeks, more than ten years.")
    low = date_format(now.date() + timedelta(days=end["low"]), "DATE_FORMAT")
    if end["high"] is None:
        return _("Done on %(low)s at the earliest; the pace varies too much to say more.") % {"low": low}
    high = date_format(now.date() + timedelta(days=end["high"]), "DATE_FORMAT")
    middle = date_format(now.date() + timedelta(days=end["middle"]), "DATE_FORMAT")
    if low == high:
        return _("Done on about %(middle)s, if people go on as they did.") % {"middle": middle}
    words = {"low": low, "high": high, "middle": middle}
    return _("Done between %(low)s and %(high)s, most likely around %(middle)s, if people go on as they did.") % words


def work_sentence(data: Data) -> str:
    """What remains, in judgments and, where it is known how long one takes, in hours."""
    n = data["remaining"]
    if not n:
        return ""
    words = {"n": f"{n:,}", "hours": f"{data['hours']:,.1f}" if data["hours"] else ""}
    if not data["hours"]:
        return ngettext("%(n)s judgment is still wanted.", "%(n)s judgments are still wanted.", n) % words
    return (
        ngettext(
            "%(n)s judgment is still wanted: about %(hours)s hours of one person’s work.",
            "%(n)s judgments are still wanted: about %(hours)s hours of one person’s work.",
            n,
        )
        % words
    )


def _agreement(data: Data) -> list[Figure]:
    return [
        estimate(_("Krippendorff’s α (graded)"), data["alpha"]),
        estimate(_("Fleiss’ κ (which one is better)"), data["kappa"]),
        estimate(_("Same answer"), data["percent"], as_percent=True),
    ]


def alpha_reading(alpha: Data | None) -> str:
    """Whether the agreement suffices, by the usual limits, and by the whole interval."""
    if not alpha:
        return _("Agreement can be measured where two people judged the same pair.")
    low = alpha["low"] if alpha["low"] is not None else alpha["value"]
    high = alpha["high"] if alpha["high"] is not None else alpha["value"]
    if low >= RELIABLE:
        return _("Reliable by the usual limit of 0.80.")
    if low >= TENTATIVE:
        return _("Good enough for tentative conclusions (0.67), not surely reliable (0.80).")
    if high < TENTATIVE:
        return _(
            "Below 0.67. Preferences often are, for people do differ; read the disputes and sharpen the guidelines."
        )
    return _("Too few shared judgments to tell on which side of 0.67 it lies.")


def over_time(points: Sequence[Data]) -> Curve | None:
    known = [point for point in points if point["alpha"]]
    if len(known) < 2:
        return None
    values = [
        (_day(_parse(point["at"]).date()), *(point["alpha"][key] for key in ("value", "low", "high")))
        for point in known
    ]
    return charts.curve(values, 0, 1, ALPHA_STEPS)


def _parse(text: str) -> datetime:
    parsed = parse_datetime(text)
    if parsed is None:
        raise ValueError(f"{text!r} is no time")
    return parsed


def _colleagues(data: Data) -> list[dict[str, Any]]:
    """Pairs of people who agree least."""
    names = {row["user"]: row["name"] for row in data["people"]}
    return [
        {
            "names": [names.get(user, "?") for user in row["people"]],
            "n": row["n"],
            "kappa": estimate("", row["kappa"], least=-1),
        }
        for row in data["colleagues"][:N_COLLEAGUES]
    ]


def _trust(data: Data) -> list[Figure]:
    return [
        share(_("Gold answered right"), data["gold"]),
        share(_("Same answer when shown again with the sides swapped"), data["repeats"]),
        share(_("Left response chosen (50 % is no bias)"), data["side"], 0.5),
    ]


def coefficients(rows: Sequence[Data] | None) -> list[Figure]:
    """How much each property multiplies the odds of being chosen."""
    return [
        Figure(
            COEFFICIENTS.get(str(row["name"])) or str(row["name"]),
            f"× {row['odds']:.2f}",
            "",
            0,
            charts.interval(row["value"], row["low"], row["high"], -ODDS_LIMIT, ODDS_LIMIT, 0),
            not row["low"] <= 0 <= row["high"],
        )
        for row in rows or []
    ]


def _verdicts(data: Data) -> dict[str, Any]:
    given = data["verdicts"]
    n_skips = given.get("skip", 0)
    n = sum(given.values()) - n_skips
    skips = sorted(data["skips"].items(), key=lambda item: -item[1])
    return {
        "n": n,
        "shares": [
            (_("ties"), given.get("tie", 0), percent(given.get("tie", 0) / n) if n else ""),
            (_("both bad"), given.get("both_bad", 0), percent(given.get("both_bad", 0) / n) if n else ""),
        ],
        "n_skips": n_skips,
        "skips": [(SKIP_REASONS.get(reason, reason), count) for reason, count in skips],
        "n_flagged": data["n_flagged"],
        "n_edits": data["n_edits"],
        "n_surplus": data["n_surplus"],
    }


def _saving(data: Data | None) -> savings.Saving | None:
    """What active choice saved; None where nothing was chosen actively, or before it was measured."""
    report = data["report"] if data else None
    return savings.Saving(**report) if report else None


@dataclass(frozen=True)
class PersonRow:
    """One line of the list of people, and the head of a person's own page."""

    user: int
    name: str
    n: int
    n_skips: int
    tie_share: str
    median_seconds: float | None
    left: Figure
    gold: Figure
    repeats: Figure
    majority: Figure
    fast: Figure
    reliability: Figure
    suspicions: Sequence[Data]
    last_at: datetime


def person_row(row: Data) -> PersonRow:
    gamma = row["reliability"]
    drawn = gamma and charts.interval(gamma["value"], gamma["low"], gamma["high"], -1, 2, 1)
    limits = f"{gamma['low']:.1f} – {gamma['high']:.1f}" if gamma and gamma["low"] is not None else ""
    return PersonRow(
        user=row["user"],
        name=row["name"],
        n=row["n"],
        n_skips=row["n_skips"],
        tie_share=percent(row["n_ties"] / row["n"]) if row["n"] else "–",
        median_seconds=row["median_ms"] / 1000 if row["median_ms"] is not None else None,
        left=share(_("Left response chosen"), row["left"], 0.5),
        gold=share(_("Gold answered right"), row["gold"]),
        repeats=share(_("Same answer when shown again, swapped"), row["repeats"]),
        majority=share(_("Sides with the others’ majority"), row["majority"]),
        fast=share(_("Faster than anybody reads"), row["fast"]),
        reliability=Figure(_("Reliability (1 typical, 0 chance)"), _two_digits(gamma["value"]), limits, 0, drawn)
        if gamma
        else Figure(_("Reliability (1 typical, 0 chance)"), None, "", 0, None),
        suspicions=row["suspicions"],
        last_at=_parse(row["last_at"]),
    )


ORDERS = {"name", "judgments", "gold", "majority", "findings"}


def sort_people(rows: Sequence[Data], order: str) -> list[Data]:
    """By one of ORDERS; the worst first where it is about quality, those without a figure last."""

    def by_share(name: str) -> list[Data]:
        return sorted(rows, key=lambda row: (row[name]["value"] is None, row[name]["value"] or 0))

    if order in ("gold", "majority"):
        return by_share(order)
    if order == "name":
        return sorted(rows, key=lambda row: row["name"].casefold())
    if order == "judgments":
        return sorted(rows, key=lambda row: -row["n"])
    return sorted(rows, key=lambda row: (-len(row["suspicions"]), -row["n"]))


def leaderboard(data: Data) -> dict[str, Any]:
    """Context of templates/labeling/leaderboard.html."""
    board, versions = data["plain"], data["versions"]
    controlled = {row["version"]: row for row in data["length"]}
    ratings_shown = [row[key] for row in board for key in ("low", "high")]
    least, most = (min(ratings_shown), max(ratings_shown)) if board else (0, 1)
    rows = [
        {
            **row,
            "name": versions[row["version"]]["name"],
            "is_baseline": row["version"] == data["baseline"],
            "interval": charts.interval(row["rating"], row["low"], row["high"], least, max(most, least + 1)),
            "win": _win(row),
            "controlled_win": _win(controlled.get(row["version"])),
            "controlled_rating": controlled[row["version"]]["rating"] if row["version"] in controlled else None,
        }
        for row in board
    ]
    return {
        "rows": rows,
        "n_components": len({row["component"] for row in board}),
        "power": power_sentence(data),
        "baseline": versions[data["baseline"]]["name"] if rows else "",
    }


def _win(row: Data | None) -> Figure | None:
    if row is None or row["win_rate"] is None:
        return None
    rate = {"value": row["win_rate"], "low": row["win_rate_low"], "high": row["win_rate_high"], "n": 0}
    return share("", rate, 0.5)


def power_sentence(data: Data) -> str:
    """What the votes between the two best versions can tell."""
    direct = data["direct"]
    if not direct:
        return ""
    won = direct["won"]
    names = [data["versions"][direct[key]]["name"] for key in ("best", "second")]
    words = {"best": names[0], "second": names[1]}
    if not won["n"]:
        return _("%(best)s and %(second)s were never compared with each other.") % words
    rate = min(max(won["value"], 0.01), 0.99)
    words["power"] = ratings.describe_power(won["n"], rate)
    return _("%(best)s against %(second)s: %(power)s") % words
