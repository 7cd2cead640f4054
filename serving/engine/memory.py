"""How many bytes things take, reckoned before they are made. Large pages may add 2 MiB to each 64 (`native.pages`)."""

import torch

from serving.engine import lora
from serving.engine.lora import Lora
from serving.engine.model_folder import ModelConfig
from serving.engine.weights import DOWN, GATE_UP, OUT, QKV

MATRICES = (QKV, OUT, GATE_UP, DOWN)  # of a layer; a version has its own copy of those that its adapter touches


def of_base(config: ModelConfig, itemsize: int, *, sums_in_float32: bool) -> int:
    """Weights of the base: its layers, the embedding and the head, and that once more where scores need it dense (see
    `weights.Layout`).
    """
    n_vocabulary = 2 if config.is_tied or sums_in_float32 else 3
    per_layer = sum(_size(config, names) for names in MATRICES)
    return itemsize * (config.n_layers * per_layer + n_vocabulary * config.vocab_size * config.hidden_size)


def of_version(config: ModelConfig, adapter: Lora, itemsize: int) -> int:
    """Weights that a version does not share with the base."""
    return itemsize * sum(
        _size(config, names)
        for layer in range(config.n_layers)
        for names in MATRICES
        if any(adapter.touches(layer, name) for name in names)
    )


def of_token(config: ModelConfig, itemsize: int) -> int:
    """Keys and values of one token."""
    return itemsize * config.n_layers * 2 * config.n_kv_heads * config.head_dim


def is_exhausted(error: Exception) -> bool:
    """Whether there is no memory for what was asked: torch has a type for it on GPUs only."""
    is_of_torch = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_of_torch)


def _size(config: ModelConfig, names: tuple[str, ...]) -> int:
    return sum(n_out * n_in for n_out, n_in in (lora.shape(config, name) for name in names))
