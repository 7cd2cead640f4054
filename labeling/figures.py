"""A campaign's figures from its votes: the values that `labeling.statistics` stores and the managers' pages show.

The statistics themselves are pure functions elsewhere (agreement, bias, reliability, suspects, ratings, forecast); here they
are asked, and their answers become plain values for JSON. No judgment is left out because of any of them.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from django.db.models import Count, Max, Q, Sum
from django.db.models.functions import TruncDate, TruncHour
from numpy.typing import NDArray

from labeling import agreement, bias, forecast, judgments, progress, ratings, reliability, suspects, votes
from labeling.models import Campaign, Comparison, Judgment, Purpose
from labeling.votes import Collected
from serving.models import Adapter

FORMAT = 1  # of what `compute` returns; raised when pages need something that older figures lack
N_PERIODS = 12  # points of the curve of agreement
MIN_ITEMS_PER_PERIOD = 10
N_COLLEAGUES = 24  # people with most votes, of whom every two are compared
MIN_SHARED = 10  # pairs that two people must both have judged
N_DAYS, N_HOURS = 60, 48
LENGTH = [bias.STYLE.index("length")]


def compute(campaign: Campaign, now: datetime, rng: np.random.Generator) -> dict[str, Any]:
    """Everything, as plain values. The number of queries does not depend on the number of judgments."""
    collected = votes.collect(campaign)
    styles = votes.styles(campaign)
    features = votes.style_differences(collected, styles)
    fitted = reliability.fit(collected.votes)
    is_fast = votes.too_fast(collected, styles)
    repeats = votes.repeats(campaign)
    found = {
        "format": FORMAT,
        "n_votes": int(collected.counts.sum()),
        "verdicts": _verdicts(campaign),
        "agreement": _agreement(collected, rng),
        "over_time": _over_time(collected, rng),
        "colleagues": _colleagues(collected, rng),
        "gold": _gold(collected, slice(None)),
        "repeats": bias.self_consistency(repeats.first, repeats.again),
        "side": bias.left_share(*_sided(collected, collected.counts)),
        "coefficients": _coefficients(collected, features),
        "people": _people(campaign, collected, fitted, is_fast, repeats),
        "domains": _domains(campaign),
        "throughput": _throughput(campaign, now),
        "forecast": _forecast(campaign, collected, now, rng),
        "leaderboard": _leaderboard(campaign, collected, features),
    }
    return plain(found)


def plain(value: Any) -> Any:
    """Dataclasses and numpy values as dictionaries, lists and numbers; what is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _verdicts(campaign: Campaign) -> dict[str, Any]:
    """How often each verdict, reason to skip and flag was given, among judgments in force."""
    said = judgments.in_force().filter(comparison__campaign=campaign, is_surplus=False).order_by()
    ordinary = said.filter(purpose__in=judgments.COUNTED)
    skipped = ordinary.filter(verdict=Judgment.Verdict.SKIP)
    return {
        "verdicts": dict(ordinary.values_list("verdict").annotate(Count("pk"))),
        "skips": {reason or "unsaid": n for reason, n in skipped.values_list("skip_reason").annotate(Count("pk"))},
        "n_flagged": said.exclude(flags=[]).values("comparison").distinct().count(),
        "n_edits": said.filter(edit__isnull=False).count(),
        "n_surplus": judgments.in_force().filter(comparison__campaign=campaign, is_surplus=True).count(),
    }


def _agreement(collected: Collected, rng: np.random.Generator) -> dict[str, agreement.Estimate | None]:
    item, annotator, value = collected.countable
    sign = np.sign(value)
    return {
        "alpha": agreement.krippendorff_alpha(item, annotator, value, "ordinal", rng),
        "kappa": agreement.fleiss_kappa(item, annotator, sign, rng),
        "percent": agreement.percent_agreement(item, annotator, sign, rng),
    }


