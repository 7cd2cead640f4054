"""The forward pass of the Llama family over a ragged batch: rows of many sequences, each at its own position.

Everything but attention works on rows, so prompt blocks and decoding sequences share one pass; attention is computed for
each sequence alone. A row's numbers depend on its sequence only, never on its company (see `weights.Linear`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from serving.engine.cache import SequenceCache
from serving.engine.model_folder import ModelConfig
from serving.engine.sampler import Sampler, TokenLogprob, draw, token_logprob
from serving.engine.weights import Weights

EXACT_ROWS_OF_HEAD = 8192  # of the vocabulary, turned into float32 at a time


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence: ids, and the position of the first one."""

    cache: SequenceCache
    start: int
    tokens: list[int]


class Model:
    """The architecture with its numbers; the weights of a version are given with each call."""

    def __init__(self, config: ModelConfig, context: int, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.context, self.dtype, self.device = config, context, dtype, device
        self.n_groups = config.n_heads // config.n_kv_heads
        angles = torch.outer(torch.arange(context).float(), inverse_frequencies(config))  # (context, D/2)
        with torch.inference_mode():
            # rotate(x) = x·cos + swap(x)·sin, where swap exchanges the halves and the sign lies in sin.
            self.cos = torch.cat((angles.cos(), angles.cos()), -1).to(device, dtype).unsqueeze(1)  # (context, 1, D)
            self.sin = torch.cat((-angles.sin(), angles.sin()), -1).to(device, dtype).unsqueeze(1)

    def new_cache(self, capacity: int) -> SequenceCache:
        config = self.config
        return SequenceCache(config.n_layers, config.n_kv_heads, config.head_dim, capacity, self.dtype, self.device)

    @torch.inference_mode()
    def hidden(self, weights: Weights, segments: list[Segment]) -> Tensor:
        """Final, normalised hidden states of all tokens in order, (N, H); writes their keys and values."""
        ids = [token for segment in segments for token in segment.tokens]
        positions = [segment.start + i for segment in segments for i in range(len(segment.tokens))]
        n_rows = len(ids)
        if n_rows == 1:  # one-row products take another path with other rounding
            ids, positions = ids * 2, positions * 2
        position = torch.tensor(positions, device=self.device)
        cos, sin = self.cos[position], self.sin[position]  # (N, 1, D)
        masks = [self._mask(segment) for segment in segments]
        x = F.embedding(torch.tensor(ids, device=self.device), weights.embedding)  # (N, H)
        for i, layer in enumerate(weights.layers):
            qkv = layer.qkv(self._norm(x, layer.input_norm))
            x = x + layer.out(self._attend(i, qkv, cos, sin, segments, masks))
            gate, up = layer.gate_up(self._norm(x, layer.post_norm)).chunk(2, -1)
            x = x + layer.down(F.silu(gate).mul_(up))
        return self._norm(x, weights.final_norm)[:n_rows]

    @torch.inference_mode()
    def logits(self, weights: Weights, hidden: Tensor) -> Tensor:
        """(R, H) -> (R, V), in float32 (rounded as the model's dtype rounds)."""
        if len(hidden) == 1:
            return weights.head(hidden.expand(2, -1).contiguous())[:1].float()
        return weights.head(hidden).float()

    def draw(self, logits: Tensor, samplers: Sequence[Sampler]) -> list[int | None]:
        """logits: (R, V), adjusted -> each row's token, None where a row is not finite."""
        return [draw(row, s.params, s.uniform()) for row, s in zip(logits, samplers, strict=True)]

    @torch.inference_mode()
    def float32_logits(self, weights: Weights, hidden: Tensor) -> Tensor:
        """(R, H) -> (R, V), with the head's product in float32.

        In bf16 it would round logits by up to 0.06, more than a small adapter moves them.
        """
        if weights.head_dense is None:
            raise ValueError("these weights lie as another model wants them")
        parts = weights.head_dense.split(EXACT_ROWS_OF_HEAD)
        return torch.cat([hidden.float() @ part.float().T for part in parts], dim=-1)

    @torch.inference_mode()
    def rank(self, logits: Tensor, tokens: Sequence[int], n_top: int) -> list[TokenLogprob]:
        """logits: (R, V); tokens: (R,) -> each row's log-probability of its token, and those of the `n_top` likeliest."""
        return [token_logprob(F.log_softmax(row, -1), t, n_top) for row, t in zip(logits, tokens, strict=True)]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.norm_eps)

    def _attend(
        self, i: int, qkv: Tensor, cos: Tensor, sin: Tensor, segments: list[Segment], masks: list[Tensor | None]
    ) -> Tensor:
        """Rotate, append to the caches, attend: (N, (Hq + 2·Hkv)·D) -> (N, Hq·D). Works on qkv in place."""
        n_heads, n_kv_heads, dim = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        qkv = qkv.view(len(qkv), n_heads + 2 * n_kv_heads, dim)
        to_rotate = qkv[:, : n_heads + n_kv_heads]
        torch.addcmul(to_rotate * cos, to_rotate.roll(dim // 2, -1), sin, out=to_rotate)
        attended = torch.empty_like(qkv[:, :n_heads])  # (N, Hq, D)
        row = 0
        for segment, mask in zip(segments, masks, strict=True):
            n = len(segment.tokens)
            if n == 1:
                attended[row] = self._attend_one(i, segment, qkv[row])
            else:
                attended[row : row + n] = self._attend_block(i, segment, qkv[row : row + n], mask)
            row += n
        if row < len(attended):
            attended[row:] = 0  # the padding row
        return attended.flatten(1)

    # In both, the query heads of one key head become query rows: no copies of keys, one product for all of them.

    def _attend_one(self, i: int, segment: Segment, qkv: Tensor) -> Tensor:
        """A step of a decoding sequence: (Hq + 2·Hkv, D) -> (Hq, D)."""
        n_heads, cache, end = self.config.n_heads, segment.cache, segment.start + 1
        cache.rows[i][:, segment.start] = qkv[n_heads:]
        q = qkv[:n_heads].view(1, self.config.n_kv_heads, self.n_groups, self.config.head_dim)
        o = F.scaled_dot_product_attention(q, cache.keys[i][:, :, :end], cache.values[i][:, :, :end])
        return o.view(n_heads, self.config.head_dim)

    def _attend_block(self, i: int, segment: Segment, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """A block of a prompt: (n, Hq + 2·Hkv, D) -> (n, Hq, D)."""
        n_heads, n_kv_heads, dim = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        n, cache, end = len(qkv), segment.cache, segment.start + len(qkv)
        cache.rows[i][:, segment.start : end] = qkv[:, n_heads:].transpose(0, 1)
        q = qkv[:, :n_heads].view(n, n_kv_heads, self.n_groups, dim).permute(1, 2, 0, 3)
        q = q.reshape(1, n_kv_heads, self.n_groups * n, dim)
        o = F.scaled_dot_product_attention(q, cache.keys[i][:, :, :end], cache.values[i][:, :, :end], attn_mask=mask)
        return o.view(n_kv_heads, self.n_groups, n, dim).permute(2, 0, 1, 3).reshape(n, n_heads, dim)

    def _mask(self, segment: Segment) -> Tensor | None:
        """Additive causal mask of a prompt block, (1, 1, groups·n, end); a single token sees everything before it."""
        n = len(segment.tokens)
        if n == 1:
            return None
        mask = torch.full((n, segment.start + n), -math.inf, dtype=self.dtype, device=self.device)
        return mask.triu_(segment.start + 1).repeat(self.n_groups, 1)[None, None]


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Rope's inverse frequencies, (D/2,), for the types default, linear and llama3.

    Su et al. 2021, arXiv 2104.09864, eq. 15; llama3: Grattafiori et al. 2024, arXiv 2407.21783, section 3.2, where long
    wavelengths are stretched by `factor`, short ones are kept and those between are blended.
    """
    rope = config.rope
    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies = 1.0 / (float(rope["rope_theta"]) ** exponents)
    if rope["rope_type"] == "linear":
        return frequencies / float(rope["factor"])
    if rope["rope_type"] == "llama3":
        low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        turns = float(rope["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        return keep * frequencies + (1 - keep) * frequencies / float(rope["factor"])
    return frequencies
