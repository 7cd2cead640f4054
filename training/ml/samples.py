"""What the model writes now: sampled responses, by transformers' own generation under plain attention.

The trainer's attention reads packed rows and keeps no keys and values, so it cannot generate. The samples depend on the
weights, the prompts and the seed alone, and leave the trainer's random numbers and attention as they were: a run that
samples in between takes the same steps as one that does not.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from training.ml.data import end_of_turn
from training.ml.memory import in_smaller_parts
from training.ml.rows import Tokens

ATTENTION = "sdpa"  # knows padding, and every architecture in transformers has it
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
    log p − log q over them estimates KL(p ‖ q) per token; 0 takes the likeliest token.
    """
    end = end_of_turn(tokenizer)
    config = _config(end, n_tokens, temperature)

    def by(size: int) -> list[list[int]]:
        with _generating(model, seed):
            return [_until(end, response) for response in _by(size, model, prompts, config)]

    return in_smaller_parts(by, BATCH, 1)


def _by(size: int, model: PreTrainedModel, prompts: Sequence[Tokens], config: GenerationConfig) -> list[list[int]]:
    """The responses in the prompts' order, generated `size` at a time."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # little padding
    found: dict[int, list[int]] = {}
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        found |= dict(zip(batch, _batch(model, [prompts[i] for i in batch], config), strict=True))
    return [found[i] for i in range(len(prompts))]


@contextmanager
def _generating(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Plain attention, a seed and no defaults of the model's own (a repetition penalty would hide repetition)."""
    attention, defaults = model.config._attn_implementation, model.generation_config
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        model.set_attn_implementation(ATTENTION)
        model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            model.set_attn_implementation(attention)
            model.generation_config = defaults


def _config(end: int, n_tokens: int, temperature: float) -> GenerationConfig:
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    return GenerationConfig(max_new_tokens=n_tokens, eos_token_id=end, pad_token_id=end, **how)


def _batch(model: PreTrainedModel, prompts: Sequence[Tokens], config: GenerationConfig) -> list[list[int]]:
    """Prompts filled up on the left to the longest, P tokens -> the N new tokens of each."""
    longest = max(map(len, prompts))
    fill = config.pad_token_id
    ids = torch.tensor([[fill] * (longest - len(p)) + list(p) for p in prompts], device=model.device)  # (B, P)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)  # (B, P)
    read = _read(model, ids[:, :-1], mask[:, :-1]) if longest > 1 else None
    generate = cast(Callable[..., torch.Tensor], model.generate)  # causal models have it, PreTrainedModel does not
    filled = generate(input_ids=ids, attention_mask=mask, past_key_values=read, generation_config=config)
    return filled[:, longest:].tolist()  # of (B, P + N)


def _read(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> DynamicCache:
    """Keys and values of all but the prompts' last tokens, (B, P − 1).

    Given whole prompts, `generate` takes the last position's hidden states as a strided view, for which torch copies the
    head's weights once for each prompt: 57 MB and 0.1 s each with the 135M model.
    """
    cache = DynamicCache(config=model.config)
    places = (mask.cumsum(-1) - 1).clamp(min=0)  # (B, P − 1)
    model.get_decoder()(input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
    return cache


def _until(end: int, response: list[int]) -> list[int]:
    """Up to the first end-of-turn token and with it; what follows is filling."""
    return response[: response.index(end) + 1] if end in response else response
