"""LoRA adapters as files: validated as hostile input, never unpickled, read into float32 tensors.

An adapter folder holds adapter_config.json and adapter_model.safetensors as PEFT writes them, and manifest.json, which
ties the file to the base model that it was trained on.
"""

import hashlib
import json
import math
import os
import re
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serving.engine.model_folder import Manifest, ModelConfig

MAX_CONFIG_BYTES = 4 * 1024 * 1024
MAX_HEADER_BYTES = 16 * 1024 * 1024  # this and the next as in serving/artifacts.py, which lets files in
MAX_FILE_BYTES = 8 * 1024**3
HASHED_AT_ONCE = 4 * 1024 * 1024
MAX_RANK = 256
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KEY = re.compile(
    r"base_model\.model\.model\.layers\.(?P<layer>\d{1,4})\."
    r"(?P<name>self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.lora_(?P<side>[AB])\.weight"
)
# What PEFT may write that would change the maths: each must have the value that means "not used".
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "lora_bias": (False, None),
    "trainable_token_indices": (None,),
    "alora_invocation_tokens": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
}


class InvalidAdapter(ValueError):
    """The adapter folder cannot be served; the message is one sentence for people."""


@dataclass(frozen=True)
class Lora:
    """The factors of one adapter: W' = W + scale · B A (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

    sha256: str
    scale: float
    factors: dict[tuple[int, str], tuple[Tensor, Tensor]]  # (layer, name) -> A (r, n_in), B (n_out, r), float32

    def touches(self, layer: int, name: str) -> bool:
        return (layer, name) in self.factors

    def applied(self, layer: int, name: str, weight: Tensor) -> Tensor:
        """weight: (n_out, n_in) -> W', float32, on the weight's device."""
        a, b = (factor.to(weight.device) for factor in self.factors[layer, name])
        return torch.addmm(weight.float(), b, a, alpha=self.scale)


def read(folder: Path, config: ModelConfig, base: Manifest, check: Callable[[], None] = lambda: None) -> Lora:
    """The adapter in `folder`, fully checked. `check` is called between parts of some milliseconds, and may wait or raise.

    Raises InvalidAdapter.
    """
    check()
    rank, scale = _read_config(folder)
    raw = _read_bytes(folder / "adapter_model.safetensors", MAX_FILE_BYTES)
    sha256 = _sha256(raw, check)
    _check_manifest(folder, sha256, base)
    return Lora(sha256=sha256, scale=scale, factors=_factors(raw, config, rank, check))


def _sha256(raw: bytes, check: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(raw), HASHED_AT_ONCE):
        check()
        digest.update(memoryview(raw)[start : start + HASHED_AT_ONCE])
    return digest.hexdigest()


def _read_config(folder: Path) -> tuple[int, float]:
    """Rank and scale of adapter_config.json: alpha/r, or alpha/√r with rsLoRA (Kalajdzievski 2023, arXiv 2312.03732)."""
    config = _read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise InvalidAdapter(f"Only LoRA adapters can be served, not {config.get('peft_type')!r}.")
    for key, allowed in NEUTRAL.items():
        if config.get(key) not in allowed:
            raise InvalidAdapter(f"adapter_config.json sets {key}, which this engine does not serve.")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise InvalidAdapter(f"The adapter's rank must be between 1 and {MAX_RANK}, not {rank!r}.")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) < 1e6:
        raise InvalidAdapter(f"The adapter's lora_alpha must be a number, not {alpha!r}.")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_manifest(folder: Path, sha256: str, base: Manifest) -> None:
    manifest = _read_json(folder / "manifest.json")
    if manifest.get("sha256") != sha256:
        raise InvalidAdapter("adapter_model.safetensors is not the file that manifest.json describes.")
    if manifest.get("base_sha256") != base["sha256"]:
        raise InvalidAdapter("The adapter was trained on another base model than the one that is served.")
    if manifest.get("chat_template_sha256") not in (None, base["chat_template_sha256"]):
        raise InvalidAdapter("The adapter was trained with another chat template than the one that is served.")


def _factors(
    raw: bytes, config: ModelConfig, rank: int, check: Callable[[], None]
) -> dict[tuple[int, str], tuple[Tensor, Tensor]]:
    sides: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in _tensors(raw, check).items():
        check()
        match = KEY.fullmatch(key)
        if match is None or int(match["layer"]) >= config.n_layers:
            raise InvalidAdapter(f"The adapter has a tensor {key[:120]!r} that this model has no place for.")
        place = (int(match["layer"]), match["name"])
        n_out, n_in = shape(config, match["name"])
        if tuple(tensor.shape) != ((rank, n_in) if match["side"] == "A" else (n_out, rank)):
            raise InvalidAdapter(f"{key} has the shape {tuple(tensor.shape)}, which does not fit this model.")
        if not torch.isfinite(tensor).all():
            raise InvalidAdapter(f"{key} holds values that are not finite.")
        sides.setdefault(place, {})[match["side"]] = tensor
    if not sides or any(len(pair) != 2 for pair in sides.values()):
        raise InvalidAdapter("The adapter lacks lora_A or lora_B of a projection.")
    return {place: (pair["A"], pair["B"]) for place, pair in sides.items()}


def shape(config: ModelConfig, name: str) -> tuple[int, int]:
    """(n_out, n_in) of a projection."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (kv_heads, hidden),
        "self_attn.v_proj": (kv_heads, hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }[name]


