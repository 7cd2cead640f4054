"""Leases: the right of one person to judge one comparison for a while. The only writer of Lease rows.

Exactly k: the judgments that count plus the live leases that will count never exceed what a comparison wants. A lease
dies by the clock (`expires_at`), so nothing needs to sweep. A person has one row per comparison and repeat for ever;
claiming again revives it with the order of its first time, so that a late judgment always means the sides that were
shown.
"""

import secrets
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Exists, Q, QuerySet

from labeling import gold, pairs
from labeling.errors import LeaseLost
from labeling.models import Campaign, Comparison, Lease, Membership, Purpose

ORDINARY, SWAPPED, DECIDING = 0, 1, 2  # Lease.repeat: a first judgment, its swapped repeat, a reviewer's decision
MAX_HELD = 4  # leases of one person in one campaign
_RANDOM = secrets.SystemRandom()


def live(now: datetime) -> QuerySet[Lease]:
    """Leases that hold their comparison at this moment."""
    return Lease.objects.filter(ended_at=None, expires_at__gt=now)


def is_live(lease: Lease, now: datetime) -> bool:
    return lease.ended_at is None and lease.expires_at > now


def has_room(comparison: Comparison, annotator: User, now: datetime) -> bool:
    """Whether one more judgment, by this person, is wanted beside those that count and those that others will bring.

    Ask it with the comparison locked.
    """
    others = live(now).filter(comparison=comparison, purpose=Purpose.LABEL).exclude(annotator=annotator)
    return comparison.n_judgments + others.count() < comparison.n_wanted


def claim(campaign: Campaign, annotator: User, now: datetime, n: int = 2) -> list[Lease]:
    """Up to `n` live leases of this person: those held already first (a reload shows the same pair), then new ones.

    Some new ones are gold or swapped repeats instead, by the campaign's shares; a newcomer's first ones are practice.
    Empty only if nothing in the campaign is open to the person, or the campaign or the person is paused. The number of
    queries does not depend on the number of comparisons.
    """
    skip_locked = True
    while True:
        leases, n_seen = _claim_once(campaign, annotator, now, n, skip_locked)
        if leases or not (n_seen or skip_locked):
            return leases
        # Every candidate was locked, or given away while we looked: before saying "nothing left", wait and look again.
        skip_locked = False


@transaction.atomic
def _claim_once(
    campaign: Campaign, annotator: User, now: datetime, n: int, skip_locked: bool
) -> tuple[list[Lease], int]:
    # 1. One claim per person at a time: two tabs share their leases instead of taking twice as many.
    paused = Membership.objects.filter(campaign=campaign, user=annotator, paused_at__isnull=False)
    people = User.objects.annotate(is_paused=Exists(paused)).select_for_update(no_key=True, of=("self",))
    is_paused = people.values_list("is_paused", flat=True).get(pk=annotator.pk)
    held = _held(campaign, annotator, now, n)
    if campaign.status != Campaign.Status.ACTIVE or is_paused:
        return [], 0
    if len(held) == n:
        return held, n
    practice = gold.practice(campaign, annotator, now, n - len(held))
    if practice:
        given = _give(practice, _mine(practice, annotator), annotator, now, Purpose.PRACTICE)
        return held + given, len(practice)
    # 2. Lock candidates. On SQLite the transaction itself is the lock (it is immediate).
    candidates = pairs.next_comparisons(campaign, annotator, now, n - len(held))
    locking = candidates.select_for_update(skip_locked=skip_locked, of=("self",))
    locked = list(locking.values_list("pk", flat=True))
    # 3. A claim that ended between our look and our lock left new leases that only a new statement sees.
    found = campaign.comparisons.filter(pk__in=locked).select_related("prompt").prefetch_related("responses")
    is_beside = Q(annotator=annotator) | Q(purpose=Purpose.LABEL, ended_at=None, expires_at__gt=now)
    beside = list(Lease.objects.filter(is_beside, comparison__in=locked))
    free = [comparison for comparison in found.order_by("sort_key", "id") if _wants_more(comparison, beside, now)]
    mine = [lease for lease in beside if lease.annotator_id == annotator.pk]
    return held + _mixed(free, mine, campaign, annotator, now), len(locked)


def _wants_more(comparison: Comparison, beside: list[Lease], now: datetime) -> bool:
    here = [lease for lease in beside if lease.comparison_id == comparison.pk and lease.purpose == Purpose.LABEL]
    n_leased = sum(is_live(lease, now) for lease in here)
    return comparison.is_open and comparison.n_judgments + n_leased < comparison.n_wanted


def _held(campaign: Campaign, annotator: User, now: datetime, n: int) -> list[Lease]:
    mine = live(now).filter(annotator=annotator, comparison__campaign=campaign).exclude(purpose=Purpose.ADJUDICATION)
    ids = list(mine.order_by("created_at", "pk").values_list("pk", flat=True)[:n])
    # Mostly there are none: the contents are a question of their own.
    return list(with_contents(Lease.objects.filter(pk__in=ids)).order_by("created_at", "pk")) if ids else []


def _mixed(
    free: list[Comparison], mine: list[Lease], campaign: Campaign, annotator: User, now: datetime
) -> list[Lease]:
    """Leases on these comparisons, some of them replaced by what measures the person; `mine` are this person's on them.

    Only where something is open: whoever has judged everything is done, and is not kept busy with checks.
    """
    checks = _checks(len(free), campaign, annotator, now)
    given = _give(free[: len(free) - len(checks)], mine, annotator, now, Purpose.LABEL)
    for check, purpose in checks:
        given += _give([check], _mine([check], annotator), annotator, now, purpose)
    return sorted(given, key=lambda lease: lease.pk)  # at random: a check has no place by which it could be told


