"""A decoder layer of the Llama family with LoRA, forward and backward written by hand.

What autograd would do with transformers' layer, in fewer passes over memory: the residual sum happens within the matrix
product, projections that read the same input share x Aᵀ, norms and SwiGLU keep two tensors instead of seven, and the
attention's probabilities are kept. Only the input and the adapters have gradients; the base is frozen. Llama (Touvron et
al. 2023, arXiv 2302.13971), RoPE (arXiv 2104.09864), SwiGLU (arXiv 2002.05202), LoRA (arXiv 2106.09685).
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from training.ml import attention
from training.ml.lora import Linear

FAMILY = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}


def is_known(layer: nn.Module, config: Any) -> bool:
    """Whether `run` computes what this layer of a transformers model does."""
    return type(layer).__name__ in FAMILY and getattr(config, "hidden_act", "") == "silu"


def window(layer: Any, config: Any) -> int | None:
    """How many tokens back the layer attends; None: all of them. Qwen2 says so by layer, Mistral for the whole model."""
    attention = layer.self_attn
    return attention.sliding_window if hasattr(attention, "sliding_window") else getattr(config, "sliding_window", None)


@dataclass(frozen=True)
class Rotation:
    """RoPE's cosines and sines of a pass's positions, (T, 1, D), the halves of D each for itself."""

    cos: torch.Tensor
    sin: torch.Tensor


def run(layer: Any, x: torch.Tensor, rotation: Rotation, plan: attention.Plan) -> torch.Tensor:
    """The layer's output for x (T, W): (T, W), in x's dtype."""
    projections = _projections(layer)
    adapters = [_adapter(module) for module in projections]
    matrices = [matrix for a, b, _ in adapters for matrix in (a, b)]
    frozen = Frozen(
        [_frozen(module.weight, x) for module in map(_base, projections)],
        [_frozen(module.bias, x) for module in map(_base, projections)],
        [scale for *_, scale in adapters],
        _frozen(layer.input_layernorm.weight, x),
        _frozen(layer.post_attention_layernorm.weight, x),
        layer.input_layernorm.variance_epsilon,
        layer.self_attn.scaling,
    )
    return Layer.apply(x, frozen, rotation, plan, torch.is_grad_enabled(), *matrices)


QUERY, KEY, VALUE, OUT, GATE, UP, DOWN = range(7)


@dataclass(frozen=True)
class Frozen:
    """What a layer computes with and never changes, in the dtype of its input."""

    weights: list[Any]  # (out, in) of q, k, v, o, gate, up, down
    biases: list[Any]
    scales: list[float]  # of the adapters; 0 where there is none
    attention_norm: Any
    mlp_norm: Any
    epsilon: float
    attention_scale: float


def _projections(layer: Any) -> list[nn.Module]:
    a, m = layer.self_attn, layer.mlp
    return [a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj]


def _base(module: nn.Module) -> Any:
    return module.get_base_layer() if isinstance(module, Linear) else module


def _adapter(module: Any) -> tuple[torch.Tensor | None, torch.Tensor | None, float]:
    """A (r, in), B (out, r) and their scale."""
    if not isinstance(module, Linear) or module.disable_adapters:
        return None, None, 0.0
    (name,) = module.active_adapters
    if name not in module.lora_A:
        return None, None, 0.0
    a, b = cast(nn.Linear, module.lora_A[name]), cast(nn.Linear, module.lora_B[name])
    return a.weight, b.weight, module.scaling[name]


def _frozen(parameter: Any, like: torch.Tensor) -> Any:
    return None if parameter is None else parameter.detach().to(like.dtype)


class Adapters:
    """The adapters of projections that read the same input: one x Aᵀ for all of them."""

    def __init__(self, indices: tuple[int, ...], frozen: Frozen, matrices: tuple[Any, ...], dtype: torch.dtype) -> None:
        self.frozen, self.indices = frozen, indices
        self.own = [i for i in indices if matrices[2 * i] is not None]
        self.a = torch.cat([matrices[2 * i].detach().to(dtype) for i in self.own]) if self.own else None  # (Σr, in)
        self.b = {i: matrices[2 * i + 1].detach().to(dtype) for i in self.own}
        ends = torch.tensor([len(matrices[2 * i]) for i in self.own]).cumsum(0).tolist()
        self.spans = {i: slice(end - len(matrices[2 * i]), end) for i, end in zip(self.own, ends, strict=True)}

    def read(self, x: torch.Tensor) -> torch.Tensor | None:
        """x (T, in) -> x Aᵀ (T, Σr)."""
        return None if self.a is None else x @ self.a.T

    def project(
        self, i: int, x: torch.Tensor, h: torch.Tensor | None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """residual + x Wᵀ + bias + scale · h Bᵀ -> (T, out)."""
        weight, bias = self.frozen.weights[i], self.frozen.biases[i]
        y = linear(x, weight, bias) if residual is None else torch.addmm(residual, x, weight.T)
        if residual is not None and bias is not None:
            y += bias
        if i in self.b and h is not None:
            y.addmm_(h[:, self.spans[i]], self.b[i].T, alpha=self.frozen.scales[i])
        return y

    def back(
        self,
        d_ys: tuple[torch.Tensor, ...],
        x: torch.Tensor,
        h: torch.Tensor | None,
        grads: list[Any],
        *,
        needs_x: bool,
    ) -> torch.Tensor | None:
        """Gradients of the projections' outputs -> that of x (T, in); those of A and B go into `grads`."""
        d_x = None
        if needs_x:
            d_x = d_ys[0] @ self.frozen.weights[self.indices[0]]
            for i, d_y in zip(self.indices[1:], d_ys[1:], strict=True):
                d_x.addmm_(d_y, self.frozen.weights[i])
        if self.a is None or h is None:
            return d_x
        d_h = torch.empty_like(h)
        for i, d_y in zip(self.indices, d_ys, strict=True):
            if i in self.b:
                scale, span = self.frozen.scales[i], self.spans[i]
                torch.mul(d_y @ self.b[i], scale, out=d_h[:, span])
                grads[2 * i + 1] = _wide(h[:, span].T @ d_y).mul_(scale).T  # this way round the product is faster
        d_a = _wide(d_h.T @ x)
        for i, span in self.spans.items():
            grads[2 * i] = d_a[span]
        return d_x if d_x is None else d_x.addmm_(d_h, self.a)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normalise(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of x (T, W) -> (T, W) and 1 / rms (T, 1); rounded where transformers rounds."""
    wide = _wide(x)
    norms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    inverse = (norms.square_().div_(x.shape[-1]).add_(epsilon)).rsqrt_()
    return (wide * inverse).to(x.dtype).mul_(weight), inverse


def normalise_back(d_y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The gradient of RMSNorm's input (T, W), wide: (g − x · mean(g x) / rms²) / rms with g = d_y · weight."""
    g, wide = _wide(d_y * weight), _wide(x)
    mean = torch.linalg.vecdot(g, wide, dim=-1).unsqueeze(-1).div_(x.shape[-1]).mul_(inverse.square())
    return g.addcmul_(wide, mean, value=-1).mul_(inverse)


def rotate(x: torch.Tensor, rotation: Rotation, sign: int) -> torch.Tensor:
    """RoPE on x (T, H, D) with sign 1; its adjoint, which rotates a gradient back, with sign −1."""
    half = x.shape[-1] // 2
    out = x * rotation.cos
    sin = rotation.sin if sign == 1 else rotation.sin.roll(half, -1)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out


class Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        frozen: Frozen,
        rotation: Rotation,
        plan: attention.Plan,
        is_learning: bool,
        *matrices: Any,
    ) -> torch.Tensor:
        """x (T, W) -> (T, W)."""
        keeps = is_learning and any(ctx.needs_input_grad)
        groups = [
            Adapters(indices, frozen, matrices, x.dtype)
            for indices in ((QUERY, KEY, VALUE), (OUT,), (GATE, UP), (DOWN,))
        ]
        reading, leaving, widening, narrowing = groups
        n1, inverse1 = normalise(x, frozen.attention_norm, frozen.epsilon)
        h1 = reading.read(n1)
        q, k, v = (reading.project(i, n1, h1).view(len(x), heads, -1) for i, heads in _heads(plan))
        q, k = rotate(q, rotation, 1), rotate(k, rotation, 1)
        mixed, kept = attention.forward(q, k, v, plan, frozen.attention_scale, keeps=keeps)
        mixed = mixed.flatten(1)  # (T, H·D)
        h2 = leaving.read(mixed)
        middle = leaving.project(OUT, mixed, h2, x)
        n2, inverse2 = normalise(middle, frozen.mlp_norm, frozen.epsilon)
        h3 = widening.read(n2)
        gate, up = widening.project(GATE, n2, h3), widening.project(UP, n2, h3)
        opened = silu(gate)
        inner = opened * up
        h4 = narrowing.read(inner)
        out = narrowing.project(DOWN, inner, h4, middle)
        if keeps:
            ctx.save_for_backward(x, n1, inverse1, h1, mixed, h2, middle, n2, inverse2, h3, gate, up, opened, h4)
            ctx.frozen, ctx.rotation, ctx.plan, ctx.kept, ctx.groups = frozen, rotation, plan, kept, groups
            ctx.n_matrices = len(matrices)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[Any, ...]:
        x, n1, inverse1, h1, mixed, h2, middle, n2, inverse2, h3, gate, up, opened, h4 = ctx.saved_tensors
        frozen, (reading, leaving, widening, narrowing) = ctx.frozen, ctx.groups
        grads: list[Any] = [None] * ctx.n_matrices
        d_inner = narrowing.back((d_out,), opened * up, h4, grads, needs_x=True)  # (T, I)
        d_up = d_inner * opened
        d_gate = torch.ops.aten.silu_backward(d_inner.mul_(up), gate)
        d_n2 = widening.back((d_gate, d_up), n2, h3, grads, needs_x=True)
        d_middle = d_out + normalise_back(d_n2, middle, frozen.mlp_norm, inverse2).to(d_out.dtype)
        d_mixed = leaving.back((d_middle,), mixed, h2, grads, needs_x=True)
        d_q, d_k, d_v = attention.backward(
            d_mixed.view(len(x), ctx.plan.n_heads, -1), ctx.kept, ctx.plan, frozen.attention_scale
        )
        d_q, d_k = rotate(d_q, ctx.rotation, -1), rotate(d_k, ctx.rotation, -1)
        d_ys = d_q.flatten(1), d_k.flatten(1), d_v.flatten(1)
        needs_x = ctx.needs_input_grad[0]
        d_n1 = reading.back(d_ys, n1, h1, grads, needs_x=needs_x)
        if d_n1 is None:
            return None, None, None, None, None, *grads
        d_x = d_middle + normalise_back(d_n1, x, frozen.attention_norm, inverse1).to(d_out.dtype)
        return d_x, None, None, None, None, *grads


def _heads(plan: attention.Plan) -> tuple[tuple[int, int], ...]:
    return (QUERY, plan.n_heads), (KEY, plan.n_key_heads), (VALUE, plan.n_key_heads)
