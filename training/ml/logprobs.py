"""Log-probabilities of responses: the language-model head at completion positions only, never the whole logits."""

from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from transformers import PreTrainedModel

from training.ml.decoder import hidden_states, is_known
from training.ml.rows import Pack
from training.ml.trunk import Trunk, first_adapted

CHUNK = 256  # positions whose logits exist at one time: 256 x 49k x 2 bytes = 25 MB


class TokenLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[target] under a frozen head.

    The head has no gradient and a position's log-probability one scalar cotangent, so its derivative with respect to
    the hidden state, weight[target] - softmax @ weight, is computed while the chunk's logits are at hand: the backward
    pass only scales it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """hidden (N, H), weight (V, H), targets (N,) -> (N,) in fp32 or wider."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logps = torch.empty(len(targets), dtype=wide, device=hidden.device)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(targets), CHUNK):
            chunk = slice(start, start + CHUNK)
            target = targets[chunk, None]  # (C, 1)
            logits = hidden[chunk] @ weight.T  # (C, V)
            top, most_likely = logits.max(-1, keepdim=True)
            p = logits.softmax(-1)  # adds up in fp32
            norm = top.to(wide) - p.gather(-1, most_likely).to(wide).log()  # logsumexp, without a pass of its own
            logps[chunk] = (logits.gather(-1, target).to(wide) - norm)[:, 0]
            if slopes is not None:
                slopes[chunk] = weight[target[:, 0]] - p @ weight
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logps: torch.Tensor) -> tuple[Any, ...]:
        (slopes,) = ctx.saved_tensors
        return (d_logps[:, None] * slopes).to(slopes.dtype), None, None


def token_logps(
    model: PreTrainedModel, pack: Pack, dtype: torch.dtype | None = None, trunk: Trunk | None = None
) -> torch.Tensor:
    """(N,) the log-probability of each of `pack.targets`; computed in `dtype`, the model's own if None."""
    hidden = hidden_states(model, pack, dtype, trunk)  # (T, W)
    weight = model.get_output_embeddings().weight.to(hidden.dtype)
    n_fill = -len(pack.targets) % (CHUNK // 2)
    predicting = hidden[pad(pack.predictors, (0, n_fill))]  # (N, W)
    return TokenLogps.apply(predicting, weight, pad(pack.targets, (0, n_fill)))[: len(pack.targets)]


def response_logps(model: PreTrainedModel, pack: Pack, trunk: Trunk | None = None) -> torch.Tensor:
    """(R,) sums of the log-probabilities of each response's tokens, in the order of `pack.order`."""
    logps = token_logps(model, pack, trunk=trunk)
    return torch.zeros(pack.n_responses, dtype=logps.dtype, device=logps.device).index_add(0, pack.owners, logps)


def trunk_below(model: PreTrainedModel, folder: Path) -> Trunk | None:
    """What lies below the model's adapter; None where the adapter begins at the bottom, or the layers are not known."""
    layers: Any = model.get_decoder().layers if is_known(model) else []
    n_frozen = first_adapted(layers, counts_disabled=True)
    return Trunk(model, n_frozen, folder) if n_frozen else None
