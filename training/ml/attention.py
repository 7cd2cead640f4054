"""Attention over packed rows that share their prompts.

Explicit matrix products per segment: on the CPU the backward pass of torch's fused attention is several times slower
than these, and a mask over a whole pack would be mostly empty. Each segment's arithmetic depends on nothing but its own
prompt and tokens, so a response's log-probability does not change with what it is packed with.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import AttentionInterface

from training.ml.errors import TrainingError
from training.ml.rows import Segment

NAME = "shared_prompt"
ROUND = 32  # lengths are filled up to a multiple: oneDNN compiles and keeps a kernel for every new shape


class SharedPromptAttention(torch.autograd.Function):
    """Softmax attention per segment; the probabilities are computed again in the backward pass, not kept."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: list[Segment], scale: float
    ) -> torch.Tensor:
        """q (Hk, G, T, D), k and v (Hk, T, D), G query heads per key head -> (Hk, G, T, D)."""
        out = torch.empty_like(q)
        for segment in segments:
            keys, values = _seen(k, segment), _seen(v, segment)
            p = _probabilities(_queries(q, segment), keys, segment, scale)
            out[:, :, segment.start : segment.end] = _own(p @ values, q, segment)
        ctx.save_for_backward(q, k, v)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[Any, ...]:
        q, k, v = ctx.saved_tensors
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for segment in ctx.segments:
            queries, keys, values = _queries(q, segment), _seen(k, segment), _seen(v, segment)
            p = _probabilities(queries, keys, segment, ctx.scale)  # (Hk, G·Q, K)
            d_o = _queries(d_out, segment)
            d_s = torch._softmax_backward_data(d_o @ values.mT, p, -1, p.dtype) * ctx.scale
            d_q[:, :, segment.start : segment.end] = _own(d_s @ keys, q, segment)
            _add_seen(d_k, d_s.mT @ queries, segment)
            _add_seen(d_v, p.mT @ d_o, segment)
        return d_q, d_k, d_v, None, None


def _queries(x: torch.Tensor, segment: Segment) -> torch.Tensor:
    """(Hk, G, T, D) -> (Hk, G·Q, D): the segment's queries and zeros, the heads of one key head stacked."""
    own = x[:, :, segment.start : segment.end]
    return pad(own, (0, 0, 0, -own.shape[2] % ROUND)).flatten(1, 2)


def _own(x: torch.Tensor, like: torch.Tensor, segment: Segment) -> torch.Tensor:
    """The inverse of `_queries`: (Hk, G·Q, D) -> (Hk, G, end − start, D)."""
    return x.view(*like.shape[:2], -1, like.shape[-1])[:, :, : segment.end - segment.start]


def _seen(x: torch.Tensor, segment: Segment) -> torch.Tensor:
    """(Hk, T, D) -> (Hk, K, D): keys or values of the segment's prompt, then its own, then zeros."""
    parts = x[:, segment.prompt_start : segment.prompt_end], x[:, segment.start : segment.end]
    n_fill = -(parts[0].shape[1] + parts[1].shape[1]) % ROUND
    return torch.cat((*parts, x.new_zeros(x.shape[0], n_fill, x.shape[2])), dim=1)


def _add_seen(total: torch.Tensor, part: torch.Tensor, segment: Segment) -> None:
    n_prompt, n_own = segment.prompt_end - segment.prompt_start, segment.end - segment.start
    total[:, segment.prompt_start : segment.prompt_end] += part[:, :n_prompt]
    total[:, segment.start : segment.end] += part[:, n_prompt : n_prompt + n_own]


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, segment: Segment, scale: float) -> torch.Tensor:
    """(Hk, G·Q, D), (Hk, K, D) -> (Hk, G·Q, K). The zeros that fill up K are later than every query, so never seen."""
    n_own, n_prompt = segment.end - segment.start, segment.prompt_end - segment.prompt_start
    n_queries = n_own + -n_own % ROUND
    scores = (queries @ keys.mT).view(keys.shape[0], -1, n_queries, keys.shape[1])  # (Hk, G, Q, K)
    hidden = torch.ones(n_queries, keys.shape[1], dtype=torch.bool, device=keys.device).triu_(n_prompt + 1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    scores = scores.to(wide).mul_(scale).masked_fill_(hidden, float("-inf"))
    return scores.softmax(-1).to(queries.dtype).view(keys.shape[0], -1, keys.shape[1])


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: list[Segment],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: query (1, H, T, D), key and value (1, Hk, T, D) -> (1, T, H, D)."""
    unknown = sorted(name for name in ("softcap", "s_aux") if options.get(name) is not None)
    longest = max(s.end - s.start + s.prompt_end - s.prompt_start for s in segments)
    if unknown or (sliding_window is not None and longest > sliding_window):
        what = ", ".join(unknown) or f"a window of {sliding_window} tokens"
        raise TrainingError(f"This model's attention needs {what}, which the trainer cannot do.", "model")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = query[0], key[0], value[0]
    grouped = q.reshape(k.shape[0], -1, *q.shape[1:])
    out = SharedPromptAttention.apply(grouped, k, v, segments, scale).reshape(q.shape)
    return out.transpose(0, 1).unsqueeze(0), None


AttentionInterface.register(NAME, attend)
