"""From logits to tokens: each sequence has its own sampler, whose randomness nothing else touches.

A draw uses one number of the sequence's own generator, so the same seed gives the same text whatever else is running.
"""

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

FIRST_CANDIDATES = 1024  # enough for nearly every top-p; a full sort of the vocabulary costs ten times as much


class BadLogits(RuntimeError):
    """The model answered with numbers that are not finite."""


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
    def changes_logits(self) -> bool:
        has_penalty = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(has_penalty or self.logit_bias)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its log-probability, its rank (1 is the most likely), and the most likely alternatives."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses one sequence's tokens. `draw` tells the choices of one prompt apart: each has its own random stream."""

    def __init__(self, params: SamplingParams, prompt: list[int], draw: int = 0) -> None:
        self.params = params
        self._random = random.Random(None if params.seed is None else f"{params.seed}:{draw}")  # noqa: S311
        self._counts: dict[int, int] = {}  # of generated tokens
        self._prompt = set(prompt) if params.repetition_penalty != 1 else set()

    @torch.inference_mode()
    def choose(self, logits: Tensor) -> tuple[int, TokenLogprob | None]:
        """logits: (V,) float32 -> the next token, with its raw log-probability if asked for. Raises BadLogits."""
        changed = self._change(logits) if self.params.changes_logits else logits
        token = self._draw(changed)
        self._counts[token] = self._counts.get(token, 0) + 1
        wanted = self.params.logprobs
        return token, None if wanted is None else token_logprob(torch.log_softmax(logits, -1), token, wanted)

    def _draw(self, logits: Tensor) -> int:
        greedy = int(logits.argmax())
        if not torch.isfinite(logits[greedy]):
            raise BadLogits("The model's output is not finite.")
        if self.params.temperature == 0:
            return greedy
        kept, ids = self._candidates(torch.softmax(logits / self.params.temperature, -1))
        # Inverse of the cumulative distribution, in double precision: one random number per token.
        cumulative = kept.double().cumsum(0)
        place = int(torch.searchsorted(cumulative, self._random.random() * cumulative[-1], right=True))
        place = min(place, len(kept) - 1)
        return place if ids is None else int(ids[place])

    def _candidates(self, probs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Probabilities that survive top-k, top-p and min-p, most likely first, with their ids (None: all, in order)."""
        top_k, top_p, min_p = self.params.top_k, self.params.top_p, self.params.min_p
        if not top_k and top_p >= 1 and not min_p:
            return probs, None
        n = min(top_k or len(probs), len(probs))
        kept, ids = probs.topk(min(n, FIRST_CANDIDATES))
        if len(kept) < n and (float(kept.sum()) < top_p or float(kept[-1]) >= min_p * float(kept[0])):
            kept, ids = probs.topk(n)
        total = kept.sum() if top_k else 1.0  # top-p counts what top-k left
        is_kept = (kept.cumsum(0) - kept) < top_p * total
        is_kept &= kept >= min_p * kept[0]
        return kept[is_kept], ids[is_kept]

    def _change(self, logits: Tensor) -> Tensor:
        """Repetition penalty (prompt and answer; Keskar et al. 2019), OpenAI's penalties (answer), logit bias."""
        params, logits = self.params, logits.clone()
        if params.repetition_penalty != 1 and (seen := self._prompt | self._counts.keys()):
            ids = torch.tensor(sorted(seen), device=logits.device)
            old = logits[ids]
            logits[ids] = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
        if self._counts and (params.presence_penalty or params.frequency_penalty):
            ids = torch.tensor(list(self._counts), device=logits.device)
            counts = torch.tensor(list(self._counts.values()), device=logits.device)
            logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
        for token, bias in params.logit_bias.items():
            logits[token] += bias
        return logits


def token_logprob(logprobs: Tensor, token: int, n_top: int) -> TokenLogprob:
    """logprobs: (V,). Ranks count the tokens that are strictly more likely."""
    own = logprobs[token]
    values, ids = logprobs.topk(n_top)
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(own), int((logprobs > own).sum()) + 1, top)
