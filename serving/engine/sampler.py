"""From logits to tokens: each sequence has its own sampler, whose randomness nothing else touches.

`draw` says what a choice is; the native step's draw.h does the same for all rows at once. A draw uses one number of the
sequence's own generator, so the same seed gives the same text whatever else is running.
"""

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

FIRST_CANDIDATES = 1024  # enough for nearly every top-p; a full sort of the vocabulary costs ten times as much


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to end, as in the OpenAI API and vLLM's extensions of it."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # how many alternatives to report with each token
    prompt_logprobs: int | None = None

    @property
    def has_penalty(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    @property
    def changes_logits(self) -> bool:
        return self.has_penalty or bool(self.logit_bias)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its log-probability, its rank (1 is the most likely), and the most likely alternatives."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class Sampler:
    """One sequence's part in choosing its tokens. `draw` tells the choices of one prompt apart: each has its own random
    stream.

    What a request changes in the logits costs it a few passes over the vocabulary, however many tokens it names: the
    engine's thread works for all.
    """

    def __init__(self, params: SamplingParams, prompt: list[int], draw: int = 0) -> None:
        self.params = params
        self._random = random.Random(None if params.seed is None else f"{params.seed}:{draw}")  # noqa: S311
        self._uniform: float | None = None
        self._prompt = prompt if params.repetition_penalty != 1 else []
        self._counts: Tensor | None = None  # (V,) how often each token was generated; kept for penalties only
        self._is_in_prompt: Tensor | None = None  # (V,)
        self._biased = torch.tensor(list(params.logit_bias), dtype=torch.long)
        self._bias = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)

    def adjusted(self, logits: Tensor) -> Tensor:
        """logits (V,) with penalties and biases; the same tensor when there are none."""
        return self._change(logits) if self.params.changes_logits else logits

    def uniform(self) -> float:
        """The next draw's number, in [0, 1), the same until the draw is counted: a step that failed is done again. Greedy
        choices need none.
        """
        if self._uniform is None:
            self._uniform = self._random.random() if self.params.temperature else 0.0
        return self._uniform

    def count(self, token: int) -> None:
        """The token was chosen: penalties are for it from now on."""
        self._uniform = None
        if self._counts is not None:
            self._counts[token] += 1

    def _change(self, logits: Tensor) -> Tensor:
        """Repetition penalty (prompt and answer; Keskar et al. 2019), OpenAI's penalties (answer), logit bias."""
        params, logits = self.params, logits.clone()
        if params.has_penalty:
            counts, is_in_prompt = self._seen(logits)
            penalised = torch.where(logits > 0, logits / params.repetition_penalty, logits * params.repetition_penalty)
            logits = torch.where(is_in_prompt | (counts > 0), penalised, logits)
            logits -= params.presence_penalty * (counts > 0) + params.frequency_penalty * counts
        if len(self._biased):
            logits[self._biased.to(logits.device)] += self._bias.to(logits.device)
        return logits

    def _seen(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Made when they are first needed, before any token was chosen."""
        if self._counts is None or self._is_in_prompt is None:
            self._counts = torch.zeros_like(logits)
            self._is_in_prompt = torch.zeros_like(logits, dtype=torch.bool)
            self._is_in_prompt[torch.tensor(self._prompt, dtype=torch.long, device=logits.device)] = True
        return self._counts, self._is_in_prompt


@torch.inference_mode()
def draw(logits: Tensor, params: SamplingParams, uniform: float) -> int | None:
    """logits: (V,) float32, adjusted -> a token, or None when they are not finite."""
    greedy = int(logits.argmax())
    if not torch.isfinite(logits[greedy]):
        return None
    if params.temperature == 0:
        return greedy
    kept, ids = _candidates(torch.softmax((logits - logits[greedy]) / params.temperature, -1), params)
    # Inverse of the cumulative distribution, in double precision: one random number per token.
    cumulative = kept.double().cumsum(0)
    place = min(int(torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)), len(kept) - 1)
    return place if ids is None else int(ids[place])


def _candidates(probs: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """Probabilities that survive min-p, top-k and then top-p of what these left, with their ids (None: all of them), in the
    order of ids.
    """
    top_k, top_p, min_p = params.top_k, params.top_p, params.min_p
    if not top_k and top_p >= 1 and not min_p:
        return probs, None
    n = min(top_k or len(probs), len(probs))
    kept, ids = probs.topk(min(n, FIRST_CANDIDATES))
    # What top-p counts ends within the first ones only where min-p ends it, or all of the vocabulary is counted.
    if len(kept) < n and kept[-1] >= min_p * kept[0] and (top_k or min_p or float(kept.sum()) < top_p):
        kept, ids = probs.topk(n)
    is_kept = kept >= min_p * kept[0]
    total = kept[is_kept].sum() if top_k or min_p else 1.0
    is_kept &= (kept.cumsum(0) - kept) < top_p * total
    ids, order = ids[is_kept].sort()
    return kept[is_kept][order], ids


def token_logprob(logprobs: Tensor, token: int, n_top: int) -> TokenLogprob:
    """logprobs: (V,). Ranks count the tokens that are strictly more likely."""
    own = logprobs[token]
    values, ids = logprobs.topk(n_top)
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(own), int((logprobs > own).sum()) + 1, top)
