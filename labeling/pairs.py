"""Which responses are compared with each other, and which comparison a person sees next."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from celery import current_app
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import RawSQL
from django.db.models.functions import Now

from labeling import texts
from labeling.models import Campaign, Comparison, ComparisonItem, Prompt, Response

MAX_PAIRS = 6  # per prompt and round of candidates: all pairs of four
# sort_key = round · ROUND + random: every prompt's first pair comes before any prompt's second one. 15 rounds fit.
ROUND = 2**27
MAX_ROUNDS = 15
PLANNED = 2**24  # sort keys below it belong to labeling.plans: what was planned comes before everything else
PLAN_TASK = "labeling.tasks.plan_campaigns"
PLAN_EXPIRES_SECONDS = 60  # beat sends the same every minute
Group = tuple[Response, ...]


def content_key(responses: Iterable[Response]) -> str:
    """sha256 of the sorted response ids: the same set is compared once."""
    return hashlib.sha256(",".join(map(str, sorted(response.pk for response in responses))).encode()).hexdigest()


@transaction.atomic
def make_comparisons(prompt: Prompt, *, seed: int = 0) -> list[Comparison]:
    """Groups the engine's candidates of one prompt by the campaign's `group_size` (2: pairs), those that exist are
    kept; returns the new ones, at most MAX_PAIRS.

    Each new group has a response that none shows yet: asked again, the model is judged on what it says now, also
    against what it said before. Without such a response there is nothing new. Near-identical responses are not
    grouped: a choice between them says little and tires people. Each next group takes the responses that were used
    least, so that the first two pairs of four candidates show all four. The order is random, and the same for the
    same seed.
    """
    candidates = list(prompt.responses.filter(source="engine", is_kept=True).order_by("id"))
    existing = list(prompt.comparisons.filter(source=Comparison.Source.CAMPAIGN).prefetch_related("items"))
    used = Counter(item.response_id for comparison in existing for item in comparison.items.all())
    groups = [
        group
        for group in itertools.combinations(candidates, prompt.campaign.group_size)
        if not all(used[response.pk] for response in group) and _are_distinct(group)
    ]
    chosen = _least_used_first(groups, used, seed)[:MAX_PAIRS]
    return add_comparisons(prompt.campaign, chosen, Comparison.Source.CAMPAIGN, seed=seed, first_round=len(existing))


def _are_distinct(group: Group) -> bool:
    return not any(texts.are_near_identical(a.text, b.text) for a, b in itertools.combinations(group, 2))


def _least_used_first(groups: list[Group], used: Counter[int], seed: int) -> list[Group]:
    left = sorted(groups, key=lambda group: random_key(content_key(group), seed))
    ordered = []
    while left:
        best = min(left, key=lambda group: sum(used[response.pk] for response in group))
        left.remove(best)
        ordered.append(best)
        used.update(response.pk for response in best)
    return ordered


def random_key(key: str, seed: int = 0) -> int:
    """PLANNED … ROUND − 1, the same for the same content key and seed on every machine."""
    number = int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")
    return PLANNED + number % (ROUND - PLANNED)


def add_comparisons(
    campaign: Campaign,
    groups: Sequence[Sequence[Response]],
    source: str,
    *,
    seed: int = 0,
    first_round: int | None = None,
    is_open: bool = True,
) -> list[Comparison]:
    """One comparison per group of responses (all of a group answer one prompt); those that exist already are left out.

    With `first_round`, group i waits for round `first_round` + i; without, all are of the first round. Call it inside
    a transaction: a comparison without its items must never be seen.
    """
    drafts: dict[str, Comparison] = {}
    members: dict[str, Sequence[Response]] = {}
    for number, group in enumerate(groups):
        key = content_key(group)
        rounds = 0 if first_round is None else min(first_round + number, MAX_ROUNDS - 1)
        members[key] = group
        drafts[key] = Comparison(
            campaign=campaign,
            n_wanted=campaign.overlap,
            prompt_id=group[0].prompt_id,
            source=source,
            content_key=key,
            sort_key=rounds * ROUND + random_key(key, seed),
            is_open=is_open,
        )
    same = Comparison.objects.filter(campaign=campaign, content_key__in=drafts)
    old = set(same.values_list("pk", flat=True))
    Comparison.objects.bulk_create(drafts.values(), ignore_conflicts=True)
    new = list(same.exclude(pk__in=old).order_by("sort_key", "id"))
    items = [
        ComparisonItem(comparison=comparison, response=response, index=index)
        for comparison in new
        for index, response in enumerate(members[comparison.content_key])
    ]
    ComparisonItem.objects.bulk_create(items, ignore_conflicts=True)
    if new and is_open:
        want_plan(campaign)
    return new


def want_plan(campaign: Campaign) -> None:
    """Asks labeling.plans for a new order; says so once, however much is added until it is made."""
    if campaign.strategy == Campaign.Strategy.RANDOM:
        return
    if Campaign.objects.filter(pk=campaign.pk, plan_wanted_at=None).update(plan_wanted_at=Now()):
        transaction.on_commit(lambda: current_app.send_task(PLAN_TASK, expires=PLAN_EXPIRES_SECONDS), robust=True)


# Written out: it is asked for every vote, and the ORM takes longer to put it together than PostgreSQL to answer it.
OPEN_TO = """
    NOT EXISTS (
        SELECT 1 FROM labeling_lease AS mine WHERE mine.comparison_id = labeling_comparison.id
        AND mine.annotator_id = %s AND mine.ended_at IS NULL AND mine.expires_at > %s)
    AND NOT EXISTS (
        SELECT 1 FROM labeling_judgment AS said WHERE said.comparison_id = labeling_comparison.id
        AND said.annotator_id = %s AND (said.verdict <> 'retracted' OR said.retraction_id IS NOT NULL)
        AND NOT EXISTS (SELECT 1 FROM labeling_judgment AS later WHERE later.supersedes_id = said.id))
    AND labeling_comparison.n_judgments + (
        SELECT count(*) FROM labeling_lease AS theirs WHERE theirs.comparison_id = labeling_comparison.id
        AND theirs.annotator_id <> %s AND theirs.purpose = 'label'
        AND theirs.ended_at IS NULL AND theirs.expires_at > %s) < labeling_comparison.n_wanted
"""


def open_comparisons(campaign: Campaign, annotator: User, now: datetime) -> QuerySet[Comparison]:
    """What this person may be given: it wants more judgments than it has and others' live leases will bring, and this
    person neither holds a lease on it nor has judged or skipped it; nor had a judgment of it retracted by a manager.
    """
    moment = connection.ops.adapt_datetimefield_value(now)
    values = (annotator.pk, moment, annotator.pk, annotator.pk, moment)
    is_wanted = RawSQL(OPEN_TO, values, output_field=BooleanField())  # noqa: S611 - every value is a parameter
    return campaign.comparisons.filter(is_wanted, is_open=True)


def next_comparisons(campaign: Campaign, annotator: User, now: datetime, n: int) -> QuerySet[Comparison]:
    """The next `n` comparisons for this person, in the order of `sort_key`."""
    return open_comparisons(campaign, annotator, now).order_by("sort_key", "id")[:n]
