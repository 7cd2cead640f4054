"""Merged versions: equal to PEFT's, sharing what the adapter leaves alone."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from serving.engine import lora, model_folder, weights
from serving.engine.model import Model, Segment
from tests.serving.engine.conftest import make_adapter

CPU = torch.device("cpu")


@pytest.mark.parametrize("rslora", [True, False])
def test_it_equals_peft(tiny_model_dir: Path, tmp_path: Path, rslora: bool) -> None:
    folder = make_adapter(tmp_path / "adapter", tiny_model_dir, rslora=rslora)
    config = model_folder.read_config(tiny_model_dir)
    checkpoint = weights.Checkpoint(tiny_model_dir, torch.float32, CPU)
    base = weights.load(config, checkpoint)
    adapter = lora.read(folder, config, model_folder.read_manifest(tiny_model_dir))
    merged = weights.merge(base, checkpoint, adapter)
    model = Model(config, 64, torch.float32, CPU)
    tokens = [1, 500, 7, 42, 8000]
    found = model.logits(merged, model.hidden(merged, [Segment(model.new_cache(5), 0, tokens)]))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), folder)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
    unmerged = model.logits(base, model.hidden(base, [Segment(model.new_cache(5), 0, tokens)]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - unmerged).abs().max() > 0.1


def test_it_shares_what_the_adapter_leaves_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", tiny_model_dir, names=("self_attn.v_proj", "mlp.down_proj"))
    config = model_folder.read_config(tiny_model_dir)
    checkpoint = weights.Checkpoint(tiny_model_dir, torch.float32, CPU)
    base = weights.load(config, checkpoint)
    merged = weights.merge(base, checkpoint, lora.read(folder, config, model_folder.read_manifest(tiny_model_dir)))
    assert merged.embedding is base.embedding
    assert merged.head is base.head
    for old, new in zip(base.layers, merged.layers, strict=True):
        assert (new.out, new.gate_up, new.input_norm) == (old.out, old.gate_up, old.input_norm)
        assert new.qkv is not old.qkv
        assert new.down is not old.down


def test_it_keeps_changes_that_are_smaller_than_a_step_of_bfloat16() -> None:
    base = torch.full((400, 400), 0.1).bfloat16().float()
    for change in (2e-5, -2e-5):  # a step at 0.1 is 5e-4
        rounded = weights.rounded(base + change, torch.bfloat16, seed=0).float() - base
        assert rounded.mean().item() == pytest.approx(change, rel=0.1)
        assert rounded.abs().max() < 6e-4
    assert torch.equal(weights.rounded(base, torch.bfloat16, seed=0).float(), base)
    assert torch.equal(weights.rounded(base + 2e-5, torch.float32, seed=0), base + 2e-5)


def test_it_names_a_tensor_that_is_missing(tiny_model_dir: Path) -> None:
    checkpoint = weights.Checkpoint(tiny_model_dir, torch.float32, CPU)
    with pytest.raises(KeyError, match=r"model\.layers\.2"):
        weights.load(
            model_folder.read_config(tiny_model_dir).__class__(
                **{**vars(model_folder.read_config(tiny_model_dir)), "n_layers": 3}
            ),
            checkpoint,
        )
