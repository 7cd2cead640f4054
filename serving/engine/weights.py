"""The weights of one version: the base as it lies in its folder, or the base with one LoRA adapter merged in.

Versions share every tensor that the adapter does not touch. Projections that read the same input are fused (q, k and v;
gate and up), so a layer has four matrix products.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from serving.engine.lora import Lora
from serving.engine.model_folder import ModelConfig, weight_files

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
OUT = ("self_attn.o_proj",)
DOWN = ("mlp.down_proj",)


class Linear:
    """y = x Wᵀ + b, with W packed into oneDNN's blocked layout on CPUs.

    Packing is worth it twice (measured on Zen 4, bf16, 2 threads): a one-row step through SmolLM2's linears takes 5.5 ms
    instead of 12.8 ms, and each row's result no longer depends on how many rows there are, as long as there are at
    least two. That is what makes a sequence's text independent of its company; `tests/serving/engine/test_model.py`
    holds it to that.
    """

    __slots__ = ("bias", "is_packed", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """weight: (n_out, n_in); bias: (n_out,)."""
        self.is_packed = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.is_packed else weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:  # (N, n_in) -> (N, n_out)
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Layer:
    input_norm: Tensor  # (H,)
    qkv: Linear
    out: Linear
    post_norm: Tensor  # (H,)
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    embedding: Tensor  # (V, H)
    layers: tuple[Layer, ...]
    final_norm: Tensor  # (H,)
    head: Linear
    head_dense: Tensor  # (V, H), for exact log-probabilities; the embedding itself when tied


class Checkpoint:
    """Named tensors of a model folder, copied out of its safetensors files when asked for.

    Copied, so that no mapping of a whole file stays in memory for the sake of one tensor.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._path: dict[str, Path] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                self._path |= dict.fromkeys(file.keys(), path)

    def __contains__(self, name: str) -> bool:
        return name in self._path

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._path[name], framework="pt") as file:
            return file.get_tensor(name).to(device=self.device, dtype=self.dtype, copy=True)


@torch.inference_mode()
def load(config: ModelConfig, checkpoint: Checkpoint) -> Weights:
    """The base. Raises KeyError naming a tensor that the checkpoint lacks."""
    embedding = checkpoint["model.embed_tokens.weight"]
    head_dense = embedding if config.is_tied else checkpoint["lm_head.weight"]
    return Weights(
        embedding=embedding,
        layers=tuple(_load_layer(checkpoint, i) for i in range(config.n_layers)),
        final_norm=checkpoint["model.norm.weight"],
        head=Linear(head_dense),
        head_dense=head_dense,
    )


def merge(base: Weights, checkpoint: Checkpoint, lora: Lora, check: Callable[[], None] = lambda: None) -> Weights:
    """A version of its own: base + scale·BA for every projection that the adapter touches, computed in float32.

    Reads the dense base from the checkpoint again (the resident one is packed). Slow path, for a background thread; `check`
    is called before each layer and ends the merge by raising.
    """
    fused = {"qkv": QKV, "out": OUT, "gate_up": GATE_UP, "down": DOWN}
    layers = []
    for i, layer in enumerate(base.layers):
        check()
        touched = {k: names for k, names in fused.items() if any(lora.touches(i, name) for name in names)}
        changes: dict[str, Any] = {k: _linear(checkpoint, i, names, lora) for k, names in touched.items()}
        layers.append(replace(layer, **changes))
    return replace(base, layers=tuple(layers))


def _load_layer(checkpoint: Checkpoint, i: int) -> Layer:
    return Layer(
        input_norm=checkpoint[f"model.layers.{i}.input_layernorm.weight"],
        qkv=_linear(checkpoint, i, QKV),
        out=_linear(checkpoint, i, OUT),
        post_norm=checkpoint[f"model.layers.{i}.post_attention_layernorm.weight"],
        gate_up=_linear(checkpoint, i, GATE_UP),
        down=_linear(checkpoint, i, DOWN),
    )


@torch.inference_mode()
def _linear(checkpoint: Checkpoint, i: int, names: tuple[str, ...], lora: Lora | None = None) -> Linear:
    """The named projections of layer i as one linear, with the adapter's share where it has one."""
    weights, biases = [], []
    for name in names:
        weight = checkpoint[f"model.layers.{i}.{name}.weight"]
        if lora and lora.touches(i, name):
            weight = rounded(weight.float() + lora.delta(i, name).to(weight.device), weight.dtype, seed=i)
        weights.append(weight)
        bias = f"model.layers.{i}.{name}.bias"
        if bias in checkpoint:
            biases.append(checkpoint[bias])
    if biases and len(biases) < len(names):
        raise KeyError(f"layer {i} has a bias for some of {', '.join(names)} only")
    return Linear(torch.cat(weights), torch.cat(biases) if biases else None)


def rounded(exact: Tensor, dtype: torch.dtype, *, seed: int) -> Tensor:
    """float32 `exact` in `dtype`; to bfloat16 up or down at random, so that the mean error is zero (same seed: same result).

    The base's weights lie on bfloat16's grid. Rounding base + change to the nearest of it drops every change below half a
    step: an adapter of two steps of DPO kept 70 % of its effect, one of sixteen 82 %, and so rounded 116 % and 98 %.
    """
    if dtype != torch.bfloat16:
        return exact.to(dtype)
    generator = torch.Generator(exact.device).manual_seed(seed)
    below = torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32, device=exact.device, generator=generator)
    # bfloat16 is the upper half of float32: a number below the lower half's place carries with the right probability.
    return ((exact.view(torch.int32) + below) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)
