"""What the model writes now: sampled responses, by transformers' layers under plain attention.

The trainer's attention reads packed rows and keeps no keys and values, so it cannot generate. transformers' `generate`
could, but draws a random number for every entry of the vocabulary, 22 ms for 24 responses' next tokens, by which a
response depends on those that it is generated with. Here each has random
numbers of its own, by its place among the prompts and the seed, so what is drawn does not depend on what it is generated
with; the trainer's random numbers and attention stay as they were: a run that samples in between takes the same steps.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StaticCache

from training.ml.data import end_of_turn
from training.ml.errors import TrainingError
from training.ml.memory import in_smaller_parts
from training.ml.rows import Tokens

ATTENTION = "sdpa"  # knows padding, and every architecture in transformers has it
DRAWN_BY = "one uniform number a token"  # changes with how seeds become tokens
ROUND = 32  # prompts are filled up to a multiple, for the kernels' sake
BATCH = 32  # prompts of similar length that are generated together; fewer when out of memory


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tokens],
    n_tokens: int,
    seed: int,
    *,
    temperature: float = 1.0,
) -> list[list[int]]:
    """One response to each prompt, of at most `n_tokens` tokens, under whichever adapter is active in `model`.

    A finished response ends with the end-of-turn token, as the responses of a `Pair` do; an unfinished one has
    `n_tokens` tokens without it. At temperature 1 the tokens follow the model's own distribution, so the mean of
    log p − log q over them estimates KL(p ‖ q) per token; 0 takes the likeliest token. Raises NotFinite.
    """
    end = end_of_turn(tokenizer)
    writer = _Writer(model, end, n_tokens, temperature)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(len(prompts), n_tokens, dtype=torch.float64, generator=generator)

    def by(size: int) -> list[list[int]]:
        with _generating(model):
            return [_until(end, response) for response in _by(size, writer, prompts, numbers)]

    return in_smaller_parts(by, BATCH, 1)


def _by(size: int, writer: "_Writer", prompts: Sequence[Tokens], numbers: torch.Tensor) -> list[list[int]]:
    """The responses in the prompts' order, generated `size` at a time."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # little padding
    found: dict[int, list[int]] = {}
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        found |= dict(zip(batch, writer.write([prompts[i] for i in batch], numbers[batch]), strict=True))
    return [found[i] for i in range(len(prompts))]


@contextmanager
def _generating(model: PreTrainedModel) -> Iterator[None]:
    """Plain attention."""
    attention = model.config._attn_implementation
    with torch.no_grad():
        model.set_attn_implementation(ATTENTION)
        try:
            yield
        finally:
            model.set_attn_implementation(attention)


class NotFinite(TrainingError):
    """The model writes nothing: its logits are no numbers."""

    def __init__(self) -> None:
        super().__init__("The model's logits are not finite numbers; train again with a lower learning rate.", "loss")


@dataclass(frozen=True)
class _Writer:
    model: PreTrainedModel
    end: int
    n_tokens: int  # N
    temperature: float

    def write(self, prompts: Sequence[Tokens], numbers: torch.Tensor) -> list[list[int]]:
        """Prompts filled up on the left to a common length P -> up to N new tokens of each, drawn by `numbers` (B, N)."""
        width = max(map(len, prompts)) + -max(map(len, prompts)) % ROUND
        places = [[self.end] * (width - len(p)) + list(p) for p in prompts]
        ids = torch.tensor(places, device=self.model.device)  # (B, P)
        counts = torch.tensor([len(p) for p in prompts], device=ids.device)[:, None]  # (B, 1)
        # What fills up, before a prompt, is hidden; so is what comes after the token at hand, by being in its future.
        room = torch.arange(width + self.n_tokens, device=ids.device)
        seen = (room >= width - counts).long()  # (B, P + N)
        cache = StaticCache(config=self.model.config, max_cache_len=width + self.n_tokens)
        written: list[torch.Tensor] = []
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=ids.device)
        for start, number in enumerate(numbers.to(ids.device).T, width):
            first = start - ids.shape[1]
            at = (room[first:start] - width + counts).clamp(min=0)  # (B, P), then (B, 1)
            logits = self._logits(ids, seen[:, :start], at, cache)
            token = draw(logits / self.temperature, number) if self.temperature else logits.argmax(-1)  # (B,)
            written.append(token)
            ended |= token == self.end
            if ended.all():
                break
            ids = token[:, None]
        return torch.stack(written, 1).tolist()

    def _logits(
        self, ids: torch.Tensor, seen: torch.Tensor, positions: torch.Tensor, cache: StaticCache
    ) -> torch.Tensor:
        """Of what follows tokens at positions (B, S), `seen` (B, K) telling which of those up to them are real: (B, V)."""
        decoder: Any = self.model.get_decoder()
        states = decoder(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]  # (B, W)
        # As rows of their own: for a strided view torch would copy the head's weights once for each prompt.
        logits = self.model.get_output_embeddings()(states.contiguous()).float()  # (B, V)
        if not logits.amax(-1).isfinite().all():
            raise NotFinite
        return logits


def draw(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """(B, V), (B,) from [0, 1) -> (B,) one token of each row's distribution: where its distribution function passes the
    row's number."""
    levels = logits.softmax(-1).cumsum(-1, dtype=torch.float64)  # (B, V)
    at = numbers[:, None] * levels[:, -1:]
    return torch.searchsorted(levels, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def _until(end: int, response: list[int]) -> list[int]:
    """Up to the first end-of-turn token and with it; what follows is filling."""
    return response[: response.index(end) + 1] if end in response else response
