"""The step in C++, for bfloat16 on CPUs: the same interface as `serving.engine.model.Model`.

What it is for, measured on 2 cores of Zen 4 with SmolLM2-135M in bfloat16, milliseconds of a decode step at 1, 4, 8 and
32 sequences: by torch 22.9, 24.1, 32, 83; here 7.6, 9.2, 11.5, 34. Reading the weights once takes 5 at this machine's
55 GB/s. Its activations stay float32 between the products, so its logits are nearer to exact ones (mean error 0.05,
torch's bfloat16 0.10). Beside busy processes torch's step takes ten times as long, this one 1.1 to 1.8 times: its threads
wait for no sleeper (pool.h). And while it runs, Python's lock is free for the server.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from serving.engine.model import Model, Segment, inverse_frequencies
from serving.engine.model_folder import ModelConfig
from serving.engine.native.compiler import Unavailable
from serving.engine.native.pages import Pages
from serving.engine.sampler import Sampler, TokenLogprob
from serving.engine.weights import Weights

PANEL = 32  # outputs of a panel, as in step.cpp
HALF_PANEL = 16
MAX_HEAD_DIM = 256

SEGMENT = np.dtype([("store", "u8"), ("capacity", "i8"), ("start", "i4"), ("n_tokens", "i4")])
DRAW = np.dtype(
    [("uniform", "f8"), ("temperature", "f4"), ("top_p", "f4"), ("min_p", "f4"), ("top_k", "i4")], align=True
)


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """weight: (n_out / 32, n_in / 2, 32 · 2); bias: (n_out,) or None."""

    weight: Tensor
    bias: Tensor | None


class PackedLayout:
    """Matrices as step.cpp reads them."""

    sums_in_float32 = True

    def __init__(self) -> None:
        self._pages = Pages()

    def fresh(self) -> "PackedLayout":
        return PackedLayout()

    def linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """weight: (n_out, n_in); bias: (n_out,)."""
        n_out, n_in = weight.shape
        pairs = weight.contiguous().view(torch.int32)  # (n_out, n_in / 2)
        packed = self._pages.copied(pairs.view(n_out // PANEL, PANEL, n_in // 2).transpose(1, 2))
        return PackedLinear(packed.view(torch.bfloat16), bias)

    def gated(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """weight: (2·I, n_in), gate's rows first. A panel gets 16 of gate and the 16 of up that belong to them."""
        return self.linear(_paired(weight), None if bias is None else _paired(bias))


def _paired(rows: Tensor) -> Tensor:
    return rows.view(2, -1, HALF_PANEL, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)


class NativeModel(Model):
    """Called by one thread at a time; `n_threads` of its own, the caller's included, share the work."""

    def __init__(self, config: ModelConfig, context: int, library: ctypes.CDLL, n_threads: int) -> None:
        """Raises Unavailable when the shape does not fit step.cpp."""
        super().__init__(config, context, torch.bfloat16, torch.device("cpu"))
        check_shape(config)
        self._library = library
        self._tables: WeakKeyDictionary[Weights, _Table] = WeakKeyDictionary()
        angles = torch.outer(torch.arange(context).float(), inverse_frequencies(config))  # (context, D/2)
        self._angles = (angles.cos().contiguous(), angles.sin().contiguous())
        library.runner_new.restype = ctypes.c_void_p
        pointers = [ctypes.c_void_p(part.data_ptr()) for part in self._angles]
        made = library.runner_new(ctypes.byref(_shape(config)), n_threads, context, *pointers)
        self._runner = ctypes.c_void_p(made)

    def __del__(self) -> None:
        if runner := getattr(self, "_runner", None):
            self._library.runner_free(runner)

    def hidden(self, weights: Weights, segments: list[Segment]) -> Tensor:
        ids = np.array([token for segment in segments for token in segment.tokens], dtype=np.int32)
        rows = [self._row(segment) for segment in segments]
        found = torch.empty(len(ids), self.config.hidden_size)
        self._call("runner_hidden", self._table(weights), np.array(rows, SEGMENT), len(rows), ids, found)
        return found

    def logits(self, weights: Weights, hidden: Tensor) -> Tensor:
        found = torch.empty(len(hidden), self.config.vocab_size)
        self._call("runner_logits", self._table(weights), hidden.contiguous(), len(hidden), found)
        return found

    def float32_logits(self, weights: Weights, hidden: Tensor) -> Tensor:
        """The same as `logits`, since sums are float32 here: rounding the head's input moves a log-probability by 0.008
        (rms), and everything before it by 0.017, measured with SmolLM2-135M against float32 throughout.
        """
        return self.logits(weights, hidden)

    def rank(self, logits: Tensor, tokens: Sequence[int], n_top: int) -> list[TokenLogprob]:
        n = len(tokens)
        logprobs, ranks = np.empty(n, np.float32), np.empty(n, np.int32)
        top, of_top = np.empty((n, n_top), np.int32), np.empty((n, n_top), np.float32)
        logits, own = logits.contiguous(), np.array(tokens, np.int32)
        self._call("runner_rank", logits, own, n, n_top, logprobs, ranks, top, of_top)
        rows = zip(tokens, logprobs.tolist(), ranks.tolist(), top.tolist(), of_top.tolist(), strict=True)
        return [
            TokenLogprob(token, logprob, rank, tuple(zip(ids, values, strict=True)))
            for token, logprob, rank, ids, values in rows
        ]

    def draw(self, logits: Tensor, samplers: Sequence[Sampler]) -> list[int | None]:
        rows = [(s.uniform(), s.params.temperature, s.params.top_p, s.params.min_p, s.params.top_k) for s in samplers]
        tokens = np.empty(len(rows), dtype=np.int32)
        self._call("runner_draw", logits, np.array(rows, DRAW), len(rows), tokens)
        return [token if token >= 0 else None for token in tokens.tolist()]

    def _row(self, segment: Segment) -> tuple[int, int, int, int]:
        """Raises ValueError rather than write beside the store."""
        cache, n = segment.cache, len(segment.tokens)
        config = self.config
        fits = cache.sizes == (config.n_layers, config.n_kv_heads, config.head_dim)
        if not fits or segment.start + n > min(cache.capacity, self.context):
            raise ValueError("the sequence's store has no room for its tokens")
        return cache.address, cache.capacity, segment.start, n

    def _call(self, name: str, *arguments: "Tensor | np.ndarray | _Table | int") -> None:
        getattr(self._library, name)(self._runner, *map(_argument, arguments))

    def _table(self, weights: Weights) -> "_Table":
        if weights not in self._tables:
            self._tables[weights] = _Table(weights)
        return self._tables[weights]


