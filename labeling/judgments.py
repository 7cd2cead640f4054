"""Judgments: append-only, bound to the lease they were made under. The only writer of Judgment rows and of what follows
from them on a comparison: `n_judgments`, `n_wanted`, `is_open` and `is_disputed`.

Training sets `frozen_at`; from then on a judgment can neither be undone nor revised, but `retract` takes it back: the
files that hold it stay, and those after them leave it out.
"""

import itertools
import uuid
from datetime import datetime
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Greatest, Least
from django.utils.translation import gettext as _

from labeling import gold, leases, responses, texts
from labeling.choices import Choice, check
from labeling.errors import AlreadyJudged, Frozen, Invalid
from labeling.models import Campaign, Comparison, Judgment, Lease, Purpose, Response, Retraction

Verdict = Judgment.Verdict
N_UNDOABLE = 20
BATCH = 1_000  # judgments retracted at a time
COUNTED = (Purpose.LABEL, Purpose.IMPORT, Purpose.CHAT)
THUMBS = (Verdict.GOOD, Verdict.BAD)
COUNTS = ["n_judgments", "n_wanted", "is_open", "is_disputed"]
CONTESTED = 0.3  # share of the minority from which on people disagree: 1 of 2 and 1 of 3 do, 1 of 4 does not


def in_force() -> QuerySet[Judgment]:
    """Judgments that count: superseded by nothing, and no retraction. Skips are among them."""
    return Judgment.objects.filter(superseded_by=None).exclude(verdict=Verdict.RETRACTED)


def counting() -> QuerySet[Judgment]:
    """Judgments in force that count towards k: no skips, none that came too late, no repeats, practice or gold."""
    return in_force().filter(purpose__in=COUNTED, is_surplus=False).exclude(verdict=Verdict.SKIP)


def learnable() -> QuerySet[Judgment]:
    """Judgments in force that a model may learn from: those that would count, skips among them so that they can be
    accounted for, and reviewers' decisions; none on comparisons with a known answer, which measure people.
    """
    learned = (*COUNTED, Purpose.ADJUDICATION)
    return in_force().filter(purpose__in=learned, is_surplus=False, comparison__gold_ranks__isnull=True)


def _decisions() -> QuerySet[Judgment]:
    return in_force().filter(purpose=Purpose.ADJUDICATION).exclude(verdict=Verdict.SKIP)


def record(lease: Lease, annotator: User, client_key: uuid.UUID, choice: Choice, now: datetime) -> Judgment:
    """Stores a judgment; a retry with the same `client_key` returns the one that is there.

    One that comes after its place was given on is kept as surplus, and never counts. Raises Invalid (wrong order, or
    not on the campaign's scale) and AlreadyJudged.
    """
    with transaction.atomic():
        comparison = leases.lock(lease)
        fresh = Lease.objects.get(pk=lease.pk)
        said = _said_of(comparison, annotator, client_key)
        earlier = _same(said, annotator, client_key, comparison)
        if earlier:
            return earlier
        if choice.order != fresh.order or fresh.annotator_id != annotator.pk:
            raise Invalid(_("This is not the pair, or not the order, that was shown to you. Reload the page."))
        check(comparison.campaign, choice)
        if any(row.annotator_id == annotator.pk and row.repeat == fresh.repeat for row in _standing(said)):
            raise AlreadyJudged(_("You judged this pair already. Undo that judgment first."))
        is_surplus = choice.verdict != Verdict.SKIP and _comes_too_late(fresh, comparison, now)
        judgment = add(comparison, annotator, client_key, choice, now, lease=fresh, is_surplus=is_surplus, said=said)
        leases.release(fresh, now)
    if fresh.purpose == Purpose.PRACTICE:
        gold.finish_practice(comparison.campaign, annotator, now)
    return judgment


def _comes_too_late(lease: Lease, comparison: Comparison, now: datetime) -> bool:
    """Whether its place was given on. What is there already is asked first: clocks of two machines may differ."""
    if lease.purpose != Purpose.LABEL:
        return False
    is_full = comparison.n_judgments >= comparison.n_wanted
    return is_full or (not leases.is_live(lease, now) and not leases.has_room(comparison, lease.annotator, now))


