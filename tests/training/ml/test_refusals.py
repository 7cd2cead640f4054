"""What the trainer does not do, and what it says then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training.ml.cases import (
    copy_of,
    line,
    read_json,
    with_incumbent,
    write_attempt,
    write_snapshot,
)
from training import catalog
from training.ml import policy, train
from training.ml.errors import TrainingError


def fails(attempt: Path) -> dict[str, str]:
    assert train.main(attempt) == 1
    assert not (attempt / "result.json").exists()
    return read_json(attempt / "error.json")


@pytest.mark.parametrize(
    ("name", "value", "has"),
    [
        ("lora_rank", 8, "4"),
        ("lora_alpha", 16.0, "32.0"),
        ("rslora", False, "True"),
        ("target_modules", "mlp", "all-linear"),
        ("layers", "top_half", "all"),
    ],
)
def test_it_refuses_to_train_on_an_adapter_of_another_shape(
    base32: policy.Base, finished: Path, name: str, value: Any, has: str
) -> None:
    folder = finished / "attempt-1" / "adapter"
    policy.refuse_other_shape(base32, folder, catalog.parse("dpo", {"lora_rank": 4}))
    sentence = f"^{name} is {value}, but the current version.* has {has}: set {name} to {has}, or start from the base"
    with pytest.raises(TrainingError, match=sentence):
        policy.refuse_other_shape(base32, folder, catalog.parse("dpo", {"lora_rank": 4, name: value}))


def test_it_refuses_to_train_on_an_adapter_that_no_parameters_make(
    base32: policy.Base, finished: Path, tmp_path: Path
) -> None:
    config = read_json(finished / "attempt-1" / "adapter" / "adapter_config.json")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    with pytest.raises(
        TrainingError, match=r"target_modules is all-linear, but .* has none of the choices: start from"
    ):
        policy.refuse_other_shape(base32, tmp_path, catalog.parse("dpo", {"lora_rank": 4}))


def test_it_fails_rather_than_ignore_a_parameter(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    error = fails(with_incumbent(finished, tmp_path, tiny_model_dir, start="incumbent", lora_rank=8))
    assert error["message"].startswith("lora_rank is 8, but the current version")
    assert error["kind"] == "config"


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "There is nothing to train on: this method learns from pairs with a preferred response; collect some"),
        (
            [line(1, label=0.5)],
            "All training pairs are ties; collect judgments that prefer one response, or choose a tie-aware",
        ),
        ([line(1, chosen="a", rejected="a")], "In all training pairs both responses read the same"),
    ],
)
def test_it_says_why_there_is_nothing_to_learn(
    tiny_model_dir: Path, tmp_path: Path, lines: list[dict[str, Any]], sentence: str
) -> None:
    write_snapshot(tmp_path / "snapshot", lines, [])
    error = fails(write_attempt(tmp_path, tiny_model_dir))
    assert error["message"].startswith(sentence)
    assert error["kind"] == "no_pairs"


def test_it_says_that_nothing_is_new(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    attempt = with_incumbent(finished, tmp_path, tiny_model_dir, start="incumbent")
    write_snapshot(tmp_path / "snapshot", [line(1, is_new=False)], [])
    assert fails(attempt)["message"].startswith("No judgment is new since the current version was trained")


def test_it_names_a_damaged_line(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    attempt = write_attempt(copy_of(finished, tmp_path), tiny_model_dir)
    with (tmp_path / "snapshot" / "train.jsonl").open("a") as file:
        file.write('{"pair": "cut he')
    error = fails(attempt)
    assert error["message"].startswith("Line 13 of train.jsonl in the snapshot is damaged")
    assert error["kind"] == "snapshot"


def test_it_says_that_the_model_is_broken(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken-model"
    shutil.copytree(tiny_model_dir, broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    error = fails(write_attempt(copy_of(finished, tmp_path / "run"), broken))
    assert error["message"].startswith("The model in broken-model cannot be loaded")
    assert error["kind"] == "model"


def test_it_says_that_the_incumbent_is_broken(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter-3"
    shutil.copytree(finished / "attempt-1" / "adapter", adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"nothing")
    root = copy_of(finished, tmp_path / "run")
    error = fails(write_attempt(root, tiny_model_dir, params={"start": "incumbent"}, incumbent=str(adapter)))
    assert error["message"].startswith("The current adapter adapter-3 cannot be loaded")


def test_it_says_that_the_disk_is_full(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    attempt = write_attempt(copy_of(finished, tmp_path), tiny_model_dir)
    (attempt / "metrics.jsonl").symlink_to("/dev/full")
    assert fails(attempt) == {"message": "The disk is full; free some space and retry the run.", "kind": "disk"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"params": {"lora_rnak": 4}}, "dpo has no parameter 'lora_rnak'"),
        ({"method": "dop"}, "There is no method 'dop'"),
    ],
)
def test_it_refuses_what_the_menu_does_not_have(
    tiny_model_dir: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    assert fails(write_attempt(tmp_path, tiny_model_dir, **changes))["message"].startswith(sentence)


def test_it_says_that_its_config_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert fails(tmp_path)["message"].startswith("config.json of the run cannot be read")


def test_it_says_what_a_method_would_learn_from(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    message = fails(write_attempt(copy_of(finished, tmp_path), tiny_model_dir, method="sft"))["message"]
    assert message.startswith("There is nothing to train on: this method learns from responses that people wrote")


def test_it_takes_the_flip_rate_from_the_snapshots_card(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    attempt = write_attempt(copy_of(finished, tmp_path), tiny_model_dir, method="cdpo", params={"flip_rate": -1.0})
    assert fails(attempt)["message"].startswith("flip_rate cannot be measured yet")
    (tmp_path / "snapshot" / "card.json").write_text('{"flip_rate": 0.07}')
    (attempt / "error.json").unlink()
    assert train.main(attempt) == 0
    assert read_json(attempt / "adapter" / "manifest.json")["params"]["flip_rate"] == 0.07