def _tensors(raw: bytes, check: Callable[[], None]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as float32. Nothing in the header is believed before it is checked."""
    n_header = struct.unpack("<Q", raw[:8])[0] if len(raw) >= 8 else 0
    if not 2 <= n_header <= min(MAX_HEADER_BYTES, len(raw) - 8):
        raise InvalidAdapter("adapter_model.safetensors is not a safetensors file.")
    header = _parse_json(raw[8 : 8 + n_header], "the header of adapter_model.safetensors")
    header.pop("__metadata__", None)
    start, used = 8 + n_header, 0
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1])):
        dtype, shape, (low, high) = DTYPES.get(entry.get("dtype")), entry.get("shape"), _offsets(entry)
        is_matrix = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
        if dtype is None or not is_matrix or low != used or high - low != math.prod(shape) * dtype.itemsize:
            raise InvalidAdapter(f"Tensor {name[:120]!r} of adapter_model.safetensors has a broken description.")
        if start + high > len(raw):
            raise InvalidAdapter("adapter_model.safetensors is shorter than its header says.")
        used = high
        check()
        flat = torch.frombuffer(bytearray(raw[start + low : start + high]), dtype=dtype)
        tensors[name] = flat.reshape(shape).float()
    if start + used != len(raw):
        raise InvalidAdapter("adapter_model.safetensors is longer than its header says.")
    return tensors


def _offsets(entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets)):
        raise InvalidAdapter("adapter_model.safetensors has a broken header.")
    if not 0 <= offsets[0] < offsets[1]:
        raise InvalidAdapter("adapter_model.safetensors has a broken header.")
    return offsets[0], offsets[1]


def _read_json(path: Path) -> dict[str, Any]:
    return _parse_json(_read_bytes(path, MAX_CONFIG_BYTES), path.name)


def _parse_json(raw: bytes, where: str) -> dict[str, Any]:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"{where} is not JSON.") from error
    if not isinstance(data, dict):
        raise InvalidAdapter(f"{where} is not a JSON object.")
    return data


def _read_bytes(path: Path, limit: int) -> bytes:
    """A regular file of at most `limit` bytes; a symbolic link is refused, it could point outside the adapter."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidAdapter(f"The adapter has no readable {path.name}.") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise InvalidAdapter(f"{path.name} is not a regular file of at most {limit // 2**20} MiB.")
        return file.read(limit)
