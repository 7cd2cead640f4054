"""Reward models: register what a run left, judge it, say which is in use. The only writer of RewardModel's rows.

A reward model answers nobody: it ranks responses, chooses what people see next, picks the best of n, and helps the gate.
So it has no engine's self-test and no alias. What it must show is that it agrees with held-out judgments.
"""

import hashlib
import json
import math
import secrets
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from django.conf import settings
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import User
from django.db import transaction
from django.utils.translation import gettext as _

from labeling import rewards
from labeling.models import Campaign
from serving import adapters, artifacts
from serving.artifacts import InvalidAdapter
from training import attempts, gates, lineage
from training.gates import Score
from training.models import RewardModel, Run

ADAPTER, HEAD, CARD = "adapter", "head.safetensors", "reward.json"
CHANCE = 0.5


def register(run: Run, folder: Path) -> RewardModel:
    """The run's reward model, from an attempt's folder: checked, copied, judged; in use if it may be. Once per run.

    Raises serving.artifacts.InvalidAdapter, training.gates.BrokenEvaluation.
    """
    if known := RewardModel.objects.filter(run=run).first():
        return known
    incoming = settings.REWARD_MODELS_DIR / f".incoming-{secrets.token_hex(8)}"
    try:
        _copy(folder / "reward_model", incoming)  # what is checked is the copy: nobody else writes it
        figures, sha256 = check(incoming)
        if not (settings.REWARD_MODELS_DIR / sha256).exists():
            incoming.rename(settings.REWARD_MODELS_DIR / sha256)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return _store(run, sha256, figures, gates.read_rows(folder))


@transaction.atomic
def _store(run: Run, sha256: str, figures: dict[str, Any], rows: list[dict[str, Any]]) -> RewardModel:
    is_passed, verdict, evidence = judge(rows, gates.policy_of(run).min_heldout_pairs)
    made, _is_new = RewardModel.objects.get_or_create(
        run=run,
        defaults={
            "campaign": run.campaign,
            "sha256": sha256,
            "base_sha256": figures["base_sha256"],
            "figures": figures,
            "is_passed": is_passed,
            "verdict": verdict,
            "evidence": evidence,
        },
    )
    if is_passed and evidence["is_no_worse"]:
        _activate(made)
    return made


class NotUsable(ValueError):
    """It cannot score anything here."""


def use(reward_model: RewardModel, user: User, reason: str = "") -> None:
    """Makes it the one that scores its campaign's responses, by a person's decision, which its history in the admin keeps.

    Raises NotUsable where it reads another base, gates.ReasonWanted where it takes a reason and there is none.
    """
    if reward_model.base_sha256 != adapters.base().sha256:
        raise NotUsable(_("%s reads another base than the one that is served.") % str(reward_model).capitalize())
    if (why := doubt(reward_model)) and not reason.strip():
        raise gates.ReasonWanted(why)
    with transaction.atomic():
        _activate(reward_model)
        said = f"{_('taken into use')}: {reason.strip()}" if reason.strip() else _("taken into use")
        LogEntry.objects.log_actions(user.pk, [reward_model], CHANGE, said, single_object=True)


def doubt(reward_model: RewardModel) -> str:
    """Why using it takes a reason, for people; empty when it takes none."""
    if not reward_model.is_passed:
        return _("It did not pass its check. Give a reason for using it all the same.")
    if reward_model.evidence.get("is_no_worse") is False:
        return _("It is worse than the one before. Give a reason for using it all the same.")
    if reward_model.run.snapshot and lineage.holds_retracted(reward_model.run.snapshot):
        return _("It learned from judgments that were retracted since. Give a reason for using it all the same.")
    return ""


def _activate(reward_model: RewardModel) -> None:
    list(RewardModel.objects.select_for_update().filter(campaign=reward_model.campaign_id).values_list("pk"))
    RewardModel.objects.filter(campaign=reward_model.campaign_id, is_active=True).update(is_active=False)
    RewardModel.objects.filter(pk=reward_model.pk).update(is_active=True)
    reward_model.is_active = True


@transaction.atomic
def put_away(reward_model: RewardModel, user: User, reason: str) -> bool:
    """Takes it out of use, and its scores with it: the campaign goes on without one. Recorded in its history in the admin.
    False when it was not in use (any more).
    """
    if not RewardModel.objects.filter(pk=reward_model.pk, is_active=True).update(is_active=False):
        return False
    reward_model.is_active = False
    rewards.forget(reward_model.campaign, reward_model.sha256)
    LogEntry.objects.log_actions(user.pk, [reward_model], CHANGE, reason, single_object=True)
    return True


