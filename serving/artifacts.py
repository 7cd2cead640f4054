"""What may enter ADAPTERS_DIR: a PEFT folder is hostile input until every byte of it was looked at here, without torch.

`check` reads the four files of a folder under caps and allow-lists and raises `InvalidAdapter` with a sentence that
says what is wrong. It runs no code from the folder and unpickles nothing.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from django.utils.translation import gettext as _

CONFIG, WEIGHTS, MANIFEST, PROBES = "adapter_config.json", "adapter_model.safetensors", "manifest.json", "probes.json"
MAX_BYTES = {CONFIG: 64 << 10, WEIGHTS: 8 << 30, MANIFEST: 1 << 20, PROBES: 8 << 20}
MAX_HEADER_BYTES = 16 << 20
MAX_RANK = 256
MAX_LAYERS = 10_000
MAX_ALPHA = 4096
N_PROBES = 16
MAX_PROBE_TOKENS = 2048
CHUNK_BYTES = 1 << 22

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# A float is infinite or NaN exactly when all bits of its exponent are set.
EXPONENTS: dict[str, tuple[np.dtype[Any], int]] = {
    "F32": (np.dtype("<u4"), 0x7F800000),
    "F16": (np.dtype("<u2"), 0x7C00),
    "BF16": (np.dtype("<u2"), 0x7F80),
}
TENSOR_NAME = re.compile(r"base_model\.model\.((?:[A-Za-z0-9_]+\.)*([A-Za-z0-9_]+))\.lora_([AB])\.weight", re.ASCII)
MODULE_NAME = re.compile(r"[A-Za-z0-9_]{1,64}", re.ASCII)
# The keys of adapter_config.json that may hold something; every other key must be null, false or empty, so a feature
# of PEFT that we do not serve (or a hook such as auto_mapping) can never slip in under a new name.
CONFIG_KEYS = {
    "peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode", "r",
    "lora_alpha", "lora_dropout", "bias", "target_modules", "layers_to_transform", "use_rslora", "init_lora_weights",
    "megatron_core", "qalora_group_size",  # PEFT writes them always; they have no effect here
}  # fmt: skip
EFFECTIVE_KEYS = ("r", "lora_alpha", "use_rslora", "target_modules")


class InvalidAdapter(Exception):
    """The folder cannot be an adapter of this site's base; the message says why, for people."""


@dataclass(frozen=True)
class Probes:
    """Texts as token ids, and what the adapter does to each of their log-probabilities by the trainer's measure."""

    token_ids: list[list[int]]
    effects: list[list[float]]  # [i][t − 1] = (adapter − base) log p(token t of text i), in nats


@dataclass(frozen=True)
class Artifact:
    sha256: str  # of adapter_model.safetensors
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte offset in the file
    stop: int


def check(
    folder: Path, *, base_sha256: str, base_shapes: dict[str, tuple[int, ...]] | None, is_served: bool = True
) -> Artifact:
    """The artifact in `folder`, checked. Raises InvalidAdapter. One that no engine serves, a reward model's, has no probes.

    `base_shapes`: shape of every weight of the base by name (see `shapes`), to see that each pair of matrices fits the
    layer it changes; None where the base's files are not at hand.
    """
    _check_names(folder, is_served)
    config, manifest = _json(folder / CONFIG), _json(folder / MANIFEST)
    _check_config(config)
    tensors = header(folder / WEIGHTS)
    _check_tensors(tensors, config, base_shapes)
    check_finite(folder / WEIGHTS, tensors)
    sha256 = hash_of(folder / WEIGHTS)
    _check_manifest(manifest, sha256=sha256, base_sha256=base_sha256)
    if is_served:
        read_probes(folder)
    return Artifact(sha256, manifest)


def copy(source: Path, target: Path) -> None:
    """The four files and nothing else, read-only, into a new folder. Raises InvalidAdapter when one is missing."""
    _check_names(source)
    target.mkdir(parents=True)
    for name in MAX_BYTES:
        shutil.copyfile(source / name, target / name, follow_symlinks=False)
        (target / name).chmod(0o444)


def is_same_config(one: Path, other: Path) -> bool:
    """Whether two checked folders apply their matrices in the same way."""
    first, second = _json(one / CONFIG), _json(other / CONFIG)
    return all(first.get(key) == second.get(key) for key in EFFECTIVE_KEYS)


def read_probes(folder: Path) -> Probes:
    """probes.json, checked. Raises InvalidAdapter."""
    probes = _json(folder / PROBES)
    token_ids: Any = probes.get("token_ids")
    effects: Any = probes.get("effects")
    _require(_is_list(token_ids, N_PROBES) and _is_list(effects, N_PROBES), PROBES, _("it must hold 16 probes"))
    for ids, effect in zip(token_ids, effects, strict=True):
        _require(
            isinstance(ids, list) and 2 <= len(ids) <= MAX_PROBE_TOKENS and all(type(i) is int and i >= 0 for i in ids),
            PROBES,
            _("token_ids must be lists of 2 to 2048 token ids"),
        )
        _require(
            _is_list(effect, len(ids) - 1) and all(_is_finite_number(e) for e in effect),
            PROBES,
            _("effects must hold one finite number for each token but the first"),
        )
    return Probes(token_ids, effects)


