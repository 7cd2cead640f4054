"""May an adapter be published? By its choices on held-out pairs, against the incumbent's, and by what it writes.

The rule: at least `min_heldout_pairs` pairs of at least `min_heldout_prompts` prompts; the 95 % interval of the difference
in accuracy (`training.heldout`) wholly above zero (better beyond doubt) or, where the campaign allows a loss, wholly above
that loss and not wholly below zero (no worse beyond doubt); and every guard passed (`training.guards`), whatever the choices
are worth. Pairs that people called a tie are left out (`training.margins`). Verdict, figures and the rules that were asked
stay with the adapter.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from django.contrib.auth.models import User
from django.utils.translation import gettext as _

from serving import adapters, artifacts
from serving.models import Adapter, Deployment
from training import attempts, guards, lineage, margins, rules, runs
from training.guards import BrokenEvaluation, Guard
from training.heldout import BOOTSTRAP_DRAWS, BOOTSTRAP_SEED, Score, compare, only_claimed
from training.margins import Held, read_rows
from training.models import Evaluation, Policy, Run
from training.rules import Rules

__all__ = [
    "MIN_PROMPTS", "BrokenEvaluation", "ReasonWanted", "Score", "compare", "describe", "doubt", "evaluate",
    "is_passed", "needs_reason", "policy_of", "publish", "read_rows", "rules_of",
]  # fmt: skip

MIN_PROMPTS = Rules().min_heldout_prompts


class ReasonWanted(ValueError):
    """Without the gate's word that it is better than the current one, an adapter is published only with a reason."""


@dataclass(frozen=True)
class Judgement:
    """What the gate has found; `verdict` in words."""

    is_passed: bool
    verdict: str
    evidence: dict[str, Any]


def evaluate(run: Run, adapter: Adapter, folder: Path) -> Evaluation:
    """Judges an attempt's evaluation.json and stores verdict and evidence, once per run. Raises BrokenEvaluation."""
    policy = policy_of(run)
    if run.snapshot is None:
        raise BrokenEvaluation(_("This run has no snapshot to be judged on."))
    found = judge(folder, run.snapshot.folder, policy.min_heldout_pairs, rules_of(policy))
    values = {
        "adapter": adapter,
        "incumbent": run.incumbent,
        "is_passed": found.is_passed,
        "verdict": found.verdict,
        "evidence": found.evidence,
    }
    return Evaluation.objects.update_or_create(run=run, defaults=values)[0]


def judge(folder: Path, snapshot: Path, min_pairs: int, asked: Rules) -> Judgement:
    """The gate's word on an attempt's evaluation.json, for the pairs that its snapshot holds out (both folders). Raises
    BrokenEvaluation.
    """
    held, n_ties = margins.read(folder, snapshot)
    policy = (attempts.read_json(folder / "evaluation.json") or {}).get("policy")
    judged = margins.without_steered(held, min_pairs, asked.min_heldout_prompts)
    score = _score(judged)
    figures = guards.read(policy)
    score = only_claimed(score, new=figures.claims, incumbent=figures.claims_before)
    checked = guards.check(figures, score, asked)
    evidence = {
        **asdict(score),
        "ties_left_out": n_ties,
        "steered_left_out": len(held) - len(judged),
        "steered": sum(pair.is_steered for pair in judged),
        "min_heldout_pairs": min_pairs,
        "min_heldout_prompts": asked.min_heldout_prompts,
        "bootstrap": {"draws": BOOTSTRAP_DRAWS, "seed": BOOTSTRAP_SEED, "level": 0.95},
        "rules": asdict(asked),
        "guards": [asdict(guard) for guard in checked],
        "policy": policy,
        "file_sha256": artifacts.hash_of(folder / "evaluation.json"),
    }
    passed = is_passed(score, min_pairs, asked) and all(guard.passed for guard in checked)
    return Judgement(passed, verdict(score, checked, min_pairs, asked), evidence)


def _score(held: Sequence[Held]) -> Score:
    return compare(
        np.array([pair.margin for pair in held]),
        np.array([pair.incumbent_margin for pair in held]),
        [pair.prompt_sha256 for pair in held],
        np.array([pair.label for pair in held]),
    )


