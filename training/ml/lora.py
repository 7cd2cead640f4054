"""A LoRA layer for peft that computes in the base's dtype and keeps little for the backward pass.

peft's own layer converts every input to the adapter's fp32 and works there, which for rank 16 costs more time than the
base's matrix product and keeps an fp32 copy of each input. Here parameters and gradients stay fp32, products run in the
base's dtype (bf16: fp32 accumulation), and only the input, shared by the layers that read it, and x Aᵀ are kept.
"""

from typing import Any, cast

import torch
from peft.tuners import lora
from torch.autograd.function import once_differentiable


class LoraProduct(torch.autograd.Function):
    """x Wᵀ + bias + scale · (x Aᵀ) Bᵀ with W frozen (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """x (T, I), weight (O, I), a (r, I), b (O, r) -> (T, O)."""
        a, b = a.to(x.dtype), b.to(x.dtype)
        h = x @ a.T  # (T, r)
        ctx.save_for_backward(x, weight, a, b, h)
        ctx.scale = scale
        return torch.nn.functional.linear(x, weight, bias).addmm_(h, b.T, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: torch.Tensor) -> tuple[Any, ...]:
        x, weight, a, b, h = ctx.saved_tensors
        d_h = (d_y @ b).mul_(ctx.scale)  # (T, r)
        d_x = (d_y @ weight).addmm_(d_h, a) if ctx.needs_input_grad[0] else None
        d_a = (d_h.T @ x).to(torch.promote_types(x.dtype, torch.float32))
        d_b = (d_y.T @ h).to(d_a.dtype).mul_(ctx.scale)
        return d_x, None, None, d_a, d_b, None


class Linear(lora.Linear):
    """peft's LoRA layer (its parameters, saving and switching) with LoraProduct as the forward pass."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x (…, I) -> (…, O), computed in x's dtype: a wider one than the base's is for measuring, and slow."""
        base = cast(torch.nn.Linear, self.get_base_layer())
        weight, bias = base.weight.to(x.dtype), None if base.bias is None else base.bias.to(x.dtype)
        (name,) = self.active_adapters
        if self.disable_adapters or name not in self.lora_A:  # another adapter changes this layer, this one does not
            return torch.nn.functional.linear(x, weight, bias)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        y = LoraProduct.apply(x.flatten(0, -2), weight, bias, a, b, self.scaling[name])
        return y.unflatten(0, x.shape[:-1])
