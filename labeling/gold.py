"""What measures people: pairs with a known answer, the newcomer's practice on them, and swapped repeats.

None of it counts towards k, and annotators are not told which pairs these are (practice apart, which says so).
"""

from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils.translation import gettext as _

from labeling.errors import Invalid
from labeling.models import Campaign, Comparison, Judgment, Lease, Membership, Purpose

REPEAT_AFTER = timedelta(minutes=10)  # long enough that it is judged anew, and not remembered
ASSESSABLE = (Judgment.Verdict.PREFERENCE, Judgment.Verdict.TIE, Judgment.Verdict.BOTH_BAD)


@transaction.atomic
def set_answer(comparison: Comparison, ranks: dict[str, int] | None) -> None:
    """Makes the comparison a gold one, with the answer that is known (response id → rank, 1 best), or, with None, an
    ordinary one again. A gold comparison leaves the ordinary stream.

    Raises Invalid unless every response has a rank and some response is better than another (a tie measures nothing), and
    for what was compared in a chat, which nobody else is shown.
    """
    if comparison.source == Comparison.Source.CHAT:
        raise Invalid(_("This was compared in somebody's chat. It is private, so nobody can be measured on it."))
    if ranks is not None:
        ids = {str(item.response_id) for item in comparison.items.all()}
        if set(ranks) != ids or len(set(ranks.values())) < 2:
            raise Invalid(_("Rank every response of the pair, and at least one better than another."))
    before = Comparison.objects.select_for_update(of=("self",)).get(pk=comparison.pk)
    if before.gold_ranks == ranks:
        return
    comparison.gold_ranks = ranks
    comparison.is_open = ranks is None and before.n_judgments < before.n_wanted
    comparison.save(update_fields=["gold_ranks", "is_open"])


def unseen(campaign: Campaign, annotator: User, now: datetime) -> QuerySet[Comparison]:
    """Gold comparisons that this person has not judged and does not hold, in the campaign's order."""
    mine = Judgment.objects.filter(comparison=OuterRef("pk"), annotator=annotator, superseded_by=None)
    held = Lease.objects.filter(comparison=OuterRef("pk"), annotator=annotator, ended_at=None, expires_at__gt=now)
    known = Comparison.objects.filter(campaign=campaign, gold_ranks__isnull=False).select_related("campaign", "prompt")
    judged = mine.exclude(verdict=Judgment.Verdict.RETRACTED)
    return known.filter(~Exists(judged), ~Exists(held)).prefetch_related("responses").order_by("sort_key", "id")


def practised(campaign: Campaign, annotator: User) -> QuerySet[Judgment]:
    """This person's judgments of the practice round, those in force."""
    mine = Judgment.objects.filter(annotator=annotator, comparison__campaign=campaign, purpose=Purpose.PRACTICE)
    return mine.filter(superseded_by=None).exclude(verdict=Judgment.Verdict.RETRACTED)


def practice(campaign: Campaign, annotator: User, now: datetime, n: int) -> list[Comparison]:
    """The next `n` comparisons of a newcomer's practice round; none once it is done, or for those who need none."""
    if not campaign.practice_pairs or not _newcomers(campaign, annotator).exists():
        return []
    n_left = campaign.practice_pairs - practised(campaign, annotator).count() - _held(campaign, annotator, now).count()
    return list(unseen(campaign, annotator, now)[: max(0, min(n, n_left))])


def n_to_practise(campaign: Campaign, annotator: User) -> int:
    """Pairs of the practice round that are still to come; 0 once it is done."""
    if not _newcomers(campaign, annotator).exists():
        return 0
    return max(0, campaign.practice_pairs - practised(campaign, annotator).count())


def finish_practice(campaign: Campaign, annotator: User, now: datetime) -> None:
    """Ends the practice round when its last pair was judged, or no further gold pair is there to practise on."""
    is_done = practised(campaign, annotator).count() >= campaign.practice_pairs
    has_more = _held(campaign, annotator, now).exists() or unseen(campaign, annotator, now).exists()
    if is_done or not has_more:
        _newcomers(campaign, annotator).update(practised_at=now)


def _held(campaign: Campaign, annotator: User, now: datetime) -> QuerySet[Lease]:
    """Leases of the practice round that are still open: the screen asks for some pairs ahead."""
    held = Lease.objects.filter(annotator=annotator, comparison__campaign=campaign, purpose=Purpose.PRACTICE)
    return held.filter(ended_at=None, expires_at__gt=now)


def _newcomers(campaign: Campaign, annotator: User) -> QuerySet[Membership]:
    role = Membership.Role.ANNOTATOR
    return Membership.objects.filter(campaign=campaign, user=annotator, role=role, practised_at=None)


def to_repeat(campaign: Campaign, annotator: User, now: datetime) -> QuerySet[Comparison]:
    """Comparisons that this person judged a while ago and has not been shown again, oldest first."""
    mine = Judgment.objects.filter(
        annotator=annotator,
        purpose=Purpose.LABEL,
        verdict__in=ASSESSABLE,
        superseded_by=None,
        is_surplus=False,
        created_at__lt=now - REPEAT_AFTER,
    )
    again = Lease.objects.filter(comparison=OuterRef("pk"), annotator=annotator, repeat=1)
    first = Comparison.objects.filter(campaign=campaign, pk__in=mine.values("comparison"), gold_ranks__isnull=True)
    return (
        first.filter(~Exists(again)).select_related("campaign", "prompt").prefetch_related("responses").order_by("pk")
    )


def is_right(comparison: Comparison, ranks: dict[str, int]) -> bool:
    """Whether no response that is known to be worse was ranked above, or level with, a better one."""
    known = comparison.gold_ranks or {}
    return bool(ranks) and all(
        ranks[better] < ranks[worse] for better in known for worse in known if known[better] < known[worse]
    )
