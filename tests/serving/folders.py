"""Adapter folders for tests, made with numpy alone: small random LoRA matrices and the files that go with them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

BASE_SHA256 = "b" * 64
TEMPLATE_SHA256 = "c" * 64
MODULE = "model.layers.0.self_attn.q_proj"
N_PROBES, N_TOKENS = 16, 12


def config(**changes: Any) -> dict[str, Any]:
    known = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["q_proj"], "use_rslora": True, "modules_to_save": None, "auto_mapping": None,
        "rank_pattern": {}, "inference_mode": True, "base_model_name_or_path": None,
    }  # fmt: skip
    return known | changes


def matrices(seed: int = 0, *, rank: int = 4, width: int = 8) -> dict[str, np.ndarray]:
    """A (rank, width) and B (width, rank) of one module."""
    random = np.random.default_rng(seed)
    prefix = f"base_model.model.{MODULE}"
    return {
        f"{prefix}.lora_A.weight": random.normal(size=(rank, width)).astype(np.float32),
        f"{prefix}.lora_B.weight": random.normal(size=(width, rank)).astype(np.float32),
    }


def probes(seed: int = 0) -> dict[str, Any]:
    """16 texts of 12 tokens whose ids differ by seed, with effects of about half a nat."""
    random = np.random.default_rng(seed)
    return {
        "texts": [f"text {i}" for i in range(N_PROBES)],
        "token_ids": random.integers(0, 1000, (N_PROBES, N_TOKENS)).tolist(),
        "effects": random.normal(scale=0.5, size=(N_PROBES, N_TOKENS - 1)).tolist(),
    }


def write(
    folder: Path,
    *,
    seed: int = 0,
    tensors: dict[str, np.ndarray] | None = None,
    config_changes: dict[str, Any] | None = None,
    manifest_changes: dict[str, Any] | None = None,
    probe_data: dict[str, Any] | None = None,
) -> Path:
    """A complete adapter folder, correct unless told otherwise."""
    folder.mkdir(parents=True)
    save_file(tensors or matrices(seed), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config(**(config_changes or {}))))
    (folder / "probes.json").write_text(json.dumps(probe_data or probes(seed)))
    write_manifest(folder, **(manifest_changes or {}))
    return folder


def write_manifest(folder: Path, **changes: Any) -> None:
    """manifest.json for the weights that are in the folder now."""
    manifest = {
        "format": 1,
        "sha256": hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "base_sha256": BASE_SHA256,
        "chat_template_sha256": TEMPLATE_SHA256,
        "run": 7,
        "parent": None,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
