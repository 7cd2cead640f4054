"""Leases: the right of one person to judge one comparison for a while. The only writer of Lease rows.

Exactly k: the judgments in force plus the live leases of a comparison never exceed its campaign's overlap. A lease
dies by the clock (`expires_at`), so nothing needs to sweep. A person has one row per comparison for ever; claiming
again revives it with the order of its first time, so that a late judgment always means the sides that were shown.
"""

import secrets
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import QuerySet

from labeling import pairs
from labeling.errors import LeaseLost
from labeling.models import Campaign, Comparison, Lease

_RANDOM = secrets.SystemRandom()


def live(now: datetime) -> QuerySet[Lease]:
    """Leases that reserve a judgment at this moment."""
    return Lease.objects.filter(ended_at=None, expires_at__gt=now)


def is_live(lease: Lease, now: datetime) -> bool:
    return lease.ended_at is None and lease.expires_at > now


def has_room(comparison: Comparison, annotator: User, now: datetime) -> bool:
    """Whether one more judgment, by this person, is wanted beside those in force and those that others will bring.

    Ask it with the comparison locked.
    """
    n_others = live(now).filter(comparison=comparison).exclude(annotator=annotator).count()
    return comparison.n_judgments + n_others < comparison.campaign.overlap


def claim(campaign: Campaign, annotator: User, now: datetime, n: int = 2) -> list[Lease]:
    """Up to `n` live leases of this person: those held already first (a reload shows the same pair), then new ones.

    Empty only if nothing in the campaign is open to the person, or the campaign is not active. The number of queries
    does not depend on the number of comparisons.
    """
    skip_locked = True
    while True:
        leases, n_seen = _claim_once(campaign, annotator, now, n, skip_locked)
        if leases or not (n_seen or skip_locked):
            return _with_contents(leases)
        # Every candidate was locked, or given away while we looked: before saying "nothing left", wait and look again.
        skip_locked = False


@transaction.atomic
def _claim_once(
    campaign: Campaign, annotator: User, now: datetime, n: int, skip_locked: bool
) -> tuple[list[Lease], int]:
    # 1. One claim per person at a time: two tabs share their leases instead of taking twice as many.
    User.objects.select_for_update(no_key=True).get(pk=annotator.pk)
    held = list(
        live(now)
        .filter(annotator=annotator, comparison__campaign=campaign)
        .order_by("created_at", "comparison__sort_key")
    )[:n]
    if campaign.status != Campaign.Status.ACTIVE:
        return [], 0
    if len(held) == n:
        return held, n
    # 2. Lock candidates. On SQLite the transaction itself is the lock (it is immediate).
    candidates = pairs.next_comparisons(campaign, annotator, now, n - len(held))
    locked = [comparison.pk for comparison in candidates.select_for_update(skip_locked=skip_locked, of=("self",))]
    # 3. A claim that ended between our look and our lock left new leases that only a new statement sees.
    free = pairs.open_comparisons(campaign, annotator, now).filter(pk__in=locked).order_by("sort_key", "id")
    new = _give(list(free.prefetch_related("items")), campaign, annotator, now)
    return held + new, len(locked)


def _give(comparisons: list[Comparison], campaign: Campaign, annotator: User, now: datetime) -> list[Lease]:
    drafts = [
        Lease(
            comparison=comparison,
            annotator=annotator,
            order=_shuffled([item.response_id for item in comparison.items.all()]),
            created_at=now,
            expires_at=now + timedelta(seconds=campaign.lease_seconds),
        )
        for comparison in comparisons
    ]
    if not drafts:
        return []
    Lease.objects.bulk_create(
        drafts,
        update_conflicts=True,
        unique_fields=["comparison", "annotator"],
        update_fields=["created_at", "expires_at", "ended_at"],
    )
    return list(Lease.objects.filter(annotator=annotator, comparison__in=comparisons).order_by("comparison__sort_key"))


def _shuffled(ids: list[int]) -> list[int]:
    _RANDOM.shuffle(ids)
    return ids


def _with_contents(leases: list[Lease]) -> list[Lease]:
    """The same leases with what a screen needs: campaign, prompt and responses."""
    rows = (
        Lease.objects.filter(pk__in=[lease.pk for lease in leases])
        .select_related("comparison__prompt", "comparison__campaign")
        .prefetch_related("comparison__responses")
        .in_bulk()
    )
    return [rows[lease.pk] for lease in leases]


@transaction.atomic
def renew(lease: Lease, now: datetime) -> Lease:
    """Holds the lease for another `lease_seconds`. One that has run out is revived while there is room.

    Raises LeaseLost when the pair was given to somebody else, or judged, meanwhile.
    """
    comparison = lock(lease)
    fresh = Lease.objects.get(pk=lease.pk)
    is_judged = fresh.judgments.filter(superseded_by=None).exclude(verdict="retracted").exists()
    if not is_live(fresh, now) and (is_judged or not has_room(comparison, fresh.annotator, now)):
        raise LeaseLost("This pair is no longer yours to judge: it was open for too long. Ask for the next one.")
    return give_back(fresh, now)


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
    """The lease reserves nothing any more: it was judged, skipped or released."""
    Lease.objects.filter(pk=lease.pk, ended_at=None).update(ended_at=now)
