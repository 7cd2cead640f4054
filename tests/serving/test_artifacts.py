import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import artifacts
from serving.artifacts import InvalidAdapter
from tests.serving import folders

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
Shapes = dict[str, tuple[int, ...]]
Q = f"base_model.model.{folders.MODULE}"


def check(folder: Path, shapes: Shapes | None = None) -> artifacts.Artifact:
    return artifacts.check(folder, base_sha256=folders.BASE_SHA256, base_shapes=shapes)


def spoil(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def spoil_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the header of the weights, leaves the data, and makes the manifest fit."""
    data = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    folders.write_manifest(folder)


def replace_weights(folder: Path, data: bytes) -> None:
    (folder / WEIGHTS).write_bytes(data)
    folders.write_manifest(folder)


def first(header: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in header.items() if name != "__metadata__")


# --- good ones --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_it_accepts_a_correct_folder(tmp_path: Path, dtype: type) -> None:
    tensors: dict[str, np.ndarray] = {name: value.astype(dtype) for name, value in folders.matrices().items()}
    folder = folders.write(tmp_path / "a", tensors=tensors)
    assert check(folder, {f"{folders.MODULE}.weight": (8, 8)}).sha256 == artifacts.hash_of(folder / WEIGHTS)


def test_it_copies_the_four_files_read_only(tmp_path: Path) -> None:
    artifacts.copy(folders.write(tmp_path / "a"), tmp_path / "b")
    copied = sorted((tmp_path / "b").iterdir())
    assert [file.name for file in copied] == sorted(artifacts.MAX_BYTES)
    assert {file.stat().st_mode & 0o777 for file in copied} == {0o444}


# --- hostile ones -----------------------------------------------------------------------------------------------------
CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "PROMPT_TUNING"}, "peft_type"),
    ({"task_type": "SEQ_CLS"}, "task_type"),
    ({"auto_mapping": {"base_model_class": "X", "parent_library": "os"}}, "auto_mapping"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"trust_remote_code": True}, "trust_remote_code"),
    ({"use_dora": True}, "use_dora"),
    ({"a_feature_of_tomorrow": {"x": 1}}, "a_feature_of_tomorrow"),
    ({"rank_pattern": {"q_proj": 64}}, "rank_pattern"),
    ({"bias": "all"}, "bias"),
    ({"r": 0}, "r must"),
    ({"r": 257}, "r must"),
    ({"r": True}, "r must"),
    ({"r": 8}, "configured rank"),
    ({"lora_alpha": 0}, "lora_alpha"),
    ({"lora_alpha": 10**400}, "lora_alpha"),
    ({"use_rslora": "yes"}, "use_rslora"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights"),
    ({"init_lora_weights": {"x": 1}}, "init_lora_weights"),
    ({"lora_dropout": 1.0}, "lora_dropout"),
    ({"lora_dropout": "0.1"}, "lora_dropout"),
    ({"inference_mode": "no"}, "inference_mode"),
    ({"megatron_core": "os"}, "megatron_core"),
    ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path"),
    ({"revision": "x" * 300}, "revision"),
    ({"layers_to_transform": "[0-9]+"}, "layers_to_transform"),
    ({"layers_to_transform": [-1]}, "layers_to_transform"),
    ({"layer_replication": [[0, 9]]}, "layer_replication"),
    ({"lora_bias": True}, "lora_bias"),
    ({"target_modules": "(a+)+$"}, "target_modules"),
    ({"target_modules": []}, "target_modules"),
    ({"target_modules": ["../q_proj"]}, "target_modules"),
    ({"target_modules": ["v_proj"]}, "not among target_modules"),
]


@pytest.mark.parametrize(("changes", "problem"), CONFIGS, ids=lambda value: str(value)[:40])
def test_it_refuses_a_config(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidAdapter, match=problem):
        check(folders.write(tmp_path / "a", config_changes=changes))


def bad(value: float) -> dict[str, np.ndarray]:
    tensors = folders.matrices()
    tensors[f"{Q}.lora_B.weight"][3, 1] = value
    return tensors


A, B = folders.matrices().values()
TENSORS: list[tuple[dict[str, np.ndarray], str]] = [
    (bad(np.nan), "not finite"),
    (bad(-np.inf), "not finite"),
    ({f"{Q}.lora_A.weight": A}, "needs lora_A and lora_B"),
    ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, "model.embed_tokens.weight": A}, "not a LoRA matrix"),
    ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B, f"{Q}.base_layer.weight": A}, "not a LoRA matrix"),
    ({"base_model.model.a/../q_proj.lora_A.weight": A, f"{Q}.lora_B.weight": B}, "not a LoRA matrix"),
    ({f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B.T.copy()}, "configured rank"),
    ({f"{Q}.lora_A.weight": A.astype(np.float64), f"{Q}.lora_B.weight": B}, "dtype"),
    ({f"{Q}.lora_A.weight": A.astype(np.int32), f"{Q}.lora_B.weight": B}, "dtype"),
    ({f"{Q}.lora_A.weight": A.reshape(2, 2, 8), f"{Q}.lora_B.weight": B}, "configured rank"),
]


@pytest.mark.parametrize(("tensors", "problem"), TENSORS)
def test_it_refuses_weights(tmp_path: Path, tensors: dict[str, np.ndarray], problem: str) -> None:
    with pytest.raises(InvalidAdapter, match=problem):
        check(folders.write(tmp_path / "a", tensors=tensors))


HEADERS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda h: first(h).update(data_offsets=[0, 1]), "size"),
    (lambda h: first(h).update(data_offsets=[-128, 0]), "malformed"),
    (lambda h: first(h).update(data_offsets=[128, 256]), "overlap"),
    (lambda h: first(h).update(data_offsets=[1 << 60, (1 << 60) + 128]), "malformed"),
    (lambda h: first(h).update(shape=[1 << 47, 1 << 47]), "size"),
    (lambda h: first(h).update(shape=[4.0, 8]), "malformed"),
    (lambda h: first(h).pop("dtype"), "malformed"),
    (lambda h: h.pop(f"{Q}.lora_B.weight"), "cut off"),
    (lambda h: h.update({f"{Q}.lora_C.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}), "LoRA"),
]


@pytest.mark.parametrize(("change", "problem"), HEADERS)
def test_it_refuses_a_header(tmp_path: Path, change: Callable[[dict[str, Any]], Any], problem: str) -> None:
    folder = folders.write(tmp_path / "a")
    spoil_header(folder, change)
    with pytest.raises(InvalidAdapter, match=problem):
        check(folder)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "length"),
        (b"\x80\x04\x95", "length"),  # the beginning of a pickle
        ((1 << 62).to_bytes(8, "little") + b"{}", "length"),
        ((2).to_bytes(8, "little") + b"[]", "JSON object"),
        ((2).to_bytes(8, "little") + b"{x", "JSON"),
        ((20_000).to_bytes(8, "little") + b"[" * 20_000, "JSON"),
        ((14).to_bytes(8, "little") + b'{"a":1,"a":22}', "twice"),
        ((2).to_bytes(8, "little") + b"{}", "no LoRA"),
        ((2).to_bytes(8, "little") + b"{}" + b"tail", "behind"),
    ],
)
def test_it_refuses_a_file_that_is_no_safetensors(tmp_path: Path, data: bytes, problem: str) -> None:
    folder = folders.write(tmp_path / "a")
    replace_weights(folder, data)
    with pytest.raises(InvalidAdapter, match=problem):
        check(folder)


def test_it_refuses_matrices_that_do_not_fit_the_base(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "a")
    wrong: list[Shapes] = [{f"{folders.MODULE}.weight": (8, 16)}, {}]
    for shapes in wrong:
        with pytest.raises(InvalidAdapter, match="does not fit"):
            check(folder, shapes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": 2}, "format"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"sha256": None}, "sha256"),
        ({"base_sha256": "0" * 64}, "another base"),
    ],
)
def test_it_refuses_a_manifest(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidAdapter, match=problem):
        check(folders.write(tmp_path / "a", manifest_changes=changes))


PROBES: list[Callable[[dict[str, Any]], Any]] = [
    lambda p: p["token_ids"].pop(),
    lambda p: p["token_ids"].__setitem__(0, [1]),
    lambda p: p["token_ids"][0].__setitem__(0, -1),
    lambda p: p["token_ids"][0].__setitem__(0, "1"),
    lambda p: p["token_ids"][0].extend([1] * 5000),
    lambda p: p["effects"][3].pop(),
    lambda p: p["effects"][3].__setitem__(0, None),
    lambda p: p.pop("effects"),
]


@pytest.mark.parametrize("change", PROBES)
def test_it_refuses_probes(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    folder = folders.write(tmp_path / "a")
    spoil(folder, "probes.json", change)
    with pytest.raises(InvalidAdapter, match=r"probes\.json"):
        check(folder)


def test_it_refuses_numbers_that_are_none(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "a")
    text = (folder / "probes.json").read_text()
    (folder / "probes.json").write_text(text.replace('"effects": [[', '"effects": [[NaN, ', 1))
    with pytest.raises(InvalidAdapter, match="NaN"):
        check(folder)


@pytest.mark.parametrize(
    "name", ["hook.py", "pytorch_model.bin", "adapter_model.bin", "adapter_model.pt", "README.md", ".hidden", "sub"]
)
def test_it_refuses_other_files(tmp_path: Path, name: str) -> None:
    folder = folders.write(tmp_path / "a")
    (folder / name).mkdir() if name == "sub" else (folder / name).write_text("x")
    with pytest.raises(InvalidAdapter, match="may hold only"):
        check(folder)


def test_it_refuses_links_and_missing_files(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "a")
    (folder / CONFIG).rename(tmp_path / "elsewhere.json")
    with pytest.raises(InvalidAdapter, match="missing"):
        check(folder)
    (folder / CONFIG).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InvalidAdapter, match="plain file"):
        check(folder)
    with pytest.raises(InvalidAdapter, match="no folder"):
        check(tmp_path / "nowhere")


def test_it_refuses_a_config_that_is_too_large(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "a")
    (folder / CONFIG).write_text(json.dumps({"x": "y" * 100_000}))
    with pytest.raises(InvalidAdapter, match="too large"):
        check(folder)
