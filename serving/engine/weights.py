"""The weights of one version: the base as it lies in its folder, or the base with one LoRA adapter merged in.

Versions share every tensor that the adapter does not touch. Projections that read the same input are fused (q, k and v;
gate and up), so a layer has four matrix products.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from serving.engine.lora import Lora, shape
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


class Layout(Protocol):
    """How the model that is to use them wants matrices to lie; what it makes of one is its own."""

    sums_in_float32: bool  # products come out as float32, so scores need no dense copy of the head

    def fresh(self) -> "Layout":
        """For the matrices of another version, which are freed together."""

    def linear(self, weight: Tensor, bias: Tensor | None) -> Any:
        """weight: (n_out, n_in); bias: (n_out,)."""

    def gated(self, weight: Tensor, bias: Tensor | None) -> Any:
        """Gate's rows, then up's: weight (2·I, n_in), bias (2·I,)."""


class TorchLayout:
    """For `serving.engine.model.Model`."""

    sums_in_float32 = False
    linear = gated = staticmethod(Linear)

    def fresh(self) -> "TorchLayout":
        return self


@dataclass(frozen=True, slots=True)
class Layer:
    """Linear projections as the layout made them."""

    input_norm: Tensor  # (H,)
    qkv: Any
    out: Any
    post_norm: Tensor  # (H,)
    gate_up: Any
    down: Any


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Weights:
    """Equal to itself only: it is its tensors."""

    embedding: Tensor  # (V, H)
    layers: tuple[Layer, ...]
    final_norm: Tensor  # (H,)
    head: Any
    head_dense: Tensor | None  # (V, H), the embedding itself when tied; None where the layout has an exact head


class Checkpoint:
    """Named tensors of a model folder, copied out of its safetensors files when asked for; `layout` is for its matrices.

    Copied, so that no mapping of a whole file stays in memory for the sake of one tensor. Not for two threads at a time.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device, layout: Layout | None = None) -> None:
        self.dtype, self.device, self.layout = dtype, device, layout or TorchLayout()
        self._path: dict[str, Path] = {}
        self._files: dict[Path, Any] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                self._path |= dict.fromkeys(file.keys(), path)

    def __contains__(self, name: str) -> bool:
        return name in self._path

    def size(self, name: str) -> tuple[int, ...]:
        with safe_open(self._path[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    @contextmanager
    def opened(self) -> Iterator[None]:
        """While many tensors are read one after the other, by one thread: each file is opened once."""
        with ExitStack() as stack:
            self._files = {p: stack.enter_context(safe_open(p, framework="pt")) for p in set(self._path.values())}
            try:
                yield
            finally:
                self._files = {}

    def __getitem__(self, name: str) -> Tensor:
        path = self._path[name]
        with nullcontext(self._files[path]) if self._files else safe_open(path, framework="pt") as file:
            return file.get_tensor(name).to(device=self.device, dtype=self.dtype, copy=True)


@torch.inference_mode()
def load(config: ModelConfig, checkpoint: Checkpoint) -> Weights:
    """The base. Raises KeyError naming a tensor that the checkpoint lacks, RuntimeError naming one of another size."""
    _check_sizes(config, checkpoint)
    layout = checkpoint.layout.fresh()
    embedding = checkpoint["model.embed_tokens.weight"]
    head = embedding if config.is_tied else checkpoint["lm_head.weight"]
    return Weights(
        embedding=embedding,
        layers=tuple(_load_layer(checkpoint, layout, i) for i in range(config.n_layers)),
        final_norm=checkpoint["model.norm.weight"],
        head=layout.linear(head, None),
        head_dense=None if layout.sums_in_float32 else head,
    )


def _check_sizes(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """The native step reads as much as config.json says, whatever is there."""
    hidden, vocabulary = (config.hidden_size,), (config.vocab_size, config.hidden_size)
    sizes = {"model.embed_tokens.weight": vocabulary, "model.norm.weight": hidden}
    if not config.is_tied:
        sizes["lm_head.weight"] = vocabulary
    for i in range(config.n_layers):
        at = f"model.layers.{i}"
        sizes |= {f"{at}.input_layernorm.weight": hidden, f"{at}.post_attention_layernorm.weight": hidden}
        for name in (*QKV, *OUT, *GATE_UP, *DOWN):
            sizes[f"{at}.{name}.weight"] = shape(config, name)
            if f"{at}.{name}.bias" in checkpoint:
                sizes[f"{at}.{name}.bias"] = shape(config, name)[:1]
    for name, size in sizes.items():
        if (found := checkpoint.size(name)) != size:
            raise RuntimeError(f"{name} has the shape {found} and config.json says {size}")


def merge(base: Weights, checkpoint: Checkpoint, lora: Lora, check: Callable[[], None] = lambda: None) -> Weights:
    """A version of its own: base + scale·BA for every projection that the adapter touches, computed in float32.

    Reads the dense base from the checkpoint again (the resident one is packed). Slow path, for a background thread; `check`
    is called before each projection, may wait, and ends the merge by raising.
    """
    fused = {"qkv": QKV, "out": OUT, "gate_up": GATE_UP, "down": DOWN}
    layout, layers = checkpoint.layout.fresh(), []
    with checkpoint.opened():
        for i, layer in enumerate(base.layers):
            touched = {k: names for k, names in fused.items() if any(lora.touches(i, name) for name in names)}
            changes: dict[str, Any] = {
                k: _linear(checkpoint, layout, i, names, lora, check) for k, names in touched.items()
            }
            layers.append(replace(layer, **changes))
    return replace(base, layers=tuple(layers))


def _load_layer(checkpoint: Checkpoint, layout: Layout, i: int) -> Layer:
    return Layer(
        input_norm=checkpoint[f"model.layers.{i}.input_layernorm.weight"],
        qkv=_linear(checkpoint, layout, i, QKV),
        out=_linear(checkpoint, layout, i, OUT),
        post_norm=checkpoint[f"model.layers.{i}.post_attention_layernorm.weight"],
        gate_up=_linear(checkpoint, layout, i, GATE_UP),
        down=_linear(checkpoint, layout, i, DOWN),
    )


@torch.inference_mode()
def _linear(
    checkpoint: Checkpoint,
    layout: Layout,
    i: int,
    names: tuple[str, ...],
    lora: Lora | None = None,
    check: Callable[[], None] = lambda: None,
) -> Any:
    """The named projections of layer i as one linear, with the adapter's share where it has one."""
    weights, biases = [], []
    for name in names:
        check()
        weight = checkpoint[f"model.layers.{i}.{name}.weight"]
        if lora and lora.touches(i, name):
            weight = rounded(lora.applied(i, name, weight), weight.dtype, seed=i)
        weights.append(weight)
        bias = f"model.layers.{i}.{name}.bias"
        if bias in checkpoint:
            biases.append(checkpoint[bias])
    if biases and len(biases) < len(names):
        raise KeyError(f"layer {i} has a bias for some of {', '.join(names)} only")
    check()
    make = layout.gated if names is GATE_UP else layout.linear
    return make(torch.cat(weights), torch.cat(biases) if biases else None)


def rounded(exact: Tensor, dtype: torch.dtype, *, seed: int) -> Tensor:
    """float32 `exact` in `dtype`; to bfloat16 up or down at random, so that the mean error is zero (same seed: same result).

    The base's weights lie on bfloat16's grid. Rounding base + change to the nearest of it drops every change below half a
    step: an adapter of two steps of DPO kept 70 % of its effect, one of sixteen 82 %, and so rounded 116 % and 98 %.
    """
    if dtype != torch.bfloat16:
        return exact.to(dtype)
    # numpy's generators are four times as fast as torch's; on the CPU, which makes them, that is half of the work.
    n = math.ceil(exact.numel() / 4)  # of 64 bits each
    noise = np.random.SFC64(seed).random_raw(n).view(np.int16)[: exact.numel()].reshape(tuple(exact.shape))
    # bfloat16 is the upper half of float32: a number below the lower half's place carries with the right probability.
    bits = exact.view(torch.int32) + torch.from_numpy(noise).to(exact.device)
    return bits.add_(1 << 15).bitwise_right_shift_(16).to(torch.int16).view(torch.bfloat16)
