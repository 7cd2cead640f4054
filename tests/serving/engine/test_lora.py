"""Adapter files are hostile: whatever is wrong with one is found before anything is built from it."""

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from serving import artifacts
from serving.engine import lora, model_folder
from serving.engine.lora import InvalidAdapter, Lora
from tests.serving.engine.conftest import describe, make_adapter

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter", tiny_model_dir)


def read(folder: Path, model: Path) -> Lora:
    return lora.read(folder, model_folder.read_config(model), model_folder.read_manifest(model))


def change_tensors(folder: Path, model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    describe(folder, model)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_it_reads_what_peft_writes(adapter: Path, tiny_model_dir: Path) -> None:
    found = read(adapter, tiny_model_dir)
    tensors = load_file(adapter / "adapter_model.safetensors")
    a, b = found.factors[0, "self_attn.q_proj"]
    assert torch.equal(a, tensors[KEY.format("A")])
    assert torch.equal(b, tensors[KEY.format("B")])
    assert found.scale == 8 / math.sqrt(4)
    assert len(found.factors) == 14
    change_config(adapter, use_rslora=False)
    assert read(adapter, tiny_model_dir).scale == 2
    change_config(adapter, use_rslora=1)  # PEFT asks only whether it is true
    assert read(adapter, tiny_model_dir).scale == 8 / math.sqrt(4)


def test_it_takes_files_as_large_as_are_let_in() -> None:
    assert artifacts.MAX_BYTES[artifacts.WEIGHTS] == lora.MAX_FILE_BYTES
    assert lora.MAX_HEADER_BYTES == artifacts.MAX_HEADER_BYTES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_reads_half_precision(adapter: Path, tiny_model_dir: Path, dtype: torch.dtype) -> None:
    change_tensors(adapter, tiny_model_dir, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    a, _ = read(adapter, tiny_model_dir).factors[1, "mlp.up_proj"]
    assert a.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "Only LoRA"),
        ({"r": 257}, "rank"),
        ({"r": True}, "rank"),
        ({"r": 8}, "shape"),
        ({"lora_alpha": "big"}, "lora_alpha"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"use_qalora": True}, "use_qalora"),
    ],
)
def test_it_refuses_a_configuration(adapter: Path, tiny_model_dir: Path, changes: dict[str, Any], words: str) -> None:
    change_config(adapter, **changes)
    with pytest.raises(InvalidAdapter, match=words):
        read(adapter, tiny_model_dir)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(KEY.format("A")), "lacks lora_A or lora_B"),
        (lambda t: t.clear(), "lacks|not a safetensors|broken header"),
        (lambda t: t.update({KEY.format("A"): torch.zeros(4, 65)}), "shape"),
        (lambda t: t.update({KEY.format("B"): torch.full((64, 4), math.nan)}), "not finite"),
        (lambda t: t.update({KEY.format("A").replace("layers.0", "layers.2"): torch.zeros(4, 64)}), "no place"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}), "no place"),
        (lambda t: t.update({KEY.format("A"): torch.zeros(4, 64, dtype=torch.float64)}), "broken description"),
    ],
)
def test_it_refuses_tensors(
    adapter: Path, tiny_model_dir: Path, change: Callable[[dict[str, torch.Tensor]], None], words: str
) -> None:
    change_tensors(adapter, tiny_model_dir, change)
    with pytest.raises(InvalidAdapter, match=words):
        read(adapter, tiny_model_dir)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": "0" * 64}, "not the file"),
        ({"base_sha256": "0" * 64}, "another base model"),
        ({"chat_template_sha256": "0" * 64}, "another chat template"),
    ],
)
def test_it_refuses_what_belongs_to_something_else(
    adapter: Path, tiny_model_dir: Path, changes: dict[str, str], words: str
) -> None:
    describe(adapter, tiny_model_dir, **changes)
    with pytest.raises(InvalidAdapter, match=words):
        read(adapter, tiny_model_dir)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "manifest.json"])
def test_it_refuses_missing_linked_and_special_files(adapter: Path, tiny_model_dir: Path, name: str) -> None:
    (adapter / name).rename(adapter / "elsewhere")
    with pytest.raises(InvalidAdapter, match=f"no readable {name}"):
        read(adapter, tiny_model_dir)
    (adapter / name).symlink_to(adapter / "elsewhere")
    with pytest.raises(InvalidAdapter, match=f"no readable {name}"):
        read(adapter, tiny_model_dir)
    (adapter / name).unlink()
    os.mkfifo(adapter / name)
    with pytest.raises(InvalidAdapter, match="not a regular file"):
        read(adapter, tiny_model_dir)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 400]}}',
        b'{"a": {"dtype": "F32", "shape": [100000000, 1], "data_offsets": [0, 400000000]}}',
        b'{"a": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},'
        b' "b": {"dtype": "F32", "shape": [1, 1], "data_offsets": [2, 6]}}',
        b"[" * 100_000,
    ],
)
def test_it_refuses_broken_headers(adapter: Path, tiny_model_dir: Path, header: bytes) -> None:
    file = struct.pack("<Q", len(header)) + header + bytes(8)
    (adapter / "adapter_model.safetensors").write_bytes(file)
    describe(adapter, tiny_model_dir)
    with pytest.raises(InvalidAdapter):
        read(adapter, tiny_model_dir)


@given(at=st.integers(0, 4000), value=st.binary(min_size=1, max_size=8), keep=st.floats(0, 1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_never_fails_otherwise_on_damaged_files(
    adapter: Path, tiny_model_dir: Path, at: int, value: bytes, keep: float
) -> None:
    path = adapter / "adapter_model.safetensors"
    whole = path.read_bytes()
    damaged = whole[:at] + value + whole[at + len(value) :]
    path.write_bytes(damaged[: max(8, int(len(damaged) * keep))])
    describe(adapter, tiny_model_dir)
    try:
        read(adapter, tiny_model_dir)
    except InvalidAdapter:
        pass
    finally:
        path.write_bytes(whole)