def _said_of(comparison: Comparison, annotator: User, client_key: uuid.UUID | None = None) -> list[Judgment]:
    """All rows of a comparison, superseded ones too: a handful. Of one that everybody is measured on, this person's and
    those from before, or from elsewhere, that count. With `client_key` also the row that this key made, wherever.
    """
    wanted = Q(comparison=comparison)
    if comparison.is_gold:
        wanted &= Q(annotator=annotator) | Q(purpose__in=(*COUNTED, Purpose.ADJUDICATION))
    if client_key is not None:
        wanted |= Q(annotator=annotator, client_key=client_key)
    return list(Judgment.objects.filter(wanted))


def _standing(said: list[Judgment]) -> list[Judgment]:
    """Those in force, as `in_force` finds them."""
    over = {row.supersedes_id for row in said}
    return [row for row in said if row.pk not in over and row.verdict != Verdict.RETRACTED]


def _same(said: list[Judgment], annotator: User, client_key: uuid.UUID, comparison: Comparison) -> Judgment | None:
    """The row that this key made. Raises Invalid when it made one on another comparison."""
    for row in said:
        if row.annotator_id == annotator.pk and row.client_key == client_key:
            if row.comparison_id != comparison.pk:
                raise Invalid(_("This client_key was used for another pair. Make a new one for every judgment."))
            row.comparison = comparison
            return row
    return None


def add(
    comparison: Comparison,
    annotator: User,
    client_key: uuid.UUID,
    choice: Choice,
    now: datetime,
    *,
    purpose: Purpose = Purpose.LABEL,
    lease: Lease | None = None,
    is_surplus: bool = False,
    supersedes: Judgment | None = None,
    said: list[Judgment] | None = None,
) -> Judgment:
    """Appends a judgment that was checked, and counts it. The caller holds the comparison's lock. `lease`, where there
    is one, says the purpose; `said` are the rows that are there already, if the caller knows them.
    """
    judgment = Judgment.objects.create(
        comparison=comparison,
        annotator=annotator,
        client_key=client_key,
        lease=lease,
        purpose=lease.purpose if lease else purpose,
        repeat=lease.repeat if lease else leases.ORDINARY,
        is_surplus=is_surplus,
        supersedes=supersedes,
        guidelines_version=comparison.campaign.guidelines_version,
        edit=_edit(comparison, choice),
        created_at=now,
        **_fields(choice),
    )
    _count(comparison, [*(_said_of(comparison, annotator) if said is None else said), judgment])
    return judgment


def _fields(choice: Choice) -> dict[str, Any]:
    return {
        "verdict": choice.verdict,
        "ranks": choice.as_ranks,
        "strength": choice.strength,
        "order": choice.order,
        "reason": texts.clean(choice.reason),
        "tags": choice.tags,
        "criteria": choice.criteria,
        "flags": choice.flags,
        "skip_reason": choice.skip_reason,
        "shown_ms": choice.shown_ms,
        "attention": choice.attention,
    }


def _edit(comparison: Comparison, choice: Choice) -> Response | None:
    """The chosen response as improved by hand; None when it says what one of those compared says already."""
    if not choice.edit:
        return None
    compared = list(comparison.responses.all())
    [chosen] = [one for one in compared if one.pk == choice.best]
    draft = responses.draft(comparison.prompt, choice.edit, source="edit", edited_from=chosen)
    if draft is None or draft.sha256 in {one.sha256 for one in compared}:
        return None
    return responses.store([draft])[0]


def revise(judgment: Judgment, client_key: uuid.UUID, choice: Choice, now: datetime) -> Judgment:
    """Replaces a judgment by a new row that supersedes it: the choice was changed, or reasons were added.

    A retry returns the row that is there. Raises Frozen when a snapshot holds the judgment, Invalid when the choice is
    not the campaign's, AlreadyJudged when the judgment is no longer the one in force.
    """
    with transaction.atomic():
        comparison = _locked(judgment)
        said = _said_of(comparison, judgment.annotator, client_key)
        earlier = _same(said, judgment.annotator, client_key, comparison)
        if earlier:
            return earlier
        fresh = Judgment.objects.select_for_update(of=("self",)).select_related("lease").get(pk=judgment.pk)
        _check_changeable(fresh)
        if choice.order != fresh.order:
            raise Invalid(_("This is not the order that was shown to you. Reload the page."))
        check(comparison.campaign, choice)
        takes_a_place = fresh.verdict == Verdict.SKIP and choice.verdict != Verdict.SKIP
        is_late = takes_a_place and fresh.lease is not None and _comes_too_late(fresh.lease, comparison, now)
        return add(
            comparison,
            fresh.annotator,
            client_key,
            choice,
            now,
            purpose=Purpose(fresh.purpose),
            lease=fresh.lease,
            is_surplus=fresh.is_surplus or is_late,
            supersedes=fresh,
            said=said,
        )


