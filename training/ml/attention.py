"""Attention over packed rows that share their prompts.

Explicit matrix products per segment: on the CPU the backward pass of torch's fused attention is several times slower
than these, and a mask over a whole pack would be mostly empty. One gather lays every segment's queries out as a block
of its own, filled up with zeros, another its keys and values: a prompt's stand in the block of each of its responses.
Each segment's arithmetic depends on nothing but its own prompt and tokens, so a response's log-probability does not
change with what it is packed with.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

from training.ml.errors import TrainingError
from training.ml.rows import Segment

NAME = "shared_prompt"
ROUND = 32  # lengths are filled up to a multiple: oneDNN compiles and keeps a kernel for every new shape
CHUNK = 128  # queries at a time: the later half of a prompt's keys need not be shown to its earlier half
KEEP = 1 << 17  # probabilities per head of a segment: more are computed again in the backward pass, not kept


@dataclass(frozen=True)
class Block:
    """Queries of one segment among the gathered rows, H·Q of them, and the Hk·K rows of the keys that they see."""

    queries: slice
    keys: slice
    n_queries: int  # Q
    n_keys: int  # K
    n_open: int  # keys that all of its queries see
    bias: torch.Tensor  # (Q, K − n_open) of the others: 0 where a query sees a key, else −inf


@dataclass(frozen=True)
class Plan:
    """Where everything stands, worked out once for all the layers of a pass."""

    n_heads: int  # H
    n_key_heads: int  # Hk
    blocks: list[Block]
    queries: torch.Tensor  # (ΣH·Q,) rows of (T·H + 1, D), of which the last is zeros
    outputs: torch.Tensor  # (T·H,) the way back
    keys: torch.Tensor  # (ΣHk·K,) rows of (T·Hk, D)
    readers: torch.Tensor  # (M, T·Hk) the gathered rows that hold a key; row ΣHk·K, zeros, where it has fewer
    longest: int  # keys that any query may see


def plan(segments: list[Segment], n_heads: int, n_key_heads: int, like: torch.Tensor) -> Plan:
    """The plan for segments that cover the tokens 0 … T − 1; `like` gives device and dtype."""
    n_tokens = max(segment.end for segment in segments)
    blocks: list[Block] = []
    queries, keys = [], []
    n_q = n_k = 0
    for own, seen in _looks(segments):
        queries.append(_rows(own, n_heads, fill=n_tokens * n_heads))
        keys.append(_rows(seen, n_key_heads, fill=-1))
        spans = slice(n_q, n_q := n_q + len(queries[-1])), slice(n_k, n_k := n_k + len(keys[-1]))
        shape = len(queries[-1]) // n_heads, len(keys[-1]) // n_key_heads
        blocks.append(Block(*spans, *shape, len(seen) - len(own), _bias(shape, len(seen) - len(own), like)))
    gathered_q, gathered_k = torch.cat(queries), torch.cat(keys)
    outputs = _places(gathered_q, n_tokens * n_heads)[:, 0]
    readers = _places(gathered_k, n_tokens * n_key_heads).T.contiguous()
    gathered_k.clamp_(min=0)  # what fills keys up is hidden by the bias: any row will do, if only it is finite
    a, b, c, d = (index.to(like.device) for index in (gathered_q, outputs, gathered_k, readers))
    longest = max(s.end - s.start + s.prompt_end - s.prompt_start for s in segments)
    return Plan(n_heads, n_key_heads, blocks, a, b, c, d, longest)


def _looks(segments: list[Segment]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(queries, keys) of each block: up to CHUNK tokens of a segment, and what the last of them sees."""
    for segment in segments:
        prompt = torch.arange(segment.prompt_start, segment.prompt_end)
        for start in range(segment.start, segment.end, CHUNK):
            end = min(start + CHUNK, segment.end)
            yield torch.arange(start, end), torch.cat((prompt, torch.arange(segment.start, end)))


def _rows(tokens: torch.Tensor, n_heads: int, *, fill: int) -> torch.Tensor:
    """The rows of tokens in a (T·heads, D) matrix, head by head, each head's filled up to a multiple of ROUND."""
    rows = torch.full((n_heads, len(tokens) + -len(tokens) % ROUND), fill)
    rows[:, : len(tokens)] = tokens * n_heads + torch.arange(n_heads)[:, None]
    return rows.flatten()


def _bias(shape: tuple[int, int], n_open: int, like: torch.Tensor) -> torch.Tensor:
    """The keys that fill up come later than every query that counts, so they are never seen."""
    n_queries, n_keys = shape
    return torch.full((n_queries, n_keys - n_open), float("-inf"), dtype=like.dtype, device=like.device).triu_(1)


def _places(rows: torch.Tensor, n: int) -> torch.Tensor:
    """(n, M): where in `rows` each of 0 … n − 1 stands; len(rows) where it stands fewer than M times."""
    places = torch.nonzero((rows >= 0) & (rows < n))[:, 0]
    found, order = rows[places].sort(stable=True)
    counts = torch.bincount(found, minlength=n)
    nth = torch.arange(len(found)) - (counts.cumsum(0) - counts)[found]
    table = torch.full((n, int(counts.max())), len(rows))
    table[found, nth] = places[order]
    return table


