"""Layers written by hand against transformers' own, in float64: equal to rounding, forward and backward."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config

from tests.training.ml.cases import exact_norms, make_learner, shake, some_pairs
from training.ml import attention, block, decoder, policy
from training.ml.errors import TrainingError
from training.ml.logprobs import response_logps
from training.ml.rows import pack

SIZES: dict[str, Any] = {
    "vocab_size": 40_000,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama with biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama with wider heads": LlamaConfig(**SIZES, head_dim=16),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Random weights, norms and biases too: nothing that happens to be 0 or 1."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.float64)
    made.set_attn_implementation(attention.NAME)
    exact_norms(made)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.requires_grad_(False)


def by_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the layers of every family back to transformers' own code."""
    monkeypatch.setattr(block, "FAMILY", set())


def test_it_computes_what_transformers_does(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (batch,) = pack(some_pairs(), 4096)
    ours = decoder.hidden_states(model, batch)
    by_transformers(monkeypatch)
    torch.testing.assert_close(ours, decoder.hidden_states(model, batch), rtol=1e-9, atol=1e-9)


def test_it_has_the_gradients_of_transformers_layers(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    base = policy.Base(model, None, None, "", "")  # type: ignore[arg-type]  # its folder and tokenizer are not asked
    (batch,) = pack(some_pairs(), 4096)
    learner, adapted = make_learner(base, some_pairs())
    shake(adapted)
    direction = torch.randn(batch.n_responses, dtype=torch.float64)

    def gradients() -> list[torch.Tensor]:
        (response_logps(model, batch) @ direction).backward()
        found = [p.grad.clone() for p in learner.parameters if p.grad is not None]
        learner.optimizer.zero_grad()
        return found

    ours = gradients()
    by_transformers(monkeypatch)
    for mine, theirs in zip(ours, gradients(), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def test_it_passes_the_gradient_of_its_input_on(model: PreTrainedModel) -> None:
    layer = model.get_decoder().layers[0]
    x = torch.randn(7, 32, dtype=torch.float64, requires_grad=True)
    cos, sin = model.get_decoder().rotary_emb(x[None], torch.arange(7)[None])
    rotation = block.Rotation(cos[0, :, None].double(), sin[0, :, None].double())
    plan = attention.plan([attention.Segment(0, 4, 0, 0), attention.Segment(4, 7, 0, 4)], 4, 2, x)
    assert torch.autograd.gradcheck(lambda x: block.run(layer, x, rotation, plan), (x,))


def test_it_leaves_other_architectures_to_transformers() -> None:
    config = LlamaConfig(**SIZES, hidden_act="gelu")
    layer = AutoModelForCausalLM.from_config(config).get_decoder().layers[0]
    assert not block.is_known(layer, config)


def test_it_refuses_more_tokens_than_a_layer_looks_back() -> None:
    config = MistralConfig(**SIZES, sliding_window=4)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    (batch,) = pack(some_pairs(), 4096)
    with pytest.raises(TrainingError, match="a window of 4 tokens"):
        decoder.hidden_states(model, batch)
