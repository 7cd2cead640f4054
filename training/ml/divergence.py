"""How far the policy has moved from the base on given responses: KL per token, over the whole vocabulary."""

from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from training.ml.decoder import hidden_states
from training.ml.rows import Item, pack

CHUNK = 64  # positions whose two distributions exist at one time: 4 x 64 x 49k x 4 bytes = 50 MB


def per_token(policy: PeftModel, model: PreTrainedModel, items: Sequence[Item], budget: int) -> float:
    """Mean over the responses' tokens of KL(policy ‖ base) at that place, in nats; `model` is the one within `policy`.

    The sum over the vocabulary is exact: no sampled estimate, which would be as noisy as it is large here, and no value
    below zero. Only the places are sampled, by whoever wrote the responses.
    """
    total, count = 0.0, 0
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        for batch in pack(items, budget, device=model.device):
            new = hidden_states(model, batch)[batch.predictors]  # (N, W)
            with policy.disable_adapter():
                old = hidden_states(model, batch)[batch.predictors]  # (N, W)
            for start in range(0, len(new), CHUNK):
                chunk = slice(start, start + CHUNK)
                total += _divergence(new[chunk] @ weight.T, old[chunk] @ weight.T)
            count += len(new)
    return total / count


def _divergence(new: torch.Tensor, old: torch.Tensor) -> float:
    """Σ over positions of KL(softmax(new) ‖ softmax(old)); logits (C, V)."""
    wide = torch.promote_types(new.dtype, torch.float32)
    p, q = new.to(wide).log_softmax(-1), old.to(wide).log_softmax(-1)
    return float((p.exp() * (p - q)).sum())
