"""May an adapter be published? By its choices on held-out pairs, against the incumbent's, and by what it writes.

The rule: at least `min_heldout_pairs` pairs of at least `min_heldout_prompts` prompts, the 95 % interval of the difference
in accuracy (`training.heldout`) neither reaching below zero, or what the campaign allows, nor being nothing but zero; and
every guard passed (`training.guards`), whatever the choices are worth. Pairs that people called a tie have no right answer
and are left out. Verdict, figures and the rules that were asked stay with the adapter.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from django.contrib.auth.models import User
from django.utils.translation import gettext as _

from serving import adapters, artifacts
from serving.models import Adapter, Deployment
from training import attempts, guards, rules, runs
from training.guards import BrokenEvaluation, Guard
from training.heldout import BOOTSTRAP_DRAWS, BOOTSTRAP_SEED, Score, compare
from training.models import Evaluation, Policy, Run
from training.rules import Rules

__all__ = [
    "MIN_PROMPTS", "BrokenEvaluation", "ReasonWanted", "Score", "compare", "describe", "evaluate", "is_passed",
    "needs_reason", "policy_of", "publish", "read_rows", "rules_of",
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
    found = judge(folder, _ties(run), policy.min_heldout_pairs, rules_of(policy))
    values = {
        "adapter": adapter,
        "incumbent": run.incumbent,
        "is_passed": found.is_passed,
        "verdict": found.verdict,
        "evidence": found.evidence,
    }
    return Evaluation.objects.update_or_create(run=run, defaults=values)[0]


def judge(folder: Path, ties: set[str], min_pairs: int, asked: Rules) -> Judgement:
    """The gate's word on an attempt's evaluation.json; `ties`: the pairs without a right answer. Raises BrokenEvaluation."""
    rows, policy = read_rows(folder), (attempts.read_json(folder / "evaluation.json") or {}).get("policy")
    judged = [row for row in rows if row["pair"] not in ties]
    score = compare(
        np.array([row["margin"] for row in judged]),
        np.array([row["incumbent_margin"] for row in judged]),
        [row["prompt_sha256"] for row in judged],
        np.array([row.get("label", 1.0) for row in judged]),
    )
    checked = guards.check(guards.read(policy), score, asked)
    evidence = {
        **asdict(score),
        "ties_left_out": len(rows) - len(judged),
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


def is_passed(score: Score, min_pairs: int, asked: Rules | None = None) -> bool:
    """Whether the choices on held-out pairs are good enough."""
    asked = asked or Rules()
    if score.low is None or score.high is None or score.n_pairs < min_pairs:
        return False
    if score.n_prompts < asked.min_heldout_prompts:
        return False
    # All zero: nothing was learned, or nothing that these pairs can show.
    return score.low >= -asked.max_accuracy_loss and score.high > 0


def verdict(score: Score, checked: Sequence[Guard], min_pairs: int, asked: Rules | None = None) -> str:
    """All in words: what refuses first, then the choices."""
    choices = describe(score, min_pairs, asked)
    refusals = [guard.refusal for guard in checked if not guard.passed]
    return "; ".join([_("refused: %s") % refusals[0], *refusals[1:], choices]) if refusals else choices


def describe(score: Score, min_pairs: int, asked: Rules | None = None) -> str:
    """The choices on held-out pairs in words."""
    min_prompts = (asked or Rules()).min_heldout_prompts
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
    return f"no clear difference: {score.difference * 100:+.1f} points, {interval}"


def policy_of(run: Run) -> Policy:
    """The campaign's policy, or one of defaults that is not stored."""
    return Policy.objects.filter(campaign=run.campaign_id).first() or Policy(campaign_id=run.campaign_id)


def rules_of(policy: Policy) -> Rules:
    """The campaign's rules. Raises rules.RuleError where what is stored is none."""
    return rules.parse(policy.rules)


def needs_reason(adapter: Adapter) -> bool:
    """Whether the gate has not found an adapter better than what answers now. The base needs no reason."""
    return bool(_doubt(adapter))


def publish(run: Run, *, actor: User | None, reason: str = "", expected_generation: int | None = None) -> Deployment:
    """Makes a run's adapter the current one. Raises ReasonWanted, and what serving.adapters.publish raises."""
    if run.adapter is None:
        raise adapters.NotServable(_("Run %d has no adapter.") % run.pk)
    if (doubt := _doubt(run.adapter)) and not reason.strip():
        raise ReasonWanted(doubt)
    started = time.monotonic()
    deployment = adapters.publish(
        run.adapter, actor=actor, reason=reason.strip(), expected_generation=expected_generation
    )
    runs.add_timing(run, "publish", time.monotonic() - started)
    return deployment


def _doubt(adapter: Adapter) -> str:
    """Why publishing an adapter takes a reason, by its newest evaluation; empty when it takes none."""
    newest = adapter.evaluations.order_by("-id").first()
    if adapter.is_base:
        return ""
    if newest is None or not newest.is_passed:
        return _("The gate did not pass %s. Give a reason for publishing it all the same.") % adapter
    current = Deployment.objects.filter(alias=adapters.CURRENT).values_list("adapter_id", flat=True).first()
    if current in (None, adapter.pk, newest.incumbent_id):
        return ""
    return (
        _("%s was compared with a version that is not the current one any more. Give a reason for publishing it.")
        % adapter
    )


def _points(share: float) -> str:
    return f"{share * 100:.1f}".replace("-0.0", "0.0").replace("-", "−")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The held-out pairs of an attempt's evaluation.json. Raises BrokenEvaluation."""
    rows = (attempts.read_json(folder / "evaluation.json") or {}).get("heldout")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _is_row(row) for row in rows):
        raise BrokenEvaluation(_("The trainer left no usable evaluation.json; its log says why."))
    return rows


def _is_row(row: dict[str, Any]) -> bool:
    margins = (row.get("margin"), row.get("incumbent_margin"))
    return (
        isinstance(row.get("pair"), str)
        and isinstance(row.get("prompt_sha256"), str)
        and all(isinstance(m, int | float) and math.isfinite(m) for m in margins)
        and isinstance(label := row.get("label", 1.0), int | float)
        and 0 <= label <= 1
    )


def _ties(run: Run) -> set[str]:
    return {row["pair"] for row in _heldout(run) if row["label"] == 0.5}


def _heldout(run: Run) -> Iterator[dict[str, Any]]:
    if run.snapshot is None:
        raise BrokenEvaluation(_("This run has no snapshot to be judged on."))
    with (run.snapshot.folder / "heldout.jsonl").open() as file:
        for line in file:
            yield json.loads(line)
