"""The adapter's folder: standard PEFT files that peft alone can load, a manifest and the probes."""

import hashlib
import json
import os
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save

from training import catalog
from training.ml import files
from training.ml.jobs import Job
from training.ml.policy import NEW, Base


def serialise(model: PeftModel) -> bytes:
    """adapter_model.safetensors in fp32; its sha256 is the adapter's identity."""
    tensors = get_peft_model_state_dict(model, adapter_name=NEW, save_embedding_layers=False)
    wide = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    return save(wide, metadata={"format": "pt"})


def write(
    folder: Path, weights: bytes, model: PeftModel, base: Base, job: Job, probes: dict[str, Any] | None = None
) -> None:
    """Writes the folder whole and durable; without probes what no engine is to serve."""
    config = clean_config(model, base)
    with files.new_folder(folder) as part:
        (part / "adapter_model.safetensors").write_bytes(weights)
        _dump(part / "adapter_config.json", config)
        _dump(part / "manifest.json", manifest(job, base, config, hashlib.sha256(weights).hexdigest()))
        if probes is not None:
            _dump(part / "probes.json", probes)


def clean_config(model: PeftModel, base: Base) -> dict[str, Any]:
    """adapter_config.json: the model's name in place of a path on this machine, sets in a fixed order."""
    config = model.peft_config[NEW].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    alpha = config["lora_alpha"]
    return config | {
        "base_model_name_or_path": base.folder.name,
        # "q_proj" means that layer in every block, as every block has it. PEFT shortens the list of large models only.
        "target_modules": sorted({name.rpartition(".")[2] for name in config["target_modules"]}),
        "inference_mode": True,
        "auto_mapping": None,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
    }


def manifest(job: Job, base: Base, config: dict[str, Any], sha256: str) -> dict[str, Any]:
    """Where the adapter comes from, in full: with the same inputs the same adapter can be made again."""
    return {
        "format": 1,
        "sha256": sha256,
        "base_sha256": base.sha256,
        "chat_template_sha256": base.chat_template_sha256,
        "snapshot_sha256": job.snapshot_sha256,
        "run": job.run,
        "attempt": job.attempt,
        "method": job.method,
        "params": catalog.to_dict(job.params),
        "code_version": code_version(),
        "seed": job.params.seed,
        "created_at": datetime.now(UTC).isoformat(),
        "parent": job.incumbent_name if job.is_continuing else None,
        "rank": config["r"],
        "target_modules": config["target_modules"],
    }


def code_version() -> str:
    """CODE_VERSION (images have no .git), else the git commit, with "+dirty" when files differ; else the package's."""
    if given := os.environ.get("CODE_VERSION", "").strip():
        return given
    asked = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40"]
    asked += ["--exclude=*", "--dirty=+dirty"]  # never a tag's name
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return metadata.version("alignapp")
    except metadata.PackageNotFoundError:
        return "unknown"


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