def _locked(judgment: Judgment) -> Comparison:
    rows = Comparison.objects.select_for_update(of=("self",)).select_related("campaign", "prompt")
    return rows.get(pk=judgment.comparison_id)


def _check_changeable(judgment: Judgment) -> None:
    if judgment.frozen_at is not None:
        raise Frozen(_("This judgment is part of a training snapshot by now, so it can no longer be changed."))
    is_over = judgment.verdict == Verdict.RETRACTED or Judgment.objects.filter(supersedes=judgment).exists()
    if is_over:
        raise AlreadyJudged(_("This judgment was replaced or taken back meanwhile. Reload the page."))


def add_imported(drafts: list[Judgment]) -> None:
    """Stores judgments that were made elsewhere, each once by its client key, and counts them. Call it inside a
    transaction.
    """
    _add_many(drafts, {draft.comparison_id for draft in drafts if draft.verdict in THUMBS})


def _add_many(drafts: list[Judgment], thumbed: set[int]) -> None:
    """Stores and counts; of the comparisons `thumbed`, which show one response, no more is wanted."""
    ids = {draft.comparison_id for draft in drafts}
    locked = Comparison.objects.select_for_update(of=("self",)).select_related("campaign").filter(pk__in=ids)
    comparisons = list(locked.order_by("pk"))
    Judgment.objects.bulk_create(drafts, ignore_conflicts=True)
    votes: dict[int, list[dict[str, int]]] = {pk: [] for pk in ids}
    for pk, ranks in counting().filter(comparison__in=ids).values_list("comparison_id", "ranks"):
        votes[pk].append(ranks)
    decided = set(_decisions().filter(comparison__in=ids).values_list("comparison_id", flat=True))
    for comparison in comparisons:
        _set_counts(comparison, votes[comparison.pk], is_decided=comparison.pk in decided)
        comparison.is_open = comparison.is_open and comparison.pk not in thumbed
    by_counts: dict[tuple[Any, ...], list[int]] = {}
    for comparison in comparisons:
        by_counts.setdefault(tuple(getattr(comparison, name) for name in COUNTS), []).append(comparison.pk)
    for counts, same in by_counts.items():  # most of an import have the same: a few statements, not one per row
        Comparison.objects.filter(pk__in=same).update(**dict(zip(COUNTS, counts, strict=True)))


def _count(comparison: Comparison, said: list[Judgment]) -> None:
    """Counted anew from all rows, not added up: a counter that counts cannot drift."""
    standing = [row for row in _standing(said) if row.verdict != Verdict.SKIP]
    votes = [row.ranks for row in standing if row.purpose in COUNTED and not row.is_surplus]
    _set_counts(comparison, votes, is_decided=any(row.purpose == Purpose.ADJUDICATION for row in standing))
    comparison.save(update_fields=COUNTS)


def _set_counts(comparison: Comparison, votes: list[dict[str, int]], *, is_decided: bool) -> None:
    """What was compared in a chat is private and never opens for others."""
    campaign = comparison.campaign
    is_contested = _are_contested(votes)
    comparison.n_judgments = len(votes)
    comparison.n_wanted = campaign.overlap
    if is_contested and not is_decided and len(votes) >= campaign.overlap:
        comparison.n_wanted = max(campaign.overlap, min(len(votes) + 1, campaign.max_overlap))
    is_private = comparison.source == Comparison.Source.CHAT or comparison.is_gold
    comparison.is_open = not is_private and len(votes) < comparison.n_wanted
    comparison.is_disputed = is_contested and not is_decided


def _are_contested(votes: list[dict[str, int]]) -> bool:
    """Whether of some two responses a good share of the votes prefers either one. Ties take no side."""
    pairs = {pair for ranks in votes for pair in itertools.combinations(sorted(ranks), 2)}
    for first, second in pairs:
        given = [(ranks[first], ranks[second]) for ranks in votes if first in ranks and second in ranks]
        n_first, n_second = sum(a < b for a, b in given), sum(a > b for a, b in given)
        if n_first and n_second and min(n_first, n_second) / (n_first + n_second) >= CONTESTED:
            return True
    return False


