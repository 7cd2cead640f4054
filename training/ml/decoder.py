"""From a pack's tokens to the hidden states that predict: by `block` where it knows the layers, else by transformers."""

from typing import Any

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from training.ml import attention, block
from training.ml.rows import Pack, Segment
from training.ml.trunk import Trunk, first_adapted

ROUND = 32  # pack lengths are filled up to a multiple: oneDNN keeps a kernel of some MB for every new shape


def hidden_states(
    model: PreTrainedModel, pack: Pack, dtype: torch.dtype | None = None, trunk: Trunk | None = None
) -> torch.Tensor:
    """(T', W) the last layer's normalised output, T' ≥ T; computed in `dtype`, the model's own if None.

    `trunk` is used where no adapter that is switched on changes it.
    """
    n_tokens, n_fill = pack.n_tokens, -pack.n_tokens % ROUND
    fill = [Segment(n_tokens, n_tokens + n_fill, n_tokens, n_tokens)] if n_fill else []
    embedded = model.get_input_embeddings()(pad(pack.input_ids, (0, n_fill)))  # (1, T', W)
    embedded = embedded.to(dtype or embedded.dtype)
    positions = pad(pack.position_ids, (0, n_fill))
    decoder: Any = model.get_decoder()
    heads = decoder.config.num_attention_heads, decoder.config.num_key_value_heads
    plan = attention.plan(pack.segments + fill, *heads, embedded)
    if not is_known(model):
        return decoder(inputs_embeds=embedded, position_ids=positions, plan=plan, use_cache=False).last_hidden_state[0]
    for layer in decoder.layers:
        attention.check_window(plan, block.window(layer, decoder.config))
    cos, sin = decoder.rotary_emb(embedded, positions)
    rotation = block.Rotation(cos[0, :, None], sin[0, :, None])
    x, first = embedded[0], 0
    if trunk and trunk.dtype == x.dtype and first_adapted(decoder.layers) >= trunk.n_layers:
        x, first = trunk.states(pack, x, decoder.layers, rotation, plan), trunk.n_layers
    for layer in decoder.layers[first:]:
        x = block.run(layer, x, rotation, plan)
    return decoder.norm(x)


def is_known(model: PreTrainedModel) -> bool:
    """Whether all of the model's layers are of the family that `block` computes."""
    return all(block.is_known(layer, model.config) for layer in getattr(model.get_decoder(), "layers", [None]))
