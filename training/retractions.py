"""What had learned from retracted judgments, and the same run once more without them. `labeling.retractions` retracts.

No attempt begins on what is retracted: the supervisor freezes the judgments of a run that waits, is resumed or retried
anew, and what goes on from a version that had learned some of it begins from the base. An attempt that is under way goes
on to its end, and is listed with what had learned.
"""

from typing import Any

from django.contrib.auth.models import User
from django.utils.translation import gettext as _

from labeling import retractions
from labeling.models import Retraction
from serving import adapters
from serving.models import Adapter
from training import lineage, reward_models, runs
from training.lineage import FIRST_PAGES, Downstream, Pages
from training.models import RewardModel, Run, Snapshot

CONTINUED, FRESH = "incumbent", "base"  # catalog.Common.start


class NotTouched(ValueError):
    """The run learned nothing from these judgments, so there is nothing to do again."""


def touched(retraction: Retraction, pages: Pages = FIRST_PAGES) -> Downstream:
    """The snapshots, runs, versions (with every alias, past and current) and reward models that hold or learned from what
    was retracted.
    """
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
    params = start_clean(run.params)
    return runs.create(
        run.campaign, run.method, params, user=user, trigger=Run.Trigger.RETRY, retry_of=run, without=retraction
    )


def put_away(reward_model: RewardModel, retraction: Retraction, user: User) -> bool:
    """Takes a reward model that had learned from the retracted judgments out of use; False when it was not in use.

    Raises NotTouched. Nothing does this by itself, as nothing takes a version out of chat: one judgment of thousands is no
    reason to rank nothing from now on, and how much it matters is for people to say.
    """
    if reward_model.run_id not in _learned(retraction):
        raise NotTouched(_("Reward model %d learned nothing from these judgments.") % reward_model.pk)
    return reward_models.put_away(reward_model, user, _("taken out of use after %s") % retraction)


def start_clean(params: dict[str, Any], incumbent: Adapter | None = None) -> dict[str, Any]:
    """A run's parameters; from the base, if it was to go on from a version that had learned from what is retracted now: the
    `incumbent`, or where it is not fixed the current one.
    """
    if params.get("start") == CONTINUED and lineage.learned_retracted(incumbent or adapters.current()):
        return {**params, "start": FRESH}
    return params


def _learned(retraction: Retraction) -> set[int]:
    held = Snapshot.objects.filter(judgments__in=retractions.retracted(retraction)).order_by()
    direct, inherited = lineage.runs_that_learned(held.distinct())
    return direct | inherited