def undo(judgment: Judgment, now: datetime) -> Lease | None:
    """Takes a judgment back by a row that supersedes it, and gives the lease back, so that it can be judged again.

    Returns the lease, or None when there is none to give: it was a chat's, or somebody else holds the last place.
    A repeated undo changes nothing. Raises Frozen when a snapshot holds the judgment.
    """
    with transaction.atomic():
        comparison = _locked(judgment)
        fresh = _newest(judgment)
        if fresh.retraction_id is not None:
            return None  # a manager's decision, not the author's: this is not asked of them again
        if fresh.verdict != Verdict.RETRACTED:
            _take_back(fresh, comparison, now)
        lease = Lease.objects.filter(pk=judgment.lease_id).first() if judgment.lease_id else None
        mine = in_force().filter(comparison=comparison, annotator=fresh.annotator_id, repeat=fresh.repeat)
        if lease is None or mine.exists():
            return None
        if lease.purpose == Purpose.LABEL and not leases.has_room(comparison, fresh.annotator, now):
            return None
        return leases.give_back(lease, now)


def _newest(judgment: Judgment) -> Judgment:
    """What the judgment has become by revisions; the caller holds the comparison's lock."""
    newest = Judgment.objects.select_for_update(of=("self",)).get(pk=judgment.pk)
    while later := Judgment.objects.filter(supersedes=newest).first():
        newest = later
    return newest


def _take_back(judgment: Judgment, comparison: Comparison, now: datetime) -> None:
    if judgment.frozen_at is not None:
        raise Frozen(
            _(
                "This judgment is part of a training snapshot by now, so it can no longer be undone. A manager of the "
                "campaign can retract it."
            )
        )
    _opposite(judgment, now).save(force_insert=True)
    _count(comparison, _said_of(comparison, judgment.annotator))


def _opposite(judgment: Judgment, now: datetime, retraction: Retraction | None = None) -> Judgment:
    return Judgment(
        comparison_id=judgment.comparison_id,
        annotator_id=judgment.annotator_id,
        client_key=uuid.uuid5(judgment.client_key, "retraction"),
        verdict=Verdict.RETRACTED,
        purpose=judgment.purpose,
        repeat=judgment.repeat,
        order=judgment.order,
        supersedes=judgment,
        retraction=retraction,
        created_at=now,
    )


def retract(retraction: Retraction, said: QuerySet[Judgment], now: datetime) -> int:
    """Takes back those of `said` that are in force, frozen ones too, in the name of `retraction`; returns how many. Their
    comparisons are counted anew, and open again where they now have fewer judgments than they want. Call it inside a
    transaction.
    """
    n = 0
    while rows := _lock_some(said):
        thumbed = {row.comparison_id for row in rows if row.verdict in THUMBS}
        _add_many([_opposite(row, now, retraction) for row in rows], thumbed)
        n += len(rows)
    return n


def _lock_some(said: QuerySet[Judgment]) -> list[Judgment]:
    """The next judgments in force, with their comparisons locked first, as everybody does who changes them."""
    wanted = in_force().filter(pk__in=said.order_by().values("pk")).order_by("pk")
    ids = list(wanted.values_list("comparison", flat=True)[:BATCH])
    list(Comparison.objects.select_for_update(of=("self",)).filter(pk__in=ids).order_by("pk").values_list("pk"))
    return list(wanted.filter(comparison__in=ids).select_for_update(of=("self",)))


def undoable(campaign: Campaign, annotator: User) -> list[uuid.UUID]:
    """Client keys of this person's newest judgments that can be taken back, oldest first, at most N_UNDOABLE."""
    mine = in_force().filter(annotator=annotator, comparison__campaign=campaign, frozen_at=None, lease__isnull=False)
    return list(mine.order_by("-id").values_list("client_key", flat=True)[:N_UNDOABLE])[::-1]


def reopen(campaign: Campaign) -> None:
    """Sets `n_wanted` and `is_open` anew after the campaign's overlap was changed."""
    most = max(campaign.overlap, campaign.max_overlap)
    raised = Greatest(campaign.overlap, Least(F("n_judgments") + 1, most))
    campaign.comparisons.filter(is_disputed=False).update(n_wanted=campaign.overlap)
    campaign.comparisons.filter(is_disputed=True).update(n_wanted=raised)
    labeled = campaign.comparisons.exclude(source=Comparison.Source.CHAT).filter(gold_ranks__isnull=True)
    labeled = labeled.exclude(judgments__verdict__in=THUMBS)
    labeled.filter(is_open=True, n_judgments__gte=F("n_wanted")).update(is_open=False)
    labeled.filter(is_open=False, n_judgments__lt=F("n_wanted")).update(is_open=True)
