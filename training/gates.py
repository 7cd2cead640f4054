"""May an adapter be published? Its preference accuracy on held-out pairs, against the incumbent's, on the same pairs.

A model prefers the response that it makes more likely than the reference does: margin = beta · (log-ratio of chosen −
log-ratio of rejected) > 0, a margin of exactly zero counting half. The base is its own reference, so all of its margins
are zero and its accuracy is one half. Pairs that people called a tie have no right answer and are left out.

The rule: at least `min_heldout_pairs` pairs of at least MIN_PROMPTS prompts, and the 95 % interval of the difference in
accuracy neither reaches below zero nor is nothing but zero. The interval is a percentile bootstrap over prompts (pairs of
one prompt are not independent, and few prompts give an interval that is far too narrow), both models being scored on the
same resample.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from django.contrib.auth.models import User
from django.utils.translation import gettext as _
from numpy.typing import NDArray

from serving import adapters
from serving.models import Adapter, Deployment
from training import attempts, runs
from training.models import Evaluation, Policy, Run

BOOTSTRAP_DRAWS = 2000
BOOTSTRAP_SEED = 20260101
BOOTSTRAP_CHUNK = 200
MIN_PROMPTS = 10


class BrokenEvaluation(ValueError):
    """The trainer's evaluation.json is missing or does not hold what it must."""


class ReasonWanted(ValueError):
    """Without the gate's word that it is better than the current one, an adapter is published only with a reason."""


@dataclass(frozen=True)
class Score:
    """Accuracies from 0 to 1, their difference (new − incumbent) and its 95 % interval; None without pairs."""

    n_pairs: int
    n_prompts: int
    accuracy: float | None
    incumbent_accuracy: float | None
    difference: float | None
    low: float | None
    high: float | None


def evaluate(run: Run, adapter: Adapter, folder: Path) -> Evaluation:
    """Judges an attempt's evaluation.json and stores verdict and evidence, once per run. Raises BrokenEvaluation."""
    rows = read_rows(folder)
    ties = _ties(run)
    judged = [row for row in rows if row["pair"] not in ties]
    wanted = policy_of(run).min_heldout_pairs
    score = compare(
        np.array([row["margin"] for row in judged]),
        np.array([row["incumbent_margin"] for row in judged]),
        [row["prompt_sha256"] for row in judged],
    )
    evidence = {
        **asdict(score),
        "ties_left_out": len(rows) - len(judged),
        "min_heldout_pairs": wanted,
        "min_heldout_prompts": MIN_PROMPTS,
        "bootstrap": {"draws": BOOTSTRAP_DRAWS, "seed": BOOTSTRAP_SEED, "level": 0.95},
    }
    values = {
        "adapter": adapter,
        "incumbent": run.incumbent,
        "is_passed": is_passed(score, wanted),
        "verdict": describe(score, wanted),
        "evidence": evidence,
    }
    return Evaluation.objects.update_or_create(run=run, defaults=values)[0]


def compare(margins: NDArray[Any], incumbent_margins: NDArray[Any], prompts: list[str]) -> Score:
    """Scores n pairs. margins, incumbent_margins: (n,) in nats; prompts: the n prompts' hashes."""
    if len(prompts) == 0:
        return Score(0, 0, None, None, None, None, None)
    new, old = _is_right(margins), _is_right(incumbent_margins)  # (n,) of 0, 0.5, 1
    names, group = np.unique(np.array(prompts), return_inverse=True)
    gains = np.bincount(group, weights=new - old)  # (n_prompts,)
    sizes = np.bincount(group)  # (n_prompts,)
    low, high = np.percentile(_bootstrap(gains, sizes), [2.5, 97.5])
    difference = float(new.mean() - old.mean())
    return Score(len(new), len(names), float(new.mean()), float(old.mean()), difference, float(low), float(high))


def is_passed(score: Score, min_pairs: int) -> bool:
    if score.low is None or score.high is None or score.n_pairs < min_pairs or score.n_prompts < MIN_PROMPTS:
        return False
    return score.low >= 0 and score.high > 0  # all zero: nothing was learned, or nothing that these pairs can show


def describe(score: Score, min_pairs: int) -> str:
    """The verdict in words."""
    if score.n_pairs < min_pairs or score.difference is None or score.low is None or score.high is None:
        return f"not enough judgments to tell: {score.n_pairs} held-out pairs, at least {min_pairs} wanted"
    if score.n_prompts < MIN_PROMPTS:
        return f"not enough prompts to tell: {score.n_prompts} held-out prompts, at least {MIN_PROMPTS} wanted"
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


def _is_right(margins: NDArray[Any]) -> NDArray[np.float64]:
    return (np.sign(margins) + 1) / 2


def _bootstrap(gains: NDArray[Any], sizes: NDArray[Any]) -> NDArray[np.float64]:
    """Differences in accuracy of BOOTSTRAP_DRAWS resamples of prompts. gains, sizes: (n_prompts,) → (draws,)"""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    draws = []
    for _chunk in range(BOOTSTRAP_DRAWS // BOOTSTRAP_CHUNK):  # in chunks: draws × prompts need not fit in memory
        picked = rng.integers(0, len(gains), (BOOTSTRAP_CHUNK, len(gains)))
        draws.append(gains[picked].sum(axis=1) / sizes[picked].sum(axis=1))
    return np.concatenate(draws)


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
    )


def _ties(run: Run) -> set[str]:
    return {row["pair"] for row in _heldout(run) if row["label"] == 0.5}


def _heldout(run: Run) -> Iterator[dict[str, Any]]:
    if run.snapshot is None:
        raise BrokenEvaluation(_("This run has no snapshot to be judged on."))
    with (run.snapshot.folder / "heldout.jsonl").open() as file:
        for line in file:
            yield json.loads(line)
