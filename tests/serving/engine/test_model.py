"""The forward pass: equal to transformers', and independent of what else is in the batch."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from serving.engine import model_folder, weights
from serving.engine.cache import BLOCK
from serving.engine.model import Model, Segment
from serving.engine.weights import Linear, Weights

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama, tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama, untied, biases": LlamaConfig(**SMALL, tie_word_embeddings=False, attention_bias=True),
    "llama, all heads": LlamaConfig(**{**SMALL, "num_key_value_heads": 4, "head_dim": 32}),
    "llama 3 rope": LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "linear rope": LlamaConfig(**SMALL, rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "qwen 2": Qwen2Config(**SMALL, tie_word_embeddings=True),
}


def load(folder: Path, dtype: torch.dtype) -> tuple[Model, Weights]:
    config = model_folder.read_config(folder)
    checkpoint = weights.Checkpoint(folder, dtype, CPU)
    return Model(config, 512, dtype, CPU), weights.load(config, checkpoint)


def logits_of(model: Model, base: Weights, tokens: list[int], n_prompt: int) -> torch.Tensor:
    """All positions' logits: the prompt block by block, the rest token by token."""
    cache, rows = model.new_cache(len(tokens)), []
    for start in range(0, n_prompt, BLOCK):
        rows.append(model.hidden(base, [Segment(cache, start, tokens[start : min(start + BLOCK, n_prompt)])]))
    for position in range(n_prompt, len(tokens)):
        rows.append(model.hidden(base, [Segment(cache, position, [tokens[position]])]))
    return model.logits(base, torch.cat(rows))


@pytest.mark.parametrize("name", FAMILIES)
def test_it_equals_transformers_in_float32(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(FAMILIES[name]).float().eval()
    for parameter in theirs.parameters():  # biases and norms start at 0 and 1, which would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(500, (170,)).tolist()
    model, base = load(tmp_path, torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
    found = logits_of(model, base, tokens, 150)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-4 * float(expected.std()))


def test_it_is_close_to_transformers_on_the_real_model(model_dir: Path) -> None:
    dtype = getattr(torch, model_folder.read_manifest(model_dir)["dtype"])
    model, base = load(model_dir, dtype)
    theirs = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype).eval()
    exact = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    torch.manual_seed(1)
    tokens = torch.randint(2, 40000, (100,)).tolist()
    with torch.no_grad():
        truth = exact(torch.tensor([tokens])).logits[0].log_softmax(-1)
        their_error = (theirs(torch.tensor([tokens])).logits[0].float().log_softmax(-1) - truth).abs().mean()
    our_error = (logits_of(model, base, tokens, 90).log_softmax(-1) - truth).abs().mean()
    assert our_error <= 1.2 * their_error + 1e-4


@pytest.fixture(params=[1, 2])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("n_threads")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("n_in", "n_out"), [(576, 960), (576, 3072), (1536, 576), (576, 4096), (64, 192)])
def test_it_rounds_a_row_the_same_in_every_batch(n_in: int, n_out: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(160, n_in).to(dtype)
    with torch.inference_mode():
        linear = Linear((0.05 * torch.randn(n_out, n_in)).to(dtype))
        whole = linear(x)
        for n in (2, 3, 5, 8, 17, 33, 64, 65, 72, 100):
            assert torch.equal(linear(x[:n]), whole[:n])
            assert torch.equal(linear(x[37 : 37 + n]), whole[37 : 37 + n])


def test_it_computes_a_sequence_the_same_in_every_company(model_dir: Path) -> None:
    dtype = getattr(torch, model_folder.read_manifest(model_dir)["dtype"])
    model, base = load(model_dir, dtype)
    torch.manual_seed(2)
    prompts = [torch.randint(2, 40000, (n,)).tolist() for n in (70, 1, 20, 64)]

    def first_block(prompt: list[int]) -> Segment:
        return Segment(model.new_cache(100), 0, prompt[:BLOCK])

    alone = [model.hidden(base, [first_block(prompt)]) for prompt in prompts]
    segments = [first_block(prompt) for prompt in prompts]
    together = model.hidden(base, segments).split([len(s.tokens) for s in segments])
    for one, same in zip(alone, together, strict=True):
        assert torch.equal(one, same)
    next_alone = model.hidden(base, [Segment(segments[1].cache, 1, [7])])
    mixed = [Segment(segments[0].cache, 64, prompts[0][64:]), Segment(segments[1].cache, 1, [7])]
    assert torch.equal(model.hidden(base, mixed)[-1:], next_alone)
    assert torch.equal(model.logits(base, torch.cat(alone))[64:65], model.logits(base, alone[1]))


def test_it_gives_float32_logits_of_a_prompt(model_dir: Path) -> None:
    dtype = getattr(torch, model_folder.read_manifest(model_dir)["dtype"])
    model, base = load(model_dir, dtype)
    hidden = model.hidden(base, [Segment(model.new_cache(8), 0, [1, 50, 900, 42])])
    expected = hidden.double() @ base.embedding.double().T
    torch.testing.assert_close(model.float32_logits(base, hidden).double(), expected, rtol=0, atol=1e-4)


def test_it_refuses_another_architecture(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(model_folder.BrokenModel, match=r"GPT2LMHeadModel.*LlamaForCausalLM.*ENGINE_URLS"):
        model_folder.check(folder)


def test_it_refuses_features_that_it_would_get_wrong(tmp_path: Path) -> None:
    for config in (
        MistralConfig(**SMALL, sliding_window=128),
        LlamaConfig(**SMALL, hidden_act="gelu"),
        LlamaConfig(**SMALL, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    ):
        assert isinstance(config, PretrainedConfig)
        config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
        config.save_pretrained(tmp_path)
        with pytest.raises(model_folder.BrokenModel, match="ENGINE_URLS"):
            model_folder.read_config(tmp_path)