def shapes(model: Path) -> dict[str, tuple[int, ...]] | None:
    """Shape of every weight of a Hugging Face folder, from the headers alone; None when it holds no safetensors."""
    files = sorted(model.glob("*.safetensors"))
    if not files:
        return None
    entries = {name: entry for file in files for name, entry in _entries(file)[0].items()}
    return {name: tuple(entry["shape"]) for name, entry in entries.items()}


def header(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name. Raises InvalidAdapter unless they fill the file without a gap.

    Format: https://github.com/huggingface/safetensors#format: 8 bytes little-endian length, JSON, raw data.
    """
    entries, end = _entries(file)
    tensors = {name: _tensor(entry, end, file.name) for name, entry in entries.items()}
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.stop)):
        _require(tensor.start == end, file.name, _("its tensors overlap or leave a gap"))
        end = tensor.stop
    _require(end == file.stat().st_size, file.name, _("it is cut off or has data behind its tensors"))
    return tensors


def _entries(file: Path) -> tuple[dict[str, Any], int]:
    """The raw entries of a safetensors header, and the offset of the data behind it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        _require(2 <= length <= min(MAX_HEADER_BYTES, size - 8), file.name, _("its header's length is impossible"))
        entries = _parsed(stream.read(length), file.name)
    entries.pop("__metadata__", None)
    return entries, 8 + length


def hash_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- the files one by one ---------------------------------------------------------------------------------------------
def _check_names(folder: Path, is_served: bool = True) -> None:
    if not folder.is_dir():
        raise InvalidAdapter(_("There is no folder %(folder)s.") % {"folder": folder})
    found = {entry.name: entry for entry in folder.iterdir()}
    limits = {name: limit for name, limit in MAX_BYTES.items() if is_served or name != PROBES}
    if extra := sorted(set(found) - set(limits)):
        raise InvalidAdapter(
            _("The folder may hold only %(allowed)s, not %(extra)s.")
            % {"allowed": ", ".join(limits), "extra": ", ".join(extra[:5])}
        )
    for name, limit in limits.items():
        _require(name in found, name, _("it is missing"))
        _require(found[name].is_file() and not found[name].is_symlink(), name, _("it is not a plain file"))
        _require(found[name].stat().st_size <= limit, name, _("it is too large"))


def _check_config(config: dict[str, Any]) -> None:
    # An unknown key may be present when it switches nothing on.
    active = sorted(key for key, value in config.items() if value and key not in CONFIG_KEYS)
    _require(not active, CONFIG, _("these keys are not supported: %s") % ", ".join(active[:5]))
    _require(config.get("peft_type") == "LORA", CONFIG, _("peft_type must be LORA"))
    _require(config.get("task_type") in (None, "CAUSAL_LM"), CONFIG, _("task_type must be CAUSAL_LM"))
    _require(config.get("bias", "none") == "none", CONFIG, _("bias must be none"))
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    _require(type(rank) is int and 1 <= rank <= MAX_RANK, CONFIG, _("r must be between 1 and 256"))
    _require(_is_finite_number(alpha) and 0 < alpha <= MAX_ALPHA, CONFIG, _("lora_alpha must be above 0, at most 4096"))
    _require(type(config.get("use_rslora", False)) is bool, CONFIG, _("use_rslora must be true or false"))
    _check_harmless(config)
    layers: Any = config.get("layers_to_transform") or []
    _require(
        isinstance(layers, list) and all(type(layer) is int and 0 <= layer < MAX_LAYERS for layer in layers),
        CONFIG,
        _("layers_to_transform must be a list of layer numbers"),
    )
    modules = config.get("target_modules")
    # PEFT would also take a regular expression here: a hostile one takes for ever.
    _require(
        isinstance(modules, list)
        and 1 <= len(modules) <= 64
        and all(isinstance(module, str) and MODULE_NAME.fullmatch(module) for module in modules),
        CONFIG,
        _("target_modules must be a list of module names"),
    )


def _check_harmless(config: dict[str, Any]) -> None:
    """Keys whose value PEFT acts on when it loads: some ways to initialise, such as "pissa", rewrite the base's weights."""
    _require(
        config.get("init_lora_weights") in (None, True, False),
        CONFIG,
        _("init_lora_weights must be true, false or null"),
    )
    dropout: Any = config.get("lora_dropout", 0)
    _require(_is_finite_number(dropout) and 0 <= dropout < 1, CONFIG, _("lora_dropout must be at least 0 and below 1"))
    _require(type(config.get("inference_mode", True)) is bool, CONFIG, _("inference_mode must be true or false"))
    _require(  # PEFT imports the module of this name
        config.get("megatron_core") in (None, "megatron.core"), CONFIG, _("megatron_core must be left as it is")
    )
    for key in ("base_model_name_or_path", "revision", "peft_version"):
        text = config.get(key)
        _require(
            text is None or (isinstance(text, str) and len(text) <= 256), CONFIG, _("%s must be a short text") % key
        )


def _check_tensors(
    tensors: dict[str, Tensor], config: dict[str, Any], base_shapes: dict[str, tuple[int, ...]] | None
) -> None:
    rank, halves = config["r"], _halves(tensors, config["target_modules"])
    _require(bool(halves), WEIGHTS, _("it holds no LoRA matrices"))
    for module, pair in halves.items():
        _require(set(pair) == {"A", "B"}, WEIGHTS, _("%s needs lora_A and lora_B") % module)
        a, b = pair["A"].shape, pair["B"].shape  # (r, in), (out, r)
        _require(
            len(a) == len(b) == 2 and a[0] == b[1] == rank, WEIGHTS, _("%s does not have the configured rank") % module
        )
        if base_shapes is not None:
            # A weight of the base is (out, in).
            _require(
                base_shapes.get(f"{module}.weight") == (b[0], a[1]), WEIGHTS, _("%s does not fit the base") % module
            )


def _halves(tensors: dict[str, Tensor], targets: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """{module: {"A": tensor, "B": tensor}} of tensors whose names are on the allow-list."""
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = TENSOR_NAME.fullmatch(name[:256])
        if match is None or len(name) > 256:
            raise InvalidAdapter(f"{WEIGHTS}: " + _("a tensor is not a LoRA matrix: %s.") % name[:80])
        module, last, half = match.groups()
        _require(last in targets, WEIGHTS, _("%s is not among target_modules") % module)
        halves.setdefault(module, {})[half] = tensor
    return halves


def check_finite(file: Path, tensors: dict[str, Tensor]) -> None:
    """Raises InvalidAdapter where a tensor holds an infinity or NaN."""
    with file.open("rb") as stream:
        for name, tensor in tensors.items():
            kind, exponent = EXPONENTS[tensor.dtype]
            for chunk in _chunks(stream, tensor):
                bits = np.frombuffer(chunk, dtype=kind) & exponent
                _require(not (bits == exponent).any(), file.name, _("%s holds values that are not finite") % name)


def _chunks(stream: Any, tensor: Tensor) -> Iterator[bytes]:
    stream.seek(tensor.start)
    for start in range(tensor.start, tensor.stop, CHUNK_BYTES):
        yield stream.read(min(CHUNK_BYTES, tensor.stop - start))


def _check_manifest(manifest: dict[str, Any], *, sha256: str, base_sha256: str) -> None:
    _require(manifest.get("format") == 1, MANIFEST, _("format must be 1"))
    _require(manifest.get("sha256") == sha256, MANIFEST, _("sha256 is not that of adapter_model.safetensors"))
    _require(
        manifest.get("base_sha256") == base_sha256, MANIFEST, _("the adapter was trained on another base than this one")
    )


def _tensor(entry: Any, data: int, file: str) -> Tensor:
    """One entry of a header; `data` is where the data begins."""
    _require(
        isinstance(entry, dict)
        and entry.get("dtype") in DTYPE_BYTES
        and _is_list_of_counts(entry.get("shape"), most=8)
        and _is_list_of_counts(entry.get("data_offsets"), most=2),
        file,
        _("a tensor's entry is malformed, or its dtype is none of F32, BF16, F16"),
    )
    dtype, shape, offsets = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    _require(
        len(offsets) == 2 and offsets[1] - offsets[0] == math.prod(shape) * DTYPE_BYTES[dtype],
        file,
        _("a tensor's size does not match its shape"),
    )
    return Tensor(dtype, shape, data + offsets[0], data + offsets[1])


# --- JSON and small checks --------------------------------------------------------------------------------------------
def _json(file: Path) -> dict[str, Any]:
    return _parsed(file.read_bytes(), file.name)


def _parsed(data: bytes, file: str) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN and bottomless nesting."""
    try:
        parsed = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(_("%(file)s: it is not JSON: %(error)s") % {"file": file, "error": error}) from error
    _require(isinstance(parsed, dict), file, _("it must be a JSON object"))
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, value in pairs}) != len(pairs):
        raise ValueError(_("a key occurs twice"))
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(_("%s is not a number") % name)


def _require(holds: bool, file: str, problem: str) -> None:
    if not holds:
        raise InvalidAdapter(f"{file}: {problem}.")


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _is_list_of_counts(value: Any, *, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(v) is int and 0 <= v < 1 << 48 for v in value)


def _is_finite_number(value: Any) -> bool:
    # Not math.isfinite for integers: it overflows on those of more than 308 digits.
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 1 << 53)
