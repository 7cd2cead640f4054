"""The adapter's folder, loaded by peft alone: none of the trainer's own layers."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.training.ml.cases import make_learner, shake, some_pairs
from training import catalog
from training.ml import adapter, policy, probes
from training.ml.jobs import Job
from training.ml.logprobs import response_logps
from training.ml.rows import pack


@pytest.fixture
def job(tmp_path: Path) -> Job:
    folder = tmp_path / "attempt-2"
    folder.mkdir()
    return Job(
        folder=folder,
        run=7,
        attempt=2,
        token=1,
        method="dpo",
        params=catalog.parse("dpo", {"lora_rank": 4, "seed": 3}),
        model=tmp_path,
        snapshot=tmp_path,
        snapshot_sha256="b" * 64,
        cache=tmp_path,
        incumbent=None,
        incumbent_name="adapter-6",
        resume=None,
        threads=0,
        nice=0,
    )


@pytest.fixture
def trained(base32: policy.Base) -> PeftModel:
    _, model = make_learner(base32, some_pairs())
    shake(model)
    return model


@pytest.fixture
def folder(job: Job, base32: policy.Base, trained: PeftModel) -> Path:
    effects = probes.measure(trained, base32.model, base32.tokenizer, 512)
    adapter.write(job.folder / "adapter", adapter.serialise(trained), trained, base32, job, effects)
    return job.folder / "adapter"


@pytest.fixture
def stock(folder: Path, tiny_model_dir: Path) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation="sdpa")
    return PeftModel.from_pretrained(model, folder)


def test_it_makes_what_peft_alone_computes_the_same_with(
    base32: policy.Base, trained: PeftModel, stock: PeftModel
) -> None:
    batch = pack(some_pairs(), 512)[0]
    found = response_logps(base32.model, batch)
    for (prompt, response), score in zip(batch.order, found, strict=True):
        logps = stock(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        expected = logps[len(prompt) - 1 : -1].gather(-1, torch.tensor(response)[:, None]).sum()
        assert score.item() == pytest.approx(expected.item(), rel=1e-4)


def test_it_writes_fp32_weights_and_their_hash(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_it_says_in_the_manifest_where_it_comes_from(folder: Path, base32: policy.Base, job: Job) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["base_sha256"] == base32.sha256
    assert manifest["chat_template_sha256"] == base32.chat_template_sha256
    expected = {"format": 1, "snapshot_sha256": "b" * 64, "run": 7, "attempt": 2, "method": "dpo", "seed": 3}
    assert manifest.items() >= (expected | {"parent": None, "rank": 4}).items()
    assert manifest["params"] == catalog.to_dict(job.params)
    assert len(manifest["target_modules"]) == 7
    assert manifest["code_version"]


def test_it_believes_the_image_about_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODE_VERSION", "abc+dirty")
    assert adapter.code_version() == "abc+dirty"


def test_it_asks_git_and_says_when_files_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / "adapter.py"
    file.write_text("1")
    for arguments in (["init"], ["add", "."], ["commit", "-m", "1"], ["tag", "-a", "v1", "-m", "1"]):
        git(*arguments)
    monkeypatch.delenv("CODE_VERSION", raising=False)
    monkeypatch.setattr(adapter, "__file__", str(file))
    assert adapter.code_version() == git("rev-parse", "HEAD")
    file.write_text("2")
    assert adapter.code_version() == git("rev-parse", "HEAD") + "+dirty"


def test_it_tells_nothing_about_this_machine(folder: Path, tiny_model_dir: Path) -> None:
    text = (folder / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == tiny_model_dir.name
    assert str(tiny_model_dir) not in text
    assert "training.ml" not in text


def test_it_writes_what_the_adapter_does_to_the_probes(folder: Path, stock: PeftModel) -> None:
    found = json.loads((folder / "probes.json").read_text())
    assert len(found["texts"]) == len(found["token_ids"]) == len(found["effects"]) == 16
    for ids, effects in zip(found["token_ids"], found["effects"], strict=True):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            changed = stock(tokens).logits[0, :-1].log_softmax(-1)
            with stock.disable_adapter():
                plain = stock(tokens).logits[0, :-1].log_softmax(-1)
        expected = (changed - plain).gather(-1, tokens[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(effects), expected, rtol=1e-3, atol=1e-4)


def test_it_has_sixteen_different_probe_texts(base32: policy.Base) -> None:
    texts = probes.texts(base32.tokenizer)
    assert len(set(texts)) == 16
    encoded = [base32.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert [base32.tokenizer.decode(ids) for ids in encoded] == texts
    assert all(len(ids) >= 10 for ids in encoded)


def test_it_measures_no_effect_of_an_adapter_that_does_nothing(base32: policy.Base) -> None:
    _, model = make_learner(base32, some_pairs())
    found = probes.measure(model, base32.model, base32.tokenizer, 512)
    assert {effect for effects in found["effects"] for effect in effects} == {0.0}
