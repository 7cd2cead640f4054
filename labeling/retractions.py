"""Judgments that no longer count by a manager's decision, with who decided, when and why. Nothing is deleted: the decision
is a row, and so is each judgment that takes another one back.
"""

from datetime import datetime

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import QuerySet
from django.utils.translation import gettext as _

from labeling import judgments, statistics
from labeling.errors import Invalid
from labeling.models import Campaign, Judgment, Retraction

MAX_REASON = 2_000


def retract_judgment(judgment: Judgment, by: User, reason: str, now: datetime) -> Retraction:
    """Takes one judgment back, whatever has learned from it. Raises Invalid without a reason, and when it is not in force."""
    campaign = judgment.comparison.campaign
    draft = Retraction(campaign=campaign, annotator=judgment.annotator, by=by, reason=reason, at=now)
    return _retract(draft, Judgment.objects.filter(pk=judgment.pk))


def retract_person(campaign: Campaign, annotator: User, by: User, reason: str, now: datetime) -> Retraction:
    """Takes back all that somebody said in a campaign: what measured them, too. Raises Invalid as for one judgment."""
    draft = Retraction(campaign=campaign, annotator=annotator, is_everything=True, by=by, reason=reason, at=now)
    return _retract(draft, Judgment.objects.filter(comparison__campaign=campaign, annotator=annotator))


def _retract(draft: Retraction, said: QuerySet[Judgment]) -> Retraction:
    draft.reason = draft.reason.strip()[:MAX_REASON]
    if not draft.reason:
        raise Invalid(_("Say why: whoever looks at a version that learned from this will want to know."))
    with transaction.atomic():
        draft.save(force_insert=True)
        if not judgments.retract(draft, said, draft.at):
            raise Invalid(_("There is nothing to retract: this was taken back or replaced before."))
    statistics.mark_stale(draft.campaign)
    return draft


def retracted(retraction: Retraction) -> QuerySet[Judgment]:
    """The judgments that a retraction took back."""
    return Judgment.objects.filter(superseded_by__retraction=retraction)
