"""A prepared model folder: what must lie in it, checked without torch (the web process and `up` read it too).

`python -m serving.engine.prepare` writes such a folder; `check` says in one sentence what is wrong with one.
"""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

MANIFEST = "alignapp-model.json"
TEMPLATE = "chat_template.jinja"
SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3")
MAX_HEADER_BYTES = 100 * 1024 * 1024  # the safetensors format's own limit


class BrokenModel(ValueError):
    """The model folder cannot be served; the message is one sentence for people that says what to do."""


class Manifest(TypedDict):
    """alignapp-model.json: the identity of a base model."""

    sha256: str  # of the source file (64 hex digits)
    source: str
    dtype: str  # "bfloat16" or "float32"
    chat_template_sha256: str
    architecture: str


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of config.json that the forward pass needs."""

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope: dict[str, Any]
    is_tied: bool
    eos_ids: tuple[int, ...]


def check(folder: Path | str) -> Manifest:
    """The folder's manifest, once every file the engine needs is there, readable and whole. Raises BrokenModel."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BrokenModel(f"There is no model folder {folder}; make it with `python -m serving.engine.prepare`.")
    manifest = read_manifest(folder)
    read_config(folder)
    _read_json(folder, "tokenizer.json")
    if not (folder / TEMPLATE).is_file():
        raise BrokenModel(f"{folder} has no {TEMPLATE}; prepare an instruction-tuned model, which has one.")
    if file_sha256(folder / TEMPLATE) != manifest["chat_template_sha256"]:
        raise BrokenModel(f"{folder / TEMPLATE} was changed after the model was prepared; {_again(folder)}")
    for path in weight_files(folder):
        _check_safetensors(path)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    data = _read_json(folder, MANIFEST)
    for key in Manifest.__annotations__:
        if not isinstance(data.get(key), str):
            raise BrokenModel(f"{folder / MANIFEST} has no text {key!r}; {_again(folder)}")
    if data["dtype"] not in ("bfloat16", "float32"):
        raise BrokenModel(f"{folder / MANIFEST} names the dtype {data['dtype']!r}; {_again(folder)}")
    return Manifest(**{key: data[key] for key in Manifest.__annotations__})  # type: ignore[typeddict-item]


def read_config(folder: Path) -> ModelConfig:
    """config.json as numbers. Raises BrokenModel for architectures and features that the embedded engine lacks."""
    data = _read_json(folder, "config.json")
    architecture = (data.get("architectures") or ["?"])[0]
    _check_supported(architecture, data)
    try:
        n_heads = int(data["num_attention_heads"])
        n_kv_heads = int(data.get("num_key_value_heads") or n_heads)
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads} heads of keys evenly")
        return ModelConfig(
            architecture=architecture,
            n_layers=int(data["num_hidden_layers"]),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=int(data.get("head_dim") or data["hidden_size"] // n_heads),
            hidden_size=int(data["hidden_size"]),
            intermediate_size=int(data["intermediate_size"]),
            vocab_size=int(data["vocab_size"]),
            max_positions=int(data["max_position_embeddings"]),
            norm_eps=float(data["rms_norm_eps"]),
            rope=_rope(data),
            is_tied=bool(data.get("tie_word_embeddings", False)),
            eos_ids=_eos_ids(folder, data),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenModel(f"{folder / 'config.json'} is incomplete or wrong ({error!r}); {_again(folder)}") from error


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that its index names."""
    if (folder / "model.safetensors.index.json").is_file():
        names = sorted(set(_read_json(folder, "model.safetensors.index.json").get("weight_map", {}).values()))
    else:
        names = ["model.safetensors"]
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise BrokenModel(f"{folder} has no {name}; {_again(folder)}")
    return [folder / name for name in names]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_supported(architecture: str, data: dict[str, Any]) -> None:
    if architecture not in SUPPORTED:
        raise BrokenModel(
            f"The embedded engine does not run {architecture}; it runs {', '.join(SUPPORTED)}. "
            "Serve other models with vLLM and point ENGINE_URLS at it."
        )
    has_window = data.get("sliding_window") and data.get("use_sliding_window", True)
    if has_window or data.get("hidden_act", "silu") != "silu" or _rope(data)["rope_type"] not in ROPE_TYPES:
        raise BrokenModel(
            f"The embedded engine runs {architecture} with silu, full attention and the rope types "
            f"{', '.join(ROPE_TYPES)} only; serve this model with vLLM and point ENGINE_URLS at it."
        )


def _rope(data: dict[str, Any]) -> dict[str, Any]:
    """Rope parameters, from the form of transformers 5 (rope_parameters) or 4 (rope_theta and rope_scaling)."""
    rope = dict(data.get("rope_parameters") or data.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope.setdefault("rope_theta", data.get("rope_theta", 10000.0))
    return rope


def _eos_ids(folder: Path, data: dict[str, Any]) -> tuple[int, ...]:
    """Every end-of-sequence id that config.json or generation_config.json names."""
    found: set[int] = set()
    generation = _read_json(folder, "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    for value in (data.get("eos_token_id"), generation.get("eos_token_id")):
        if value is not None:
            found.update(int(v) for v in (value if isinstance(value, list) else [value]))
    return tuple(sorted(found))


def _check_safetensors(path: Path) -> None:
    """The header is readable and the file as long as the header says (a broken copy is the usual fault)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        n_header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= n_header <= min(MAX_HEADER_BYTES, size - 8):
            raise BrokenModel(f"{path} is not a safetensors file; {_again(path.parent)}")
        try:
            header = json.loads(file.read(n_header))
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError) as error:
            raise BrokenModel(f"{path} has a broken header; {_again(path.parent)}") from error
    if size != 8 + n_header + end:
        raise BrokenModel(f"{path} has {size} bytes instead of {8 + n_header + end}; {_again(path.parent)}")


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BrokenModel(f"{folder} has no {name}; {_again(folder)}") from error
    except (ValueError, OSError) as error:
        raise BrokenModel(f"{folder / name} cannot be read ({error}); {_again(folder)}") from error
    if not isinstance(data, dict):
        raise BrokenModel(f"{folder / name} is not a JSON object; {_again(folder)}")
    return data


def _again(folder: Path) -> str:
    return f"delete {folder} and make it again with `python -m serving.engine.prepare`."
