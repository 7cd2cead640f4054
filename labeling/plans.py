"""The order in which a campaign's open comparisons are given out, planned by its strategy.

A plan fills the next HORIZON places, one after the other: with probability `random_share` from all that are left with equal
chances (arm "random"), else with the strategy's best (arm "active"); the exact probability of what was placed is stored
with it. Planned comparisons have sort keys below `pairs.PLANNED`, so that they come before everything else and claiming
stays one query in the order of an index. A comparison that somebody holds or has judged keeps its place, arm and propensity.

What is planned from are the POOL comparisons that would come next without a plan: with more than that open, the rest waits
in its random order (every prompt's first pair before any second one), and probabilities are those given this pool. Without
a plan the arm is "random" and the propensity null: all that were open had equal chances.

`Campaign.plan_wanted_at` says that a plan is wanted; the message is a nudge. A plan is also made anew when the newest one
is REPLAN_AFTER old and people have judged since.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from django.db import transaction
from django.db.models import Exists, Max, OuterRef, Q, QuerySet

from labeling import features, linear, pairs, pools, selection, texts
from labeling.models import Campaign, Comparison, Judgment
from labeling.pools import Choice, Floats, Item, Material

log = logging.getLogger(__name__)

POOL = 10_000
HORIZON = 2_000
N_JUDGED = 3_000  # newest judgments that a plan builds on
MIN_JUDGED = 20  # fewer say nothing of what people prefer
BATCH = 200  # rows written in one transaction: SQLite has one writer at a time
REPLAN_AFTER = timedelta(minutes=5)
QUALITY_FLOOR = 0.25  # share of the responses that is too bad to be compared for its difference
Strategy = Campaign.Strategy


@dataclass(frozen=True)
class Place:
    """What is written on one comparison."""

    pk: int
    sort_key: int
    arm: str = "random"
    propensity: float | None = None


def waiting(now: datetime) -> QuerySet[Campaign]:
    """Active campaigns that need a plan, or whose plan must go because they are back at random order."""
    later = Judgment.objects.filter(comparison__campaign=OuterRef("pk"), created_at__gt=OuterRef("planned_at"))
    is_old = Q(planned_at__lt=now - REPLAN_AFTER) & Exists(later)
    is_needed = ~Q(strategy=Strategy.RANDOM) & (Q(plan_wanted_at__isnull=False) | Q(planned_at=None) | is_old)
    is_over = Q(strategy=Strategy.RANDOM, planned_at__isnull=False)
    return Campaign.objects.filter(is_needed | is_over, status=Campaign.Status.ACTIVE).order_by("pk")


def plan(campaign: Campaign, now: datetime, rng: np.random.Generator) -> int:
    """Plans the campaign's next places; returns how many comparisons were placed. Nothing is locked while it computes."""
    is_random = campaign.strategy == Strategy.RANDOM
    # First: what is added from here on asks for another plan.
    Campaign.objects.filter(pk=campaign.pk).update(plan_wanted_at=None, planned_at=None if is_random else now)
    pool = pools.read_open(campaign, now, POOL)
    placed = [] if is_random else _draw(campaign, pool, _first_key(campaign, now), rng)
    kept = {place.pk for place in placed}
    planned_before = [item for item in pool if item.sort_key < pairs.PLANNED and item.pk not in kept]
    _write(campaign, [Place(item.pk, pairs.random_key(item.content_key)) for item in planned_before], now)
    n_written = _write(campaign, placed, now)
    log.info("%s: %d of %d open comparisons placed by %s", campaign.slug, n_written, len(pool), campaign.strategy)
    return n_written


def _first_key(campaign: Campaign, now: datetime) -> int:
    """After those that keep their planned place: what was begun is finished first."""
    free = pools.untouched(campaign, now).values("pk")
    planned = Comparison.objects.filter(campaign=campaign, is_open=True, sort_key__lt=pairs.PLANNED)
    last = planned.exclude(pk__in=free).aggregate(last=Max("sort_key"))["last"]
    return 0 if last is None or last + HORIZON >= pairs.PLANNED else last + 1


def _draw(campaign: Campaign, pool: Sequence[Item], first_key: int, rng: np.random.Generator) -> list[Place]:
    if not pool:
        return []
    draws = selection.draw(strategy_of(campaign, pool), len(pool), HORIZON, campaign.random_share, rng)
    rows = zip(draws.index.tolist(), draws.is_random.tolist(), draws.propensity.tolist(), strict=True)
    return [
        Place(pool[index].pk, first_key + number, "random" if is_random else "active", propensity)
        for number, (index, is_random, propensity) in enumerate(rows)
    ]


