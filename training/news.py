"""What is new in a version, in plain sentences, one a line: for those who choose in the chat who is to answer."""

from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from training import catalog
from training.models import Evaluation, Run


def describe(run: Run) -> str:
    """What it learned from, how it does on judgments that were held out, and the gate's word, as far as they are known."""
    evaluation = Evaluation.objects.filter(run=run).first()
    return "\n".join([*_learned(run), *(_judged(evaluation) if evaluation else [])])


def _learned(run: Run) -> list[str]:
    if run.snapshot is None:
        return []
    counts = run.snapshot.counts
    words = ngettext(
        "Learned from %(n)d judgment in “%(campaign)s” by %(method)s.",
        "Learned from %(n)d judgments in “%(campaign)s” by %(method)s.",
        counts.get("used", 0),
    ) % {"n": counts.get("used", 0), "campaign": run.campaign.name, "method": catalog.get(run.method).label}
    if run.incumbent is None or run.incumbent.is_base or not counts.get("new"):
        return [words]
    since = _("%(n)d of its pairs were judged since %(version)s learned.")
    return [words, since % {"n": counts["new"], "version": run.incumbent}]


def _judged(evaluation: Evaluation) -> list[str]:
    found: dict[str, Any] = evaluation.evidence
    lines = []
    if found.get("accuracy") is not None and found.get("incumbent_accuracy") is not None:
        words = _(
            "Sides with people on %(now)d %% of the pairs that it never saw; the version before on %(before)d %%."
        )
        lines.append(words % {"now": _percent(found["accuracy"]), "before": _percent(found["incumbent_accuracy"])})
    won = ((found.get("policy") or {}).get("win_rate") or {}).get("length_controlled")
    if won is not None:
        words = _("The reward model prefers its answers to those of the version before in %d %% of cases.")
        lines.append(words % _percent(won))
    lines.append(_("Passed the gate.") if evaluation.is_passed else _("Did not pass the gate."))
    return lines


def _percent(share: float) -> int:
    return round(share * 100)