@dataclass(frozen=True)
class Kept:
    """What the backward pass needs."""

    q: torch.Tensor  # (ΣH·Q, D)
    k: torch.Tensor  # (ΣHk·K, D)
    v: torch.Tensor  # (ΣHk·K, D)
    probabilities: list[torch.Tensor | None]  # per block (Hk, G·Q, K), G = H / Hk


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, scale: float, *, keeps: bool = True
) -> tuple[torch.Tensor, Kept | None]:
    """Softmax attention per segment. q (T, H, D), k and v (T, Hk, D) -> (T, H, D)."""
    width = q.shape[-1]
    rows = Kept(
        torch.cat((q.reshape(-1, width), q.new_zeros(1, width))).index_select(0, plan.queries),
        k.reshape(-1, width).index_select(0, plan.keys),
        v.reshape(-1, width).index_select(0, plan.keys),
        [],
    )
    out = torch.empty_like(rows.q)
    for block in plan.blocks:
        queries, keys, values = _of(rows, block, plan)
        p = _probabilities(queries, keys, block, scale)
        torch.bmm(p, values, out=out[block.queries].view_as(queries))
        rows.probabilities.append(p if keeps and block.n_queries * block.n_keys <= KEEP else None)
    return out.index_select(0, plan.outputs).view_as(q), rows if keeps else None


def backward(
    d_out: torch.Tensor, kept: Kept, plan: Plan, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(T, H, D), what `forward` kept -> gradients of q (T, H, D), of k and v (T, Hk, D)."""
    width = d_out.shape[-1]
    d_o = torch.cat((d_out.reshape(-1, width), d_out.new_zeros(1, width))).index_select(0, plan.queries)
    d_q = torch.empty_like(kept.q)
    d_k, d_v = (kept.k.new_empty(len(kept.k) + 1, width) for _ in range(2))
    d_k[-1], d_v[-1] = 0, 0
    for block, p in zip(plan.blocks, kept.probabilities, strict=True):
        queries, keys, values = _of(kept, block, plan)
        if p is None:
            p = _probabilities(queries, keys, block, scale)
        d_own = d_o[block.queries].view_as(queries)
        d_s = torch._softmax_backward_data(d_own @ values.mT, p, -1, p.dtype).mul_(scale)  # (Hk, G·Q, K)
        torch.bmm(d_s, keys, out=d_q[block.queries].view_as(queries))
        torch.bmm(d_s.mT, queries, out=d_k[block.keys].view_as(keys))
        torch.bmm(p.mT, d_own, out=d_v[block.keys].view_as(keys))
    d_q = d_q.index_select(0, plan.outputs).view_as(d_out)
    return d_q, _gather(d_k, plan), _gather(d_v, plan)


def _of(rows: Kept, block: Block, plan: Plan) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A block's queries (Hk, G·Q, D), keys and values (Hk, K, D)."""
    queries = rows.q[block.queries].view(plan.n_key_heads, -1, rows.q.shape[-1])
    keys, values = (x[block.keys].view(plan.n_key_heads, block.n_keys, -1) for x in (rows.k, rows.v))
    return queries, keys, values


def _probabilities(queries: torch.Tensor, keys: torch.Tensor, block: Block, scale: float) -> torch.Tensor:
    """(Hk, G·Q, D), (Hk, K, D) -> (Hk, G·Q, K); softmax adds up in fp32, whatever the dtype."""
    scores = torch.bmm(queries, keys.mT).mul_(scale).view(-1, block.n_queries, block.n_keys)  # (H, Q, K)
    scores[..., block.n_open :] += block.bias
    return scores.softmax(-1).view(len(keys), -1, block.n_keys)


def _gather(rows: torch.Tensor, plan: Plan) -> torch.Tensor:
    """(ΣHk·K + 1, D) gradients of the gathered keys or values -> (T, Hk, D): the sum over those who read each."""
    most, n = plan.readers.shape
    read = rows.index_select(0, plan.readers.flatten()).view(most, n, -1)
    total = read.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32)).to(rows.dtype)
    return total.view(-1, plan.n_key_heads, rows.shape[-1])


class SharedPromptAttention(torch.autograd.Function):
    """`forward` and `backward` for models whose layers are not of the family that `training.ml.block` knows."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, scale: float) -> torch.Tensor:
        """q (T, H, D), k and v (T, Hk, D) -> (T, H, D)."""
        out, ctx.kept = forward(q, k, v, plan, scale)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[Any, ...]:
        return *backward(d_out, ctx.kept, ctx.plan, ctx.scale), None, None


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: Plan,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: query (1, H, T, D), key and value (1, Hk, T, D) -> (1, T, H, D)."""
    if unknown := sorted(name for name in ("softcap", "s_aux") if options.get(name) is not None):
        raise _unsupported(", ".join(unknown))
    check_window(plan, sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, D)
    out = SharedPromptAttention.apply(q, k, v, plan, scale)
    return out.unsqueeze(0), None


def check_window(plan: Plan, window: int | None) -> None:
    """Raises TrainingError where a query would have to overlook keys that are more than `window` tokens away."""
    if window is not None and plan.longest > window:
        raise _unsupported(f"a window of {window} tokens")


def _unsupported(what: str) -> TrainingError:
    return TrainingError(f"This model's attention needs {what}, which the trainer cannot do.", "model")


AttentionInterface.register(NAME, attend)
