"""What is wrong with a model folder is said in one sentence, without torch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.engine import model_folder
from serving.engine.model_folder import BrokenModel


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_it_returns_the_manifest_of_a_good_folder(folder: Path) -> None:
    found = model_folder.check(folder)
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["sha256"] == model_folder.file_sha256(folder / "model.safetensors")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "no model folder"),
        (lambda f: (f / "alignapp-model.json").unlink(), "alignapp-model.json"),
        (lambda f: edit(f, "alignapp-model.json", sha256=None), "sha256"),
        (lambda f: edit(f, "alignapp-model.json", dtype="int4"), "dtype"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json"),
        (lambda f: edit(f, "config.json", num_hidden_layers=None), "config.json"),
        (lambda f: edit(f, "config.json", architectures=["OtherForCausalLM"]), "OtherForCausalLM"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda f: (f / "chat_template.jinja").unlink(), "chat_template.jinja"),
        (lambda f: (f / "chat_template.jinja").write_text("x"), "changed"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: truncate(f / "model.safetensors"), "bytes instead of"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "not a safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}" + b"x"), "broken header"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'), "../x"),
    ],
)
def test_it_says_what_is_wrong(folder: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(folder)
    with pytest.raises(BrokenModel) as caught:
        model_folder.check(folder)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


def test_it_reads_rope_and_ends_in_old_and_new_forms(folder: Path) -> None:
    edit(folder, "config.json", rope_parameters=None, rope_theta=5.0, rope_scaling={"type": "linear", "factor": 2})
    edit(folder, "config.json", eos_token_id=[1, 7])
    edit(folder, "generation_config.json", eos_token_id=2)
    found = model_folder.read_config(folder)
    assert found.rope == {"rope_type": "linear", "rope_theta": 5.0, "factor": 2}
    assert found.eos_ids == (1, 2, 7)


def test_it_needs_no_torch() -> None:
    code = "import sys, serving.engine.model_folder; print('torch' in sys.modules, 'django' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
