"""What had learned from retracted judgments, and the same run once more without them. `labeling.retractions` retracts."""

from django.contrib.auth.models import User
from django.utils.translation import gettext as _

from labeling import retractions
from labeling.models import Retraction
from serving import adapters
from training import lineage, runs
from training.lineage import FIRST_PAGES, Downstream, Pages
from training.models import Run, Snapshot

CONTINUED, FRESH = "incumbent", "base"  # catalog.Common.start


class NotTouched(ValueError):
    """The run learned nothing from these judgments, so there is nothing to do again."""


def touched(retraction: Retraction, pages: Pages = FIRST_PAGES) -> Downstream:
    """The snapshots, runs and versions (with every alias, past and current) that hold or learned from what was retracted."""
    return lineage.downstream(retractions.retracted(retraction), pages)


def run_again(run: Run, retraction: Retraction, user: User | None = None) -> Run:
    """The same method and parameters on a new snapshot, which leaves out all that was retracted. A run that went on from
    the current version begins from the base instead where that version had learned from what was retracted.

    Raises NotTouched, runs.NotRetryable, runs.RunExists and catalog.ParameterError.
    """
    if run.status in Run.ACTIVE:
        raise runs.NotRetryable(_("Run %d is still active; cancel it first.") % run.pk)
    learned = _learned(retraction)
    if run.pk not in learned:
        raise NotTouched(_("Run %d learned nothing from these judgments.") % run.pk)
    params = dict(run.params)
    if params.get("start") == CONTINUED and Run.objects.filter(pk__in=learned, adapter=adapters.current()).exists():
        params["start"] = FRESH
    return runs.create(
        run.campaign, run.method, params, user=user, trigger=Run.Trigger.RETRY, retry_of=run, without=retraction
    )


def _learned(retraction: Retraction) -> set[int]:
    held = Snapshot.objects.filter(judgments__in=retractions.retracted(retraction)).order_by()
    direct, inherited = lineage.runs_that_learned(held.distinct())
    return direct | inherited