def _over_time(collected: Collected, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Alpha in periods with as many pairs each, by when a pair got its last vote."""
    item, annotator, value = collected.countable
    judgment = collected.judgment[collected.counts]
    last = np.zeros(len(collected.pairs), dtype=np.int64)
    np.maximum.at(last, item, judgment)
    shared = np.flatnonzero(np.bincount(item, minlength=len(last)) > 1)
    shared = shared[np.argsort(last[shared], kind="stable")]
    n_periods = min(N_PERIODS, len(shared) // MIN_ITEMS_PER_PERIOD)
    periods = np.array_split(shared, n_periods) if n_periods > 1 else []
    ends = Judgment.objects.in_bulk([int(last[period[-1]]) for period in periods])
    points = []
    for period in periods:
        keep = np.isin(item, period)
        alpha = agreement.krippendorff_alpha(item[keep], annotator[keep], value[keep], "ordinal", rng)
        points.append({"at": ends[int(last[period[-1]])].created_at.isoformat(), "alpha": alpha})
    return points


def _colleagues(collected: Collected, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Cohen's kappa of every two of the people with most votes who judged enough of the same pairs, lowest first."""
    item, annotator, value = collected.countable
    busiest = np.argsort(-np.bincount(annotator, minlength=len(collected.annotators)), kind="stable")[:N_COLLEAGUES]
    own = {a: dict(zip(item[annotator == a].tolist(), np.sign(value[annotator == a]), strict=True)) for a in busiest}
    found = []
    for one, other in itertools.combinations(busiest, 2):
        shared = sorted(own[one].keys() & own[other].keys())
        if len(shared) < MIN_SHARED:
            continue
        kappa = agreement.cohen_kappa([own[one][i] for i in shared], [own[other][i] for i in shared], rng)
        people = [collected.annotators[one], collected.annotators[other]]
        found.append({"people": people, "n": len(shared), "kappa": kappa})
    return sorted(found, key=lambda row: row["kappa"].value if row["kappa"] else 1.0)


def _sided(collected: Collected, own: Any) -> tuple[NDArray, NDArray]:
    return collected.votes.value[own], collected.votes.side[own]


def _gold(collected: Collected, own: Any) -> bias.Share:
    """Only pairs that measure people: what a reviewer decided afterwards nobody could know."""
    item = collected.votes.item[own]
    known = np.where(collected.is_gold, collected.votes.known, np.nan)
    return bias.gold_accuracy(collected.votes.value[own], known[item])


def _coefficients(collected: Collected, features: NDArray[np.float64]) -> list[bias.Coefficient] | None:
    keep = collected.counts
    value, side = _sided(collected, keep)
    return bias.coefficients(value, side, features[keep], collected.prompt[keep])


def _people(
    campaign: Campaign,
    collected: Collected,
    fitted: reliability.SoftLabels,
    is_fast: NDArray[np.bool_],
    repeats: votes.Repeats,
) -> list[dict[str, Any]]:
    """One row per person who judged anything, most judgments first."""
    found: dict[int, list[suspects.Suspect]] = {}
    for suspect in suspects.find_suspects(collected.votes, fitted, is_fast):
        found.setdefault(suspect.annotator, []).append(suspect)
    index = {user: number for number, user in enumerate(collected.annotators)}
    own_votes = _by_annotator(collected)
    agrees = _sides_with_majority(collected)
    rows = []
    for counts in _counts_by_person(campaign):
        number = index.get(counts["user"])
        own = own_votes[number] if number is not None else np.array([], dtype=np.int64)
        again = repeats.annotator == counts["user"]
        sided = agrees[own][~np.isnan(agrees[own])]
        known_ms = collected.shown_ms[own][~np.isnan(collected.shown_ms[own])]
        rows.append(
            counts
            | {
                "left": bias.left_share(*_sided(collected, own)),
                "gold": _gold(collected, own),
                "repeats": bias.self_consistency(repeats.first[again], repeats.again[again]),
                "majority": bias.share(int(sided.sum()), len(sided)),
                "fast": bias.share(int(is_fast[own].sum()), len(known_ms)),
                "median_ms": float(np.median(known_ms)) if len(known_ms) else None,
                "reliability": _reliability(fitted, number),
                "suspicions": found.get(number, []) if number is not None else [],
            }
        )
    return rows


def _by_annotator(collected: Collected) -> list[NDArray[np.int64]]:
    """For each annotator the indices of their votes."""
    annotator = collected.votes.annotator
    order = np.argsort(annotator, kind="stable")
    return np.split(order, np.searchsorted(annotator[order], np.arange(1, len(collected.annotators))))


def _sides_with_majority(collected: Collected) -> NDArray[np.float64]:
    """(n,) 1 where a decided vote that counts sides with the majority of the others' votes on its pair, 0 where against
    it, NaN where there is no such side. Knows nothing of gold: people are shown this of themselves.
    """
    sign = np.sign(collected.votes.value) * collected.counts
    others = np.bincount(collected.votes.item, sign, minlength=len(collected.pairs))[collected.votes.item] - sign
    direction = np.sign(others) * sign
    return np.where(direction == 0, np.nan, (direction > 0).astype(float))


def _reliability(fitted: reliability.SoftLabels, number: int | None) -> dict[str, float] | None:
    """γ with its 95 % interval: 1 typical, 0 chance."""
    if number is None or not fitted.is_learned:
        return None
    value, error = float(fitted.reliability[number]), float(fitted.reliability_error[number])
    return {"value": value, "low": value - suspects.Z * error, "high": value + suspects.Z * error}


def _counts_by_person(campaign: Campaign) -> Iterable[dict[str, Any]]:
    verdict = Judgment.Verdict
    said = judgments.in_force().filter(comparison__campaign=campaign)
    ordinary = Q(purpose__in=judgments.COUNTED, is_surplus=False)
    rows = said.values("annotator", "annotator__username").annotate(
        n=Count("pk", filter=ordinary & ~Q(verdict=verdict.SKIP)),
        n_ties=Count("pk", filter=ordinary & Q(verdict=verdict.TIE)),
        n_both_bad=Count("pk", filter=ordinary & Q(verdict=verdict.BOTH_BAD)),
        n_skips=Count("pk", filter=ordinary & Q(verdict=verdict.SKIP)),
        n_gold=Count("pk", filter=Q(purpose=Purpose.GOLD)),
        n_surplus=Count("pk", filter=Q(is_surplus=True)),
        last_at=Max("created_at"),
    )
    found: Iterable[dict[str, Any]] = map(dict, rows.order_by("-n", "annotator"))
    for row in found:
        user, name = row.pop("annotator"), row.pop("annotator__username")
        yield {"user": user, "name": name, **row, "last_at": row["last_at"].isoformat()}


def _domains(campaign: Campaign) -> list[dict[str, Any]]:
    """How far each domain of prompts is; gold pairs left out."""
    ordinary = Q(gold_ranks__isnull=True) & ~Q(source=Comparison.Source.CHAT)
    rows = campaign.comparisons.filter(ordinary).values("prompt__domain").order_by()
    counted = rows.annotate(
        n_pairs=Count("pk"),
        n_prompts=Count("prompt", distinct=True),
        done=Sum("n_judgments"),
        wanted=Sum(progress.ASKED_FOR),
        n_closed=Count("pk", filter=Q(is_open=False)),
        disputed=Count("pk", filter=Q(is_disputed=True)),
    )
    ordered = map(dict, counted.order_by("-n_pairs", "prompt__domain"))
    return [{"domain": row.pop("prompt__domain"), **row} for row in ordered]


def _throughput(campaign: Campaign, now: datetime) -> dict[str, list[tuple[str, int]]]:
    """Judgments that count per day (UTC) and, of the last two days, per hour; times without any have no entry."""
    said = judgments.counting().filter(comparison__campaign=campaign).order_by()
    recent = said.filter(created_at__gt=now - timedelta(hours=N_HOURS))
    by_day = said.values_list(TruncDate("created_at")).annotate(Count("pk"))
    by_hour = recent.values_list(TruncHour("created_at")).annotate(Count("pk"))
    return {
        "days": [(day.isoformat(), n) for day, n in sorted(by_day)],
        "hours": [(hour.isoformat(), n) for hour, n in sorted(by_hour)],
    }


def _forecast(campaign: Campaign, collected: Collected, now: datetime, rng: np.random.Generator) -> dict[str, Any]:
    """How many judgments are still wanted, when they will be there, and how many hours of reading they are."""
    waiting = campaign.comparisons.filter(is_open=True).aggregate(
        wanted=Sum("n_wanted", default=0), done=Sum("n_judgments", default=0)
    )
    remaining = waiting["wanted"] - waiting["done"]
    since = now - timedelta(days=forecast.HISTORY + 1)
    said = judgments.counting().filter(comparison__campaign=campaign, created_at__gt=since).order_by()
    by_day = dict(said.values_list(TruncDate("created_at")).annotate(Count("pk")))
    first = min(by_day, default=now.date())
    days = [first + timedelta(days=n) for n in range((now.date() - first).days)]  # today is not over
    known_ms = collected.shown_ms[~np.isnan(collected.shown_ms)]
    return {
        "remaining": remaining,
        "end": forecast.finish([by_day.get(day, 0) for day in days], remaining, rng),
        "hours": remaining * float(np.median(known_ms)) / 3_600_000 if len(known_ms) else None,
    }


def _leaderboard(campaign: Campaign, collected: Collected, features: NDArray[np.float64]) -> dict[str, Any]:
    """Versions as they come out of the votes, once as they are and once at equal length, against the base or, where it was
    not compared, against the version with most votes.
    """
    matches, versions = votes.matches(campaign, collected, features[:, LENGTH])
    adapters = Adapter.objects.in_bulk([adapter for adapter, _ in versions if adapter])
    n_votes = np.bincount(np.concatenate([matches.first, matches.second]), minlength=len(versions))
    bases = [k for k, (pk, _) in enumerate(versions) if pk and adapters[pk].is_base and n_votes[k]]
    baseline = bases[0] if bases else int(n_votes.argmax()) if len(versions) else 0
    bare = dataclasses.replace(matches, features=None)
    plain_board = ratings.leaderboard(bare, len(versions), baseline)
    return {
        "versions": [{"name": str(adapters[pk]) if pk else name, "adapter": pk} for pk, name in versions],
        "baseline": baseline,
        "plain": plain_board,
        "length": ratings.leaderboard(matches, len(versions), baseline) if plain_board else [],
        "direct": _direct(matches, plain_board),
    }


def _direct(matches: ratings.Matches, board: list[ratings.Standing]) -> dict[str, Any] | None:
    """The decided votes between the two best that can be compared: how many, and the share that the first won."""
    if len(board) < 2 or board[0].component != board[1].component:
        return None
    best, second = board[0].version, board[1].version
    ahead = (matches.first == best) & (matches.second == second)
    behind = (matches.first == second) & (matches.second == best)
    sign = np.sign(np.concatenate([matches.value[ahead], -matches.value[behind]]))
    won = bias.share(int((sign > 0).sum()), int((sign != 0).sum()))
    return {"best": best, "second": second, "won": won}