def check_shape(config: ModelConfig) -> None:
    """Raises Unavailable."""
    n_qkv = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    is_even = not any(n % PANEL for n in (config.hidden_size, n_qkv, 2 * config.intermediate_size, config.vocab_size))
    if not is_even or config.head_dim % PANEL or config.head_dim > MAX_HEAD_DIM:
        raise Unavailable(
            f"The model's sizes are no multiples of {PANEL}, or its heads are larger than {MAX_HEAD_DIM}."
        )


# --- step.cpp's structures --------------------------------------------------------------------------------------------
class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("n_layers", "hidden", "n_heads", "n_kv_heads", "head_dim")),
        *((name, ctypes.c_int32) for name in ("intermediate", "vocabulary")),
        ("norm_eps", ctypes.c_float),
    ]


class _Linear(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("input_norm", ctypes.c_void_p),
        ("qkv", _Linear),
        ("out", _Linear),
        ("post_norm", ctypes.c_void_p),
        ("gate_up", _Linear),
        ("down", _Linear),
    ]


class _Weights(ctypes.Structure):
    _fields_ = [
        ("embedding", ctypes.c_void_p),
        ("layers", ctypes.POINTER(_Layer)),
        ("final_norm", ctypes.c_void_p),
        ("head", _Linear),
    ]


class _Table:
    """Where a version's tensors lie. Holds no tensor itself: it lives as long as its Weights."""

    def __init__(self, weights: Weights) -> None:
        self._layers = (_Layer * len(weights.layers))(
            *(
                _Layer(
                    layer.input_norm.data_ptr(),
                    _linear(layer.qkv),
                    _linear(layer.out),
                    layer.post_norm.data_ptr(),
                    _linear(layer.gate_up),
                    _linear(layer.down),
                )
                for layer in weights.layers
            )
        )
        embedding, final_norm = weights.embedding.data_ptr(), weights.final_norm.data_ptr()
        self.weights = _Weights(embedding, self._layers, final_norm, _linear(weights.head))


def _linear(linear: PackedLinear) -> _Linear:
    return _Linear(linear.weight.data_ptr(), None if linear.bias is None else linear.bias.data_ptr())


def _shape(config: ModelConfig) -> _Shape:
    return _Shape(
        config.n_layers,
        config.hidden_size,
        config.n_heads,
        config.n_kv_heads,
        config.head_dim,
        config.intermediate_size,
        config.vocab_size,
        config.norm_eps,
    )


def _argument(value: Tensor | np.ndarray | _Table | int) -> object:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return ctypes.byref(value.weights) if isinstance(value, _Table) else value
