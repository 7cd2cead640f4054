"""Best of n: more responses are sampled than people see, and a reward model says which of them are kept.

A prompt whose responses were sampled waits, "sampled", until they are scored. Then n_candidates of them are kept: the best,
or those that the reward model can hardly tell apart, whose comparison would teach it most. For a share of the prompts, the
campaign's `random_share`, chance keeps any: what is left out is left out for a reason that may be wrong, and those prompts
say so. `Response.sampling` holds of how many a response was kept and by what: {"of": 8, "kept_by": "best"}.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import numpy as np
from django.db import IntegrityError, transaction

from labeling.models import Campaign, Prompt, Response
from labeling.pairs import make_comparisons
from training import reward_models
from training.models import RewardModel

log = logging.getLogger(__name__)

WAITS = timedelta(minutes=30)  # for its scores; then chance decides, so that people have something to judge
LOWEST = -1e9  # the reward of what could not be scored
RANDOM = "random"
# What rows that fit no rule raise. A database that does not answer ends the round: it would fail them all.
UNUSABLE = (LookupError, TypeError, ValueError, IntegrityError)


def n_samples(campaign: Campaign) -> int:
    """How many responses are sampled to a prompt."""
    if campaign.n_samples <= campaign.n_candidates or reward_models.in_use(campaign) is None:
        return campaign.n_candidates
    return campaign.n_samples


def choose(now: datetime) -> int:
    """Chooses for every prompt whose samples are scored, or have waited too long; how many prompts."""
    waiting = Prompt.objects.filter(candidates_state="sampled", campaign__status="active").select_related("campaign")
    known: dict[int, RewardModel | None] = {}
    n_chosen = 0
    for prompt in waiting.order_by("id").iterator():
        if prompt.campaign_id not in known:
            known[prompt.campaign_id] = reward_models.in_use(prompt.campaign)
        try:
            n_chosen += _choose(prompt, known[prompt.campaign_id], now)
        except UNUSABLE:
            log.exception("prompt %d: its samples cannot be chosen from; the others go on", prompt.pk)
    return n_chosen


@transaction.atomic
def _choose(prompt: Prompt, reward_model: RewardModel | None, now: datetime) -> bool:
    if not Prompt.objects.select_for_update().filter(pk=prompt.pk, candidates_state="sampled").exists():
        return False
    samples = list(prompt.responses.filter(source="engine", is_kept=True, items=None).order_by("id"))
    is_scored = reward_model is not None and all(one.reward_model == reward_model.sha256 for one in samples)
    has_waited = prompt.candidates_claimed_at is None or prompt.candidates_claimed_at < now - WAITS
    if not is_scored and reward_model is not None and not has_waited:
        return False
    _keep(prompt.campaign, samples, is_scored, _rng(prompt))
    make_comparisons(prompt)
    Prompt.objects.filter(pk=prompt.pk).update(candidates_state="done")
    return True


def _keep(campaign: Campaign, samples: list[Response], is_scored: bool, rng: np.random.Generator) -> None:
    """Marks what is kept and what is not, and says why. Without samples (all of a later round said what earlier ones had
    said) there is nothing to mark.
    """
    if not samples:
        return
    kept_by = campaign.keeps if is_scored and rng.random() >= campaign.random_share else RANDOM
    rewards = np.array([LOWEST if one.reward is None else one.reward for one in samples])
    kept = set(KEEP[kept_by](rewards, min(campaign.n_candidates, len(samples)), rng))
    for index, response in enumerate(samples):
        response.is_kept = index in kept
        response.sampling = {**response.sampling, "of": len(samples), "kept_by": kept_by}
    Response.objects.bulk_update(samples, ["is_kept", "sampling"])


def _rng(prompt: Prompt) -> np.random.Generator:
    """The same draw for the same prompt and round."""
    digest = hashlib.sha256(f"best of {prompt.pk}:{prompt.candidates_round}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


# --- which k of n, by their rewards (n,) in logits ----------------------------------------------------------------------
def best(rewards: np.ndarray, k: int, rng: np.random.Generator) -> list[int]:
    """The highest: best-of-n sampling (Stiennon et al. 2020, arXiv 2009.01325, section 4.3)."""
    return np.argsort(-rewards, kind="stable")[:k].tolist()


def uncertain(rewards: np.ndarray, k: int, rng: np.random.Generator) -> list[int]:
    """The k whose rewards lie closest together; of equally close ones the higher.

    A pair teaches a Bradley–Terry model by p (1 − p), which falls with the distance of its rewards.
    """
    order = np.argsort(-rewards, kind="stable")
    spread = rewards[order[: len(order) - k + 1]] - rewards[order[k - 1 :]]
    first = int(np.argmin(spread))
    return order[first : first + k].tolist()


def any_of_them(rewards: np.ndarray, k: int, rng: np.random.Generator) -> list[int]:
    return rng.permutation(len(rewards))[:k].tolist()


KEEP: dict[str, Callable[[np.ndarray, int, np.random.Generator], Sequence[int]]] = {
    Campaign.Keeps.BEST: best,
    Campaign.Keeps.UNCERTAIN: uncertain,
    RANDOM: any_of_them,
}
