"""What we export goes through TRL's own data path and trains a step: preference, implicit prompt, and unpaired."""

import math
import uuid
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.data_utils import apply_chat_template, is_conversational, maybe_extract_prompt

from labeling import choices, exports, exports_files, intake, judgments
from labeling.formats.records import Vote, ranked
from labeling.formats.records import make as make_record
from labeling.models import Campaign
from labeling.provenance import SOFT, Options
from tests.labeling import make

pytestmark = [pytest.mark.django_db, pytest.mark.ml]
ENGINES = {"jsonl": "json", "parquet": "parquet"}


@pytest.fixture
def campaign() -> Campaign:
    """A preference, a tie, a "both bad", a thumb and an edit, on conversations of one and of several turns."""
    campaign = make.campaign(allow_edit=True)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why is the sky blue?"},
    ]
    votes: list[tuple[Any, tuple[str, ...], Vote]] = [
        (turns, ("Air scatters blue light.", "Paint."), ranked((1, 2), annotator="ida", strength=3)),
        ("Tea or coffee?", ("Tea.", "Coffee."), ranked((1, 1), annotator="ida")),
        ("What is 2 + 2?", ("Five.", "Three."), Vote("both_bad", annotator="ida")),
        ("Say hello.", ("Hello!",), Vote("good", annotator="ida")),
    ]
    records = [make_record(asked, [(text, "") for text in texts], [vote]) for asked, texts, vote in votes]
    intake.store(campaign, records)
    lease = make.lease(make.comparison(campaign), make.person("otto", campaign))
    choice = choices.Choice("preference", lease.order, lease.order[0], 2, edit="A cat is a small animal that purrs.")
    judgments.record(lease, lease.annotator, uuid.uuid4(), choice, make.NOW)
    return campaign


def load(campaign: Campaign, kind: str, format: str, folder: Path, options: Options) -> datasets.Dataset:
    path = folder / f"data.{format}"
    path.write_bytes(b"".join(exports_files.write(exports.KINDS[kind], format, campaign, options)[0]))
    return datasets.load_dataset(ENGINES[format], data_files=str(path), split="train", cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("format", ENGINES)
@pytest.mark.parametrize("kind", ["preference", "implicit"])
def test_it_says_the_same_to_trl_with_and_without_an_explicit_prompt(campaign, kind, format, tiny_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    loaded = load(campaign, kind, format, tmp_path, Options(ties=SOFT))
    assert is_conversational(loaded[0])
    found = [maybe_extract_prompt(row) for row in loaded]
    pairs = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found]
    rejected = pairs[3][1]
    assert pairs[:2] == [("Air scatters blue light.", "Paint."), ("Tea.", "Coffee.")]  # both bad: no pair
    edit = "A cat is a small animal that purrs."
    assert pairs[2:] == [pairs[2], (edit, pairs[2][0]), (edit, pairs[2][1])]
    assert rejected == pairs[2][0]
    assert [(row["label"], row["margin"], row["source"]) for row in loaded] == [
        (1.0, 3.0, "votes"),
        (0.5, 0.0, "votes"),
        (1.0, 2.0, "votes"),
        (1.0, 0.0, "edit"),
        (1.0, 2.0, "edit"),
    ]
    assert [turn["role"] for turn in found[0]["prompt"]] == ["system", "user", "assistant", "user"]
    shown = apply_chat_template({key: found[0][key] for key in ("prompt", "chosen", "rejected")}, tokenizer)
    assert shown["prompt"].rstrip().endswith("assistant")
    assert shown["chosen"].startswith("Air scatters blue light.")


@pytest.mark.parametrize("kind", ["preference", "implicit"])
def test_it_trains_a_step_of_dpo(campaign, kind, tiny_model_dir, tmp_path):
    loaded = load(campaign, kind, "parquet", tmp_path, Options())
    assert len(loaded) == 4  # the tie is left out
    config = DPOConfig(**_arguments(tmp_path), beta=0.1)
    model, tokenizer = _model(tiny_model_dir)
    trainer = DPOTrainer(model=model, args=config, train_dataset=loaded, processing_class=tokenizer)
    _train(trainer, math.log(2))


def test_it_trains_a_step_of_kto(campaign, tiny_model_dir, tmp_path):
    loaded = load(campaign, "unpaired", "parquet", tmp_path, Options())
    said = {row["completion"][0]["content"]: row["label"] for row in loaded}
    assert {said["Five."], said["Three."], said["Paint."]} == {False}
    assert {said["Hello!"], said["Air scatters blue light."], said["A cat is a small animal that purrs."]} == {True}
    assert "Tea." not in said
    model, tokenizer = _model(tiny_model_dir)
    config = KTOConfig(**_arguments(tmp_path), beta=0.1)
    _train(KTOTrainer(model=model, args=config, train_dataset=loaded, processing_class=tokenizer), 0.5)


def _arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "run"),
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
    }


def _model(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def _train(trainer: Any, first_loss: float) -> None:
    before = trainer.model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    result = trainer.train()
    assert result.global_step == 1
    assert result.training_loss == pytest.approx(first_loss, abs=1e-3)
    assert not torch.equal(before, trainer.model.model.layers[0].self_attn.q_proj.weight)
