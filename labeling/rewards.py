"""What models make of responses: a reward model's score where a campaign has one, else the newest policy's implicit reward.

The only writer of `Response.reward`, `rewarded_by` and `reward_model`. A reward model scores in a process of its own, which
training supervises: `wanted_from` says what, `store` takes it. The implicit reward is DPO's, measured here on the engine. Chat comes first: one request is in the engine's hands at a time, for
some seconds a call, and who calls sees to it that candidates and runs come before (training.tasks).
"""

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet

from labeling.models import Campaign, Comparison, Prompt, Response
from labeling.pairs import want_plan
from serving import adapters
from serving.client import Engine, EngineDown, EngineError
from serving.locks import only_one
from serving.models import Adapter

log = logging.getLogger(__name__)

NEEDED_BY = (Campaign.Strategy.DIFFERENT, Campaign.Strategy.UNCERTAINTY, Campaign.Strategy.D_OPTIMAL)
WINDOW = 500  # the next open comparisons of a campaign whose responses are scored; a response takes about a second
SECONDS_PER_CALL = 15.0
ROWS_PER_TRANSACTION = 200  # SQLite has one writer at a time
BETA = 0.1  # where the run that made the adapter had none
SERVER_ERROR = 500


@dataclass(frozen=True)
class Reward:
    """`value` in logits: the model's own odds that a response beats another are exp of the difference. It is a sum over
    `n_tokens`, so that it varies more the longer the response is.
    """

    value: float
    n_tokens: int


def score(seconds: float = SECONDS_PER_CALL, *, but: Collection[int] = ()) -> bool:
    """Scores responses that the current adapter has not scored, for about `seconds`; True when some are left and the engine
    answers. With the base alone there is nothing to score: its implicit reward is 0 everywhere.

    A campaign whose last response was scored asks for a new plan. Campaigns in `but`, by number, have a reward model. Only
    one call at a time does so on a host.
    """
    campaigns = _campaigns().exclude(pk__in=but)
    with only_one("rewards") as is_mine:
        adapter = adapters.current() if is_mine and campaigns.exists() else None
        if adapter is None or adapter.is_base:
            return False
        ends = time.monotonic() + seconds
        for campaign in campaigns:
            try:
                is_done = _score_campaign(campaign, adapter, ends)
            except (EngineDown, EngineError) as error:
                log.info("responses wait for their reward: %s", error)
                return False
            if not is_done:
                return True
    return False


def _campaigns() -> QuerySet[Campaign]:
    return Campaign.objects.filter(status=Campaign.Status.ACTIVE, strategy__in=NEEDED_BY).order_by("pk")


def unscored(campaign: Campaign, adapter: Adapter) -> QuerySet[Response]:
    """Responses of the campaign's next WINDOW open comparisons that this adapter has not scored."""
    responses = Response.objects.filter(_is_coming(campaign))
    return responses.filter(~Q(rewarded_by=adapter) | Q(rewarded_by=None)).order_by("pk").distinct()


def _is_coming(campaign: Campaign) -> Q:
    coming = Comparison.objects.filter(campaign=campaign, is_open=True).order_by("sort_key", "id")[:WINDOW]
    return Q(items__comparison__in=coming.values("pk"))


def wanted_from(campaign: Campaign, sha256: str) -> QuerySet[Response]:
    """Responses that this reward model has not scored: those of the next WINDOW open comparisons, if the campaign's
    strategy reads rewards, and those that best of n is to choose from.
    """
    wanted = Q(prompt__campaign=campaign, prompt__candidates_state="sampled", source="engine", items=None)
    if campaign.strategy in NEEDED_BY:
        wanted |= _is_coming(campaign)
    return Response.objects.filter(wanted).exclude(reward_model=sha256).order_by("pk").distinct()


def store(campaign: Campaign, sha256: str, values: Mapping[int, float | None]) -> None:
    """Writes a reward model's scores in logits, by response; None: it could not be scored. Asks for a new plan."""
    ids = list(values)
    for start in range(0, len(ids), ROWS_PER_TRANSACTION):
        pks = ids[start : start + ROWS_PER_TRANSACTION]
        rows = [Response(pk=pk, reward=values[pk], rewarded_by=None, reward_model=sha256) for pk in pks]
        with transaction.atomic():
            Response.objects.bulk_update(rows, ["reward", "rewarded_by", "reward_model"])
    want_plan(campaign)


def forget(campaign: Campaign, sha256: str) -> None:
    """Takes back what a reward model said in a campaign, and asks for a plan without it."""
    said = Response.objects.filter(prompt__campaign=campaign, reward_model=sha256)
    if said.update(reward=None, rewarded_by=None, reward_model=""):
        want_plan(campaign)


def _score_campaign(campaign: Campaign, adapter: Adapter, ends: float) -> bool:
    """Whether all of them are scored, before `ends`. Raises EngineDown, EngineError."""
    waiting = list(unscored(campaign, adapter).select_related("prompt"))
    if not waiting:
        return True
    engines = adapters.ensure_loaded(adapter)
    for number, response in enumerate(waiting):
        if number and time.monotonic() > ends:
            return False
        _store(response, adapter, engines[response.pk % len(engines)])
    want_plan(campaign)
    return True


def _store(response: Response, adapter: Adapter, engine: Engine) -> None:
    """A response that the engine refuses (too long for it, say) is marked as done without a reward.

    Raises EngineDown, and EngineError when the engine failed.
    """
    try:
        value = measure(engine, adapter, response.prompt, response.text).value
    except EngineError as error:
        if error.status >= SERVER_ERROR:
            raise
        log.warning("response %d has no reward: %s", response.pk, error)
        value = None
    Response.objects.filter(pk=response.pk).update(reward=value, rewarded_by=adapter, reward_model="")


def measure(engine: Engine, adapter: Adapter, prompt: Prompt, text: str) -> Reward:
    """β Σ_t [log π_adapter(y_t | x, y_<t) − log π_base(y_t | x, y_<t)] over the response's tokens, the end of the turn among
    them: r(x, y) up to a term of the prompt alone (Rafailov et al. 2023, "Direct Preference Optimization", equation 5).

    Raises EngineDown, EngineError.
    """
    base = settings.BASE_MODEL_NAME
    before = engine.tokenize(base, prompt.messages, is_open=True)
    answer = {"role": "assistant", "content": text}
    tokens = engine.tokenize(base, [*prompt.messages, answer], is_open=False)
    n_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, tokens, strict=False)))
    [of_adapter] = engine.prompt_logprobs(adapter.engine_name, [tokens])
    [of_base] = engine.prompt_logprobs(base, [tokens])
    ratios = zip(of_adapter, of_base, strict=True)
    effects = [after - at_first for after, at_first in ratios][n_shared - 1 :]  # entry t − 1 is of token t
    return Reward(beta(adapter) * sum(effects), len(effects))


def beta(adapter: Adapter) -> float:
    """The β that the adapter was trained with."""
    value = (adapter.manifest.get("params") or {}).get("beta", BETA)
    return float(value) if isinstance(value, int | float) and value > 0 else BETA