def strategy_of(campaign: Campaign, pool: Sequence[Item]) -> selection.Choices:
    """The campaign's strategy over the comparisons of `pool`. Those with near-identical responses come last in each."""
    judged = pools.read_choices(campaign, N_JUDGED)
    if campaign.strategy == Strategy.DIVERSITY:
        material = Material(id for item in pool for id in item.responses)
        return _diverse(material, pool, judged)
    known = (id for one in judged for id in (one.chosen, one.rejected))
    material = Material([*known, *(id for item in pool for id in item.responses)])
    sides = [_sides(material, item) for item in pool]
    first, second = material.rows([a for a, _ in sides]), material.rows([b for _, b in sides])
    is_last = _are_alike(material, sides)
    if campaign.strategy == Strategy.DIFFERENT:
        quality, floor = _quality(material, pool)
        return selection.most_different(first, second, quality, floor, is_last)
    theta = linear.fit(material.deltas(judged)) if len(judged) >= MIN_JUDGED else np.zeros(first.shape[1])
    difference = _difference(material, sides, (first - second) @ theta)
    if campaign.strategy == Strategy.UNCERTAINTY:
        return selection.most_uncertain(difference, is_last)
    past = material.deltas(judged)
    information = selection.fisher(past, past @ theta)
    return selection.d_optimal(first - second, difference, information, is_last, linear.ridge(len(theta)))


def _diverse(material: Material, pool: Sequence[Item], judged: Sequence[Choice]) -> selection.Choices:
    known = pools.read_prompts(sorted({one.prompt for one in judged}))
    vectors = features.embed([*(material.prompts[item.prompt] for item in pool), *known.values()])
    is_last = _are_alike(material, [_ends(item) for item in pool])
    return selection.k_centre(vectors[: len(pool)], vectors[len(pool) :], is_last)


def _ends(item: Item) -> tuple[int, int]:
    return item.responses[0], item.responses[-1]


def _sides(material: Material, item: Item) -> tuple[int, int]:
    """The two responses that stand for the comparison: of three or four those that are farthest apart."""
    if len(item.responses) < 3:
        return _ends(item)
    rows = material.rows(item.responses)
    apart = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    a, b = np.unravel_index(np.argmax(apart), apart.shape)
    return item.responses[min(a, b)], item.responses[max(a, b)]


def _are_alike(material: Material, sides: Sequence[tuple[int, int]]) -> selection.Bools:
    """(n,) whether a choice between the two would say little, which candidates from the engine were checked for before."""
    answers = material.answers
    found = [texts.are_near_identical(answers[a].text, answers[b].text) for a, b in sides]
    return np.array(found, dtype=bool)


def _difference(material: Material, sides: Sequence[tuple[int, int]], predicted: Floats) -> Floats:
    """(n,) difference of rewards in logits: the newest model's own, where it has scored both; else as people's choices
    predict it.
    """
    difference = predicted.copy()
    for row, (first, second) in enumerate(sides):
        a, b = material.answers[first], material.answers[second]
        if a.reward is not None and b.reward is not None and a.rewarded_by == b.rewarded_by:
            difference[row] = a.reward - b.reward
    return difference


def _quality(material: Material, pool: Sequence[Item]) -> tuple[Floats, float]:
    """(n,) of the worse response of each, and the floor. A response with a warning, or cut off, fails.

    Rewards are taken relative to the mean of their prompt: a policy's implicit reward holds a term of the prompt alone, which
    is not known (Rafailov et al. 2023, equation 5).
    """
    by_prompt: dict[int, list[float]] = {}
    for answer in material.answers.values():
        if answer.reward is not None:
            by_prompt.setdefault(answer.prompt, []).append(answer.reward)
    quality = dict.fromkeys(material.answers, 0.0)
    for id, answer in material.answers.items():
        if answer.is_doubtful:
            quality[id] = -np.inf
        elif answer.reward is not None:
            quality[id] = answer.reward - float(np.mean(by_prompt[answer.prompt]))
    known = [quality[id] for id, answer in material.answers.items() if answer.reward is not None]
    known = [value for value in known if np.isfinite(value)]
    floor = float(np.quantile(known, QUALITY_FLOOR)) if len(known) >= MIN_JUDGED else -np.finfo(float).max
    return np.array([min(quality[id] for id in item.responses) for item in pool]), min(floor, 0.0)


def _write(campaign: Campaign, places: Sequence[Place], now: datetime) -> int:
    """Writes the places in small transactions; what was taken or judged meanwhile keeps its own. Returns how many."""
    n_written = 0
    for start in range(0, len(places), BATCH):
        batch = {place.pk: place for place in places[start : start + BATCH]}
        n_written += _write_batch(campaign, batch, now)
    return n_written


@transaction.atomic
def _write_batch(campaign: Campaign, batch: dict[int, Place], now: datetime) -> int:
    # 1. Lock, without waiting for people who are being given a pair at this moment.
    free = Comparison.objects.filter(campaign=campaign, pk__in=batch, is_open=True).order_by("pk")
    locked = list(free.select_for_update(skip_locked=True, of=("self",)).values_list("pk", flat=True))
    # 2. A claim that ended before our lock shows only to a new statement.
    rows = list(pools.untouched(campaign, now).filter(pk__in=locked).only("pk"))
    for row in rows:
        place = batch[row.pk]
        row.sort_key, row.arm, row.propensity = place.sort_key, place.arm, place.propensity
    Comparison.objects.bulk_update(rows, ["sort_key", "arm", "propensity"])
    return len(rows)