def _checks(n: int, campaign: Campaign, annotator: User, now: datetime) -> list[tuple[Comparison, Purpose]]:
    """At most one for each of `n` places, drawn by the campaign's shares."""
    draws = [_RANDOM.random() for _ in range(n)]
    n_gold = sum(draw < campaign.gold_share for draw in draws)
    n_repeats = sum(campaign.gold_share <= draw < campaign.gold_share + campaign.repeat_share for draw in draws)
    known = gold.unseen(campaign, annotator, now)[:n_gold] if n_gold else []
    repeats = gold.to_repeat(campaign, annotator, now)[:n_repeats] if n_repeats else []
    return [(one, Purpose.GOLD) for one in known] + [(one, Purpose.REPEAT) for one in repeats]


def _mine(comparisons: list[Comparison], annotator: User) -> list[Lease]:
    return list(Lease.objects.filter(annotator=annotator, comparison__in=comparisons))


def _give(
    comparisons: list[Comparison], mine: list[Lease], annotator: User, now: datetime, purpose: Purpose
) -> list[Lease]:
    """Leases on these comparisons, which are locked: new ones, or those of the first time (among `mine`) revived."""
    if not comparisons:
        return []
    repeat = SWAPPED if purpose == Purpose.REPEAT else ORDINARY
    earlier = {(lease.comparison_id, lease.repeat): lease for lease in mine}
    given = []
    for comparison in comparisons:
        lease = earlier.get((comparison.pk, repeat)) or Lease(annotator=annotator, repeat=repeat)
        lease.comparison, lease.purpose, lease.created_at, lease.ended_at = comparison, purpose, now, None
        lease.expires_at = now + timedelta(seconds=comparison.campaign.lease_seconds)
        lease.order = lease.order or _order(comparison, earlier.get((comparison.pk, ORDINARY)))
        given.append(lease)
    revived = [lease for lease in given if not lease._state.adding]
    Lease.objects.bulk_create(lease for lease in given if lease._state.adding)
    Lease.objects.bulk_update(revived, ["purpose", "created_at", "expires_at", "ended_at"])
    return sorted(given, key=lambda lease: lease.pk)


def _order(comparison: Comparison, first: Lease | None) -> list[int]:
    """Response ids from left to right: random; for a swapped repeat the first time's reversed."""
    return first.order[::-1] if first else _shuffled([one.pk for one in comparison.responses.all()])


def _shuffled(ids: list[int]) -> list[int]:
    _RANDOM.shuffle(ids)
    return ids


def with_contents(leases: QuerySet[Lease]) -> QuerySet[Lease]:
    """With what a screen needs: campaign, prompt and responses."""
    return leases.select_related("comparison__prompt", "comparison__campaign").prefetch_related("comparison__responses")


@transaction.atomic
def decide(comparison: Comparison, reviewer: User, now: datetime) -> Lease:
    """A lease by which a reviewer decides a disputed comparison; held already, the same one."""
    Comparison.objects.select_for_update(of=("self",)).get(pk=comparison.pk)
    lease, is_new = Lease.objects.get_or_create(
        comparison=comparison,
        annotator=reviewer,
        repeat=DECIDING,
        defaults={
            "purpose": Purpose.ADJUDICATION,
            "order": _shuffled([one.pk for one in comparison.responses.all()]),
            "created_at": now,
            "expires_at": now + timedelta(seconds=comparison.campaign.lease_seconds),
        },
    )
    return lease if is_new else give_back(lease, now)


@transaction.atomic
def renew(lease: Lease, now: datetime) -> Lease:
    """Holds the lease for another `lease_seconds`. One that has run out is revived while there is room.

    Raises LeaseLost when the pair was given to somebody else, or judged, meanwhile.
    """
    comparison = lock(lease)
    fresh = Lease.objects.get(pk=lease.pk)
    is_judged = fresh.judgments.filter(superseded_by=None).exclude(verdict="retracted").exists()
    if not is_live(fresh, now) and (is_judged or not _may_revive(fresh, comparison, now)):
        raise LeaseLost("This pair is no longer yours to judge: it was open for too long. Ask for the next one.")
    return give_back(fresh, now)


def _may_revive(lease: Lease, comparison: Comparison, now: datetime) -> bool:
    """While there is room, and nobody gathers more pairs than a screen holds."""
    held = live(now).filter(annotator=lease.annotator, comparison__campaign=comparison.campaign)
    has_place = lease.purpose != Purpose.LABEL or has_room(comparison, lease.annotator, now)
    return has_place and held.count() < MAX_HELD


def lock(lease: Lease) -> Comparison:
    """The lease's comparison, locked: everything that changes what it still wants happens behind this lock."""
    return Comparison.objects.select_for_update(of=("self",)).select_related("campaign").get(pk=lease.comparison_id)


def give_back(lease: Lease, now: datetime) -> Lease:
    """Makes the lease live from now on. The caller holds the lock and has checked that there is room."""
    lease.expires_at = now + timedelta(seconds=lease.comparison.campaign.lease_seconds)
    lease.ended_at = None
    lease.save(update_fields=["expires_at", "ended_at"])
    return lease


def release(lease: Lease, now: datetime) -> None:
    """The lease holds nothing any more: it was judged, skipped or released."""
    Lease.objects.filter(pk=lease.pk, ended_at=None).update(ended_at=now)