def is_passed(score: Score, min_pairs: int, asked: Rules | None = None) -> bool:
    """Whether the choices on held-out pairs are good enough."""
    asked = asked or Rules()
    if score.low is None or score.high is None or score.n_pairs < min_pairs:
        return False
    if score.n_prompts < asked.min_heldout_prompts:
        return False
    # An end that lies at zero shows nothing: of pairs that a version without merit changes at random, few change, and many
    # resamples hold none of them. The other end: a loss that is beyond doubt is one, however small.
    return score.low > -asked.max_accuracy_loss and score.high > 0


def verdict(score: Score, checked: Sequence[Guard], min_pairs: int, asked: Rules | None = None) -> str:
    """All in words: what refuses first, then the choices."""
    choices = describe(score, min_pairs, asked)
    refusals = [guard.refusal for guard in checked if not guard.passed]
    return "; ".join([_("refused: %s") % refusals[0], *refusals[1:], choices]) if refusals else choices


def describe(score: Score, min_pairs: int, asked: Rules | None = None) -> str:
    """The choices on held-out pairs in words."""
    asked = asked or Rules()
    min_prompts = asked.min_heldout_prompts
    if score.n_pairs < min_pairs or score.difference is None or score.low is None or score.high is None:
        return f"not enough judgments to tell: {score.n_pairs} held-out pairs, at least {min_pairs} wanted"
    if score.n_prompts < min_prompts:
        return f"not enough prompts to tell: {score.n_prompts} held-out prompts, at least {min_prompts} wanted"
    if score.low == score.high == 0:
        return f"no difference, {score.n_pairs} held-out pairs"
    interval = f"95 % {_points(score.low)} to {_points(score.high)}, {score.n_pairs} held-out pairs"
    if score.low > 0:
        return f"better by {_points(score.difference)} points, {interval}"
    if score.high < 0:
        return f"worse by {_points(-score.difference)} points, {interval}"
    change = f"{score.difference * 100:+.1f} points, {interval}"
    if is_passed(score, min_pairs, asked):
        return f"not worse by {_points(asked.max_accuracy_loss)} points or more: {change}"
    return f"no clear difference: {change}"


def policy_of(run: Run) -> Policy:
    """The campaign's policy, or one of defaults that is not stored."""
    return Policy.objects.filter(campaign=run.campaign_id).first() or Policy(campaign_id=run.campaign_id)


def rules_of(policy: Policy) -> Rules:
    """The campaign's rules."""
    return rules.read(policy.rules)


def needs_reason(adapter: Adapter) -> bool:
    """Whether there is any doubt about publishing an adapter."""
    return bool(doubt(adapter))


def doubt(adapter: Adapter) -> str:
    """Why publishing an adapter takes a reason now, for people; empty when it takes none, as for the base and for what is
    current already.
    """
    current = Deployment.objects.filter(alias=adapters.CURRENT).values_list("adapter_id", flat=True).first()
    return _doubt(adapter, current)


def publish(run: Run, *, actor: User | None, reason: str = "", expected_generation: int | None = None) -> Deployment:
    """Makes a run's adapter the current one. Raises ReasonWanted, and what serving.adapters.publish raises.

    AliasMoved also without an expected generation, where somebody else published while this one was loaded and tested: what
    was looked into was a change from the version before theirs.
    """
    if run.adapter is None:
        raise adapters.NotServable(_("Run %d has no adapter.") % run.pk)
    before = adapters.deployment()
    if (why := _doubt(run.adapter, before.adapter_id)) and not reason.strip():
        raise ReasonWanted(why)
    started = time.monotonic()
    deployment = adapters.publish(
        run.adapter,
        actor=actor,
        reason=reason.strip(),
        expected_generation=before.generation if expected_generation is None else expected_generation,
    )
    runs.add_timing(run, "publish", time.monotonic() - started)
    return deployment


def _doubt(adapter: Adapter, current: int | None) -> str:
    """`current`: id of the version that answers now, if any does."""
    if adapter.is_base:
        return ""
    newest = adapter.evaluations.order_by("-id").first()
    if newest is None or not newest.is_passed:
        return _("The gate did not pass %s. Give a reason for publishing it all the same.") % adapter
    if current == adapter.pk:
        return ""
    if current not in (None, newest.incumbent_id):
        return (
            _("%s was compared with a version that is not the current one any more. Give a reason for publishing it.")
            % adapter
        )
    if lineage.learned_retracted(adapter):
        return (
            _("%s learned from judgments that were taken back since. Give a reason for publishing it all the same.")
            % adapter
        )
    return ""


def _points(share: float) -> str:
    return f"{share * 100:.1f}".replace("-0.0", "0.0").replace("-", "−")