def in_use(campaign: Campaign) -> RewardModel | None:
    """The campaign's reward model, if it reads the base that is served."""
    active = RewardModel.objects.filter(campaign=campaign, is_active=True)
    return active.filter(base_sha256=adapters.base().sha256).first()


def judge(rows: list[dict[str, Any]], min_pairs: int) -> tuple[bool, str, dict[str, Any]]:
    """(passed, verdict, evidence) by evaluation.json's rows: does it agree with people more often than a coin would, and
    no less often than the reward model that was in use? Intervals are the gate's, over prompts.
    """
    decided = [row for row in rows if row.get("label") != CHANCE]
    margins = np.array([row["margin"] for row in decided])
    before = np.array([row["incumbent_margin"] for row in decided])
    prompts = [row["prompt_sha256"] for row in decided]
    chance = gates.compare(margins, np.zeros(len(decided)), prompts)
    was_there = bool(before.any())
    change = gates.compare(margins, before, prompts) if was_there else None
    is_passed = gates.is_passed(chance, min_pairs)
    evidence = {
        **asdict(chance),
        "min_heldout_pairs": min_pairs,
        "ties_left_out": len(rows) - len(decided),
        "change": asdict(change) if change else None,
        "is_no_worse": change is None or change.high is None or change.high >= 0,
    }
    return is_passed, describe(chance, change, min_pairs), evidence


def describe(chance: Score, change: Score | None, min_pairs: int) -> str:
    """The verdict in words."""
    if chance.accuracy is None or chance.low is None or chance.high is None or chance.n_pairs < min_pairs:
        return f"not enough judgments to tell: {chance.n_pairs} held-out pairs, at least {min_pairs} wanted"
    if chance.n_prompts < gates.MIN_PROMPTS:
        return f"not enough prompts to tell: {chance.n_prompts} held-out prompts, at least {gates.MIN_PROMPTS} wanted"
    low, high = CHANCE + chance.low, CHANCE + chance.high
    said = f"{chance.accuracy:.1%} of {chance.n_pairs} held-out pairs, 95 % {low:.1%} to {high:.1%}"
    verdict = f"agrees with people on {said}" if chance.low > 0 else f"no better than chance: agrees on {said}"
    if change is None or change.difference is None:
        return verdict
    return f"{verdict}; than the one before: {gates.describe(change, min_pairs)}"


# --- files ------------------------------------------------------------------------------------------------------------
def check(folder: Path) -> tuple[dict[str, Any], str]:
    """(reward.json, sha256 of all files) of a reward model's folder. Raises InvalidAdapter."""
    base_sha256 = adapters.base().sha256
    shapes = artifacts.shapes(Path(settings.MODEL))
    adapter = artifacts.check(folder / ADAPTER, base_sha256=base_sha256, base_shapes=shapes, is_served=False)
    tensors = artifacts.header(folder / HEAD)
    if set(tensors) != {"weight"} or len(tensors["weight"].shape) != 2 or tensors["weight"].shape[0] != 1:
        raise InvalidAdapter(_("%s must hold one weight of shape (1, width).") % HEAD)
    artifacts.check_finite(folder / HEAD, tensors)
    card = _card(folder / CARD)
    if card.get("base_sha256") != base_sha256:
        raise InvalidAdapter(_("The reward model reads another base than the one that is served."))
    files = [folder / ADAPTER / artifacts.CONFIG, folder / HEAD, folder / CARD]
    return card, hashlib.sha256("".join([adapter.sha256, *map(artifacts.hash_of, files)]).encode()).hexdigest()


def _card(path: Path) -> dict[str, Any]:
    try:
        card = attempts.storable(json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _name: None))
        wanted = [card["temperature"], card["mean"], card["std"], card["max_tokens"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidAdapter(_("%(file)s cannot be used: %(error)s.") % {"file": CARD, "error": error}) from error
    if not all(type(value) in (int, float) and math.isfinite(value) for value in wanted) or wanted[0] <= 0:
        raise InvalidAdapter(_("%s holds an impossible number.") % CARD)
    return card


def _copy(source: Path, target: Path) -> None:
    """Its files and nothing else, read-only. Raises InvalidAdapter when one is missing or no plain file."""
    names = [f"{ADAPTER}/{name}" for name in (artifacts.CONFIG, artifacts.WEIGHTS, artifacts.MANIFEST)]
    for name in (*names, HEAD, CARD):
        file, copy = source / name, target / name
        if file.is_symlink() or not file.is_file():
            raise InvalidAdapter(_("The reward model has no file %s.") % name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy, follow_symlinks=False)
        copy.chmod(0o444)
