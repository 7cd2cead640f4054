"""Sample responses to prompts from the engine, and hand them to labeling.

Chat comes first, so one prompt at a time is in the engine's hands: its k requests are sent together, which lets the
engine compute the prompt once. Each prompt is stored as soon as it is done, so the first pair is on screen early. On one
machine a run comes before a campaign's candidates too, as long as people have pairs of it to judge: both live on one
processor.
"""

import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Count, F, Q, QuerySet
from django.utils import timezone

from labeling.errors import Invalid
from labeling.models import Campaign, Prompt
from labeling.pairs import make_comparisons
from labeling.responses import add_response
from serving import adapters
from serving.client import ChatResult, Engine, EngineDown, EngineError, EngineSlow
from serving.locks import only_one
from serving.models import Adapter
from training import best_of
from training.models import Run

log = logging.getLogger(__name__)

TEMPERATURES = [0.2, 0.5, 0.7, 0.9]
TOP_P = 0.9
CLAIM_LASTS = timedelta(minutes=5)
MAX_ATTEMPTS = 3
SECONDS_PER_CALL = 25.0
MIN_RESPONSES = 2  # fewer distinct ones make no pair
N_AHEAD = 24  # open comparisons that keep people busy while a run has the processor


@dataclass(frozen=True)
class Draft:
    """One response to ask for."""

    temperature: float
    seed: int


def generate(seconds: float = SECONDS_PER_CALL) -> bool:
    """Serves wanting prompts one by one for about `seconds`; True when prompts are left and the engine answers.

    Only one call at a time does so on a host; another returns at once.
    """
    with only_one("candidates") as is_mine:
        if not is_mine:
            return False
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            prompt = claim(timezone.now())
            if prompt is None:
                return False
            try:
                _serve(prompt)
            except EngineDown as error:
                log.info("prompt %d waits: the engine is down (%s)", prompt.pk, error)
                _give_back(prompt)
                return False
        return wanted(timezone.now()).exists()


def wanted(now: datetime) -> QuerySet[Prompt]:
    """Prompts that want candidates: asked for, or claimed so long ago that the claim is void.

    While a run has the processor that the engine shares with it, campaigns with enough to judge meanwhile wait.
    """
    is_free = Q(candidates_state="wanted") | Q(candidates_state="claimed", candidates_claimed_at__lt=now - CLAIM_LASTS)
    prompts = Prompt.objects.filter(is_free, campaign__status="active", campaign__n_candidates__gt=0)
    if settings.HAS_EMBEDDED_ENGINE and Run.objects.filter(status=Run.Status.RUNNING).exists():
        return prompts.exclude(campaign__in=_ahead())
    return prompts


def _ahead() -> QuerySet[Campaign]:
    """Campaigns with enough open comparisons to keep people busy for a while."""
    n_open = Count("comparisons", filter=Q(comparisons__is_open=True))
    return Campaign.objects.alias(n_open=n_open).filter(n_open__gte=N_AHEAD)


def is_engine_idle(now: datetime) -> bool:
    """Whether less urgent work may ask the engine: no prompt waits for candidates, and no run shares its processor."""
    is_shared = settings.HAS_EMBEDDED_ENGINE and Run.objects.filter(status=Run.Status.RUNNING).exists()
    return not is_shared and not wanted(now).exists()


def claim(now: datetime) -> Prompt | None:
    """Takes the next prompt, the oldest first, and counts the attempt; None when none wants candidates."""
    for prompt in wanted(now).select_related("campaign").order_by("id")[:5]:
        same = Prompt.objects.filter(
            pk=prompt.pk,
            candidates_state=prompt.candidates_state,
            candidates_claimed_at=prompt.candidates_claimed_at,
        )
        if prompt.candidates_attempts >= MAX_ATTEMPTS:  # claimed again and again, and never a word after
            same.update(candidates_state="failed")
        elif same.update(
            candidates_state="claimed", candidates_claimed_at=now, candidates_attempts=F("candidates_attempts") + 1
        ):
            prompt.candidates_attempts += 1
            return prompt
    return None


def plan(prompt: Prompt) -> list[Draft]:
    """The responses to ask for: as many different seeds, also from those of earlier rounds, the temperatures in turn."""
    campaign = prompt.campaign
    temperatures = campaign.temperatures or TEMPERATURES
    n = best_of.n_samples(campaign)
    return [Draft(float(temperatures[i % len(temperatures)]), _seed(prompt, i)) for i in range(n)]


def _seed(prompt: Prompt, index: int) -> int:
    """Fixed by prompt, round, responses so far, attempt and index: reproducible; a retry or a new round says something else."""
    said = f"{prompt.candidates_round}:{prompt.responses.count()}:{prompt.candidates_attempts}"
    text = f"{prompt.sha256}:{said}:{index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1  # 31 bits: vLLM takes a C int


def _serve(prompt: Prompt) -> None:
    """Samples and stores the candidates of a claimed prompt. Raises EngineDown."""
    adapter = adapters.current()  # pinned: all candidates of a prompt come from one version
    drafts = plan(prompt)
    try:
        engines = adapters.ensure_loaded(adapter)
        results = _sample(engines[prompt.pk % len(engines)], adapter, prompt, drafts)
        is_stored = _store(prompt, adapter, list(zip(drafts, results, strict=True)))
    except (EngineError, EngineSlow, Invalid) as error:  # answers that take too long take so long every time
        log.warning("prompt %d, attempt %d: %s", prompt.pk, prompt.candidates_attempts, error)
        is_stored = False
    if not is_stored:
        _retry_or_fail(prompt)


def _sample(engine: Engine, adapter: Adapter, prompt: Prompt, drafts: list[Draft]) -> list[ChatResult]:
    """One answer per draft, asked for at once."""

    def ask(draft: Draft) -> ChatResult:
        sampling: dict[str, Any] = {"temperature": draft.temperature, "top_p": TOP_P, "seed": draft.seed}
        return engine.chat(adapter.engine_name, prompt.messages, max_tokens=prompt.campaign.max_tokens, **sampling)[0]

    with ThreadPoolExecutor(len(drafts)) as pool:
        return list(pool.map(ask, drafts))


@transaction.atomic
def _store(prompt: Prompt, adapter: Adapter, answers: list[tuple[Draft, ChatResult]]) -> bool:
    """Stores the distinct answers, makes comparisons of them, or leaves that to training.best_of, and ends the claim.

    False: too few, none is stored.
    """
    texts = {result.text.strip() for _draft, result in answers} - {""}
    if len(texts) < MIN_RESPONSES and not prompt.responses.exists():
        return False
    for draft, result in answers:
        sampling: dict[str, Any] = {"temperature": draft.temperature, "top_p": TOP_P, "seed": draft.seed}
        add_response(prompt, result.text, adapter, sampling=sampling, finish_reason=result.finish_reason)
    is_choice = best_of.n_samples(prompt.campaign) > prompt.campaign.n_candidates
    if not is_choice:
        make_comparisons(prompt)
    Prompt.objects.filter(pk=prompt.pk).update(candidates_state="sampled" if is_choice else "done")
    return True


def _retry_or_fail(prompt: Prompt) -> None:
    state = "wanted" if prompt.candidates_attempts < MAX_ATTEMPTS else "failed"
    Prompt.objects.filter(pk=prompt.pk).update(candidates_state=state)


def _give_back(prompt: Prompt) -> None:
    """The engine is down, which is not the prompt's fault: the attempt does not count."""
    Prompt.objects.filter(pk=prompt.pk, candidates_state="claimed").update(
        candidates_state="wanted", candidates_attempts=F("candidates_attempts") - 1
    )
