"""Judgments: append-only, bound to the lease they were made under. The only writer of Judgment rows and of the two
counters that follow from them, `Comparison.n_judgments` and `is_open`.

Training sets `frozen_at`; from then on a judgment cannot be taken back.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from labeling import leases, texts
from labeling.errors import AlreadyJudged, Frozen, Invalid, LeaseLost
from labeling.models import Campaign, Comparison, Judgment, Lease

Verdict = Judgment.Verdict
N_UNDOABLE = 20


@dataclass(frozen=True)
class Choice:
    """What a person decided. `chosen` is a response id and `strength` 1 to 3, both only with a preference; `order`
    are the response ids as they were shown, left to right.
    """

    verdict: str
    order: list[int]
    chosen: int | None = None
    strength: int | None = None
    reason: str = ""
    shown_ms: int | None = None

    @property
    def ranks(self) -> dict[str, int]:
        """Response id (as text) to rank, 1 best; empty for both bad and skip, which rank nothing."""
        if self.verdict == Verdict.PREFERENCE:
            return {str(response): 1 if response == self.chosen else 2 for response in self.order}
        return dict.fromkeys(map(str, self.order), 1) if self.verdict == Verdict.TIE else {}


def in_force() -> QuerySet[Judgment]:
    """Judgments that count: superseded by nothing, and no retraction. Skips are among them."""
    return Judgment.objects.filter(superseded_by=None).exclude(verdict=Verdict.RETRACTED)


def record(lease: Lease, annotator: User, client_key: uuid.UUID, choice: Choice, now: datetime) -> Judgment:
    """Stores a judgment; a retry with the same `client_key` returns the one that is there.

    One that comes after its lease ran out is taken while the comparison still has room. Raises Invalid (wrong order,
    or not on the campaign's scale), AlreadyJudged, LeaseLost.
    """
    with transaction.atomic():
        comparison = leases.lock(lease)
        earlier = Judgment.objects.filter(annotator=annotator, client_key=client_key).first()
        if earlier:
            return _same(earlier, lease.comparison_id)
        fresh = Lease.objects.get(pk=lease.pk)
        check(comparison.campaign, choice)
        if choice.order != fresh.order or fresh.annotator_id != annotator.pk:
            raise Invalid(_("This is not the pair, or not the order, that was shown to you. Reload the page."))
        if in_force().filter(comparison=comparison, annotator=annotator).exists():
            raise AlreadyJudged(_("You judged this pair already. Undo that judgment first."))
        is_late = not leases.is_live(fresh, now)
        if is_late and choice.verdict != Verdict.SKIP and not leases.has_room(comparison, annotator, now):
            raise LeaseLost(_("This pair was open for so long that somebody else judged it. Yours is not counted."))
        judgment = add(comparison, annotator, client_key, choice, now, lease=fresh)
        leases.release(fresh, now)
    return judgment


def _same(earlier: Judgment, comparison_id: int) -> Judgment:
    if earlier.comparison_id != comparison_id:
        raise Invalid(_("This client_key was used for another pair. Make a new one for every judgment."))
    return earlier


def check(campaign: Campaign, choice: Choice) -> None:
    """Raises Invalid when the choice is not one that the campaign's scale offers."""
    is_graded = campaign.scale == Campaign.Scale.SEVEN
    is_tie_allowed = campaign.allow_tie and campaign.scale != Campaign.Scale.BINARY
    if choice.verdict == Verdict.PREFERENCE:
        if choice.chosen not in choice.order:
            raise Invalid(_("The response that is preferred must be one of the two shown."))
        if choice.strength not in ((1, 2, 3) if is_graded else (None,)):
            raise Invalid(_("strength must be 1, 2 or 3 on the seven-grade scale, and left out on the others."))
        return
    if choice.chosen is not None or choice.strength is not None:
        raise Invalid(_("Only a preference has a chosen response and a strength."))
    if choice.verdict == Verdict.TIE and not is_tie_allowed:
        raise Invalid(_("This campaign does not offer ties."))
    if choice.verdict == Verdict.BOTH_BAD and not campaign.allow_both_bad:
        raise Invalid(_("This campaign does not offer “both bad”."))
    if choice.verdict not in (Verdict.TIE, Verdict.BOTH_BAD, Verdict.SKIP):
        raise Invalid(_("verdict must be preference, tie, both_bad or skip."))


def add(
    comparison: Comparison,
    annotator: User,
    client_key: uuid.UUID,
    choice: Choice,
    now: datetime,
    *,
    lease: Lease | None = None,
) -> Judgment:
    """Appends a judgment that was checked, and counts it. The caller holds the comparison's lock."""
    judgment = Judgment.objects.create(
        comparison=comparison,
        annotator=annotator,
        lease=lease,
        client_key=client_key,
        verdict=choice.verdict,
        ranks=choice.ranks,
        strength=choice.strength,
        order=choice.order,
        reason=texts.clean(choice.reason),
        shown_ms=choice.shown_ms,
        created_at=now,
    )
    _count(comparison)
    return judgment


def _count(comparison: Comparison) -> None:
    """Counted anew, not added up: a counter that counts cannot drift. What was compared in a chat is private and never
    opens for others.
    """
    comparison.n_judgments = in_force().filter(comparison=comparison).exclude(verdict=Verdict.SKIP).count()
    has_enough = comparison.n_judgments >= comparison.campaign.overlap
    comparison.is_open = comparison.source != Comparison.Source.CHAT and not has_enough
    comparison.save(update_fields=["n_judgments", "is_open"])


def undo(judgment: Judgment, now: datetime) -> Lease | None:
    """Takes a judgment back by a row that supersedes it, and gives the lease back, so that it can be judged again.

    Returns the lease, or None when there is none to give: it was a chat's, or somebody else holds the last place.
    A repeated undo changes nothing. Raises Frozen when a snapshot holds the judgment.
    """
    with transaction.atomic():
        comparison = (
            Comparison.objects.select_for_update(of=("self",)).select_related("campaign").get(pk=judgment.comparison_id)
        )
        fresh = Judgment.objects.select_for_update(of=("self",)).get(pk=judgment.pk)
        if not Judgment.objects.filter(supersedes=fresh).exists():
            _retract(fresh, comparison, now)
        lease = Lease.objects.filter(pk=fresh.lease_id).first() if fresh.lease_id else None
        is_judged = in_force().filter(comparison=comparison, annotator=fresh.annotator_id).exists()
        if lease is None or is_judged or not leases.has_room(comparison, fresh.annotator, now):
            return None
        return leases.give_back(lease, now)


def _retract(judgment: Judgment, comparison: Comparison, now: datetime) -> None:
    if judgment.frozen_at is not None:
        raise Frozen(_("This judgment is part of a training snapshot by now, so it can no longer be taken back."))
    Judgment.objects.create(
        comparison=comparison,
        annotator=judgment.annotator,
        client_key=uuid.uuid5(judgment.client_key, "retraction"),
        verdict=Verdict.RETRACTED,
        order=judgment.order,
        supersedes=judgment,
        created_at=now,
    )
    _count(comparison)


def undoable(campaign: Campaign, annotator: User) -> list[uuid.UUID]:
    """Client keys of this person's newest judgments that can be taken back, oldest first, at most N_UNDOABLE."""
    mine = in_force().filter(annotator=annotator, comparison__campaign=campaign, frozen_at=None, lease__isnull=False)
    return list(mine.order_by("-id").values_list("client_key", flat=True)[:N_UNDOABLE])[::-1]


def reopen(campaign: Campaign) -> None:
    """Sets `is_open` anew after the campaign's overlap was changed."""
    labeled = campaign.comparisons.exclude(source=Comparison.Source.CHAT)
    labeled.filter(is_open=True, n_judgments__gte=campaign.overlap).update(is_open=False)
    labeled.filter(is_open=False, n_judgments__lt=campaign.overlap).update(is_open=True)
