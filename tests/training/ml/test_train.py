"""Whole runs on the tiny model, in this process: files in, files out."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.ml.cases import (
    POLICY_METHODS,
    line,
    read_json,
    read_metrics,
    write_attempt,
    write_lease,
    write_singles,
    write_snapshot,
)
from training import catalog
from training.ml import conduct, jobs, policy, rows, train
from training.ml.errors import TrainingError
from training.ml.policy_attempt import PolicyAttempt
from training.ml.progress import Progress
from training.ml.watch import Watch


@contextmanager
def at_pass(number: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Calls act before the number-th forward pass of a run; yields what is filled with the tokens of each pass.

    Of the runs here passes 1 to 3 check the model, 4 and 5 are the reference's, 6 to 11 steps; then the new
    adapter's held-out pairs and neutral texts, its samples, those of the base, the divergence, and two passes of probes.
    """
    passes: list[int] = []

    def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, torch.nn.Embedding):
            passes.append(args[0].shape[1])
            if len(passes) == number:
                act()

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield passes
    finally:
        handle.remove()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attempt that ran to its end undisturbed: the root of its run."""
    root = tmp_path_factory.mktemp("run")
    assert train.main(write_attempt(root, tiny_model_dir)) == 0
    return root


def copy_of(finished: Path, root: Path) -> Path:
    """A run with the same snapshot, nothing computed yet."""
    shutil.copytree(finished / "snapshot", root / "snapshot")
    return root


def test_it_leaves_everything_the_supervisor_reads(finished: Path) -> None:
    folder = finished / "attempt-1"
    result, metrics = read_json(folder / "result.json"), read_metrics(folder)
    assert set(result["seconds"]) == {"start", "tokenize", "reference", "train", "evaluate", "save"}
    assert result["n_steps"] == len(metrics) == 6
    assert result["final"] == metrics[-1]
    assert result["peak_rss_mb"] > 100
    assert result["skipped"] == {"steps": 0}
    assert read_json(folder / "status.json")["phase"] == "Done"
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-6"]
    assert not list(folder.rglob("*.tmp"))
    assert not (folder / "error.json").exists()


def test_it_starts_at_ln_2_and_learns(finished: Path) -> None:
    metrics = read_metrics(finished / "attempt-1")
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert metrics[0]["margin"] == 0.0
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_it_evaluates_every_heldout_pair_once(finished: Path) -> None:
    heldout = read_json(finished / "attempt-1" / "evaluation.json")["heldout"]
    assert [one["pair"] for one in heldout] == ["pair-100", "pair-101", "pair-102", "pair-103"]
    assert all(one["incumbent_margin"] == 0.0 and one["margin"] != 0.0 for one in heldout)
    assert all(one["chars_chosen"] == len(line(100 + i)["chosen"]) for i, one in enumerate(heldout))


def test_it_evaluates_in_smaller_parts_when_out_of_memory(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """All of it: held-out pairs, samples, the divergence and the probes."""
    allowed, refused = 300, []

    def look(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, torch.nn.Embedding) and args[0].numel() > allowed:
            refused.append(tuple(args[0].shape))
            raise MemoryError

    attempt = write_attempt(copy_of(finished, tmp_path), tiny_model_dir)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        assert train.main(attempt) == 0
    finally:
        handle.remove()
    assert {len(shape) for shape in refused} == {2}
    assert any(shape[0] > 1 for shape in refused)  # samples
    found, usual = (read_json(one / "evaluation.json") for one in (attempt, finished / "attempt-1"))
    assert found["policy"]["kl"] == pytest.approx(usual["policy"]["kl"], rel=0.5)
    probes, before = (read_json(one / "adapter" / "probes.json") for one in (attempt, finished / "attempt-1"))
    assert probes["token_ids"] == before["token_ids"]


def test_it_gives_the_same_adapter_for_the_same_run(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    again = write_attempt(copy_of(finished, tmp_path), tiny_model_dir)
    assert train.main(again) == 0
    assert weights(again) == weights(finished / "attempt-1")


def test_it_gives_another_adapter_with_another_seed(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    other = write_attempt(copy_of(finished, tmp_path), tiny_model_dir, params={"seed": 1})
    assert train.main(other) == 0
    assert weights(other) != weights(finished / "attempt-1")


def test_it_computes_no_reference_scores_in_a_second_run(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    def passes(attempt: Path) -> int:
        with at_pass(0, terminate) as seen:
            assert train.main(attempt) == 0
        return len(seen)

    root = copy_of(finished, tmp_path)
    first, second = (passes(write_attempt(root, tiny_model_dir, n, params={"epochs": 0.01})) for n in (1, 2))
    # The adapter is the same one as before, so its scores and samples are known too: left are the check, the step, the
    # samples under policy and base for the divergence, and the probes.
    assert second == 3 + 1 + 2 + 2
    assert first > second + 2 * conduct.N_TOKENS


@pytest.mark.parametrize(
    "number",
    [1, 4, 5, 8, 11, 150],
    ids=["loading", "reference", "step 1", "step 4", "evaluating", "sampling"],
)
def test_it_gives_the_undisturbed_adapter_after_a_stop_anywhere(
    finished: Path, tiny_model_dir: Path, tmp_path: Path, number: int
) -> None:
    root = copy_of(finished, tmp_path)
    stopped = write_attempt(root, tiny_model_dir)
    with at_pass(number, terminate):
        assert train.main(stopped) == 3
    assert not (stopped / "result.json").exists()
    left = max((str(path) for path in stopped.glob("checkpoint-*")), default=None)
    assert (left is None) == (number < 5)
    resumed = write_attempt(root, tiny_model_dir, 2, resume=left)
    assert train.main(resumed) == 0
    assert weights(resumed) == weights(finished / "attempt-1")
    done = [one["step"] for attempt in (stopped, resumed) for one in read_metrics(attempt)]
    assert done == [1, 2, 3, 4, 5, 6]


def test_it_ends_when_the_lease_is_lost(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    attempt = write_attempt(copy_of(finished, tmp_path), tiny_model_dir)
    with at_pass(7, lambda: write_lease(attempt, token=2)):
        assert train.main(attempt) == 4
    assert len(read_metrics(attempt)) == 3
    assert not list(attempt.glob("checkpoint-*"))  # another attempt may have begun
    assert not (attempt / "error.json").exists()


def test_it_does_not_begin_with_a_stale_lease(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    attempt = write_attempt(copy_of(finished, tmp_path), tiny_model_dir)
    write_lease(attempt, seconds=-3600)
    assert train.main(attempt) == 4


def with_incumbent(finished: Path, root: Path, model: Path, **params: Any) -> Path:
    return write_attempt(
        copy_of(finished, root),
        model,
        params=params,
        incumbent=str(finished / "attempt-1" / "adapter"),
        incumbent_name="adapter-7",
    )


def test_it_evaluates_the_incumbent_beside_the_new_adapter(
    finished: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    attempt = with_incumbent(finished, tmp_path, tiny_model_dir, seed=4, beta=0.7)
    assert train.main(attempt) == 0
    before = [one["margin"] for one in read_json(finished / "attempt-1" / "evaluation.json")["heldout"]]
    after = read_json(attempt / "evaluation.json")["heldout"]
    assert [one["incumbent_margin"] for one in after] == pytest.approx(before, abs=1e-6)  # by the β it was trained with
    assert [one["margin"] for one in after] != pytest.approx(before, abs=1e-6)
    assert read_json(attempt / "adapter" / "manifest.json")["parent"] is None  # it began from the base


class Planned(Progress):
    """Remembers how much work was planned."""

    planned = 0.0

    def plan(self, tokens: float) -> None:
        self.planned += tokens
        super().plan(tokens)


def carry_out(folder: Path) -> tuple[PolicyAttempt, Planned]:
    with Watch(folder, 1) as watch:
        attempt = PolicyAttempt(jobs.read(folder), watch)
        attempt.progress = progress = Planned()
        attempt.execute()
    return attempt, progress


def test_it_plans_the_work_that_it_does(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Also the incumbent's, whose scores and the base's of neutral texts are in no cache yet."""
    _, progress = carry_out(with_incumbent(finished, tmp_path, tiny_model_dir, seed=4))
    assert progress.done == pytest.approx(progress.planned, rel=0.01)


def test_it_plans_no_step_that_a_checkpoint_has_done(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    done = tmp_path / "run" / "attempt-1" / "checkpoint-6"
    attempt, progress = carry_out(write_attempt(tmp_path / "run", tiny_model_dir, 2, resume=str(done)))
    assert progress.done == 0  # the adapter proves to be a known one
    examined: list[rows.Item] = [*attempt.pairs.heldout, *conduct.neutral_items(attempt.base.tokenizer)]
    assert progress.planned == rows.count_tokens(examined, attempt.budget)


def test_it_continues_the_incumbent_with_replay(finished: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    old, new = [line(i, is_new=False) for i in range(12)], [line(i) for i in range(20, 24)]
    write_snapshot(tmp_path / "snapshot", old + new, [])
    shutil.copytree(tmp_path / "snapshot", tmp_path / "run" / "snapshot")
    attempt = write_attempt(
        tmp_path / "run",
        tiny_model_dir,
        params={"start": "incumbent", "replay": 0.5, "epochs": 1.0, "learning_rate": 1e-8},
        incumbent=str(finished / "attempt-1" / "adapter"),
        incumbent_name="adapter-7",
    )
    assert train.main(attempt) == 0
    assert sum(one["n_pairs"] for one in read_metrics(attempt)) == 4 + 2
    assert (
        read_metrics(attempt)[0]["margin"] != 0.0
    )  # it begins where the incumbent is, the reference is still the base
    manifest = read_json(attempt / "adapter" / "manifest.json")
    assert (manifest["parent"], manifest["rank"]) == ("adapter-7", 4)


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


def test_it_begins_from_the_base_without_an_incumbent_to_continue(
    finished: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    attempt = write_attempt(copy_of(finished, tmp_path), tiny_model_dir, params={"start": "incumbent"})
    assert train.main(attempt) == 0
    assert weights(attempt) == weights(finished / "attempt-1")


def fails(attempt: Path) -> dict[str, str]:
    assert train.main(attempt) == 1
    assert not (attempt / "result.json").exists()
    return read_json(attempt / "error.json")


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


@pytest.mark.parametrize("method", {catalog.get(name).source: name for name in POLICY_METHODS}.values())
def test_it_makes_an_adapter_of_every_source(finished: Path, tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    """The last method of each; test_loop takes steps by every one."""
    attempt = write_attempt(copy_of(finished, tmp_path), tiny_model_dir, method=method, params={"epochs": 1.0})
    write_singles(tmp_path / "snapshot" / "unpaired.jsonl", [{"desirable": n % 2 == 0} for n in range(6)])
    write_singles(tmp_path / "snapshot" / "edits.jsonl", [{"original_id": n} for n in range(6)])
    assert train.main(attempt) == 0
    assert read_json(attempt / "adapter" / "manifest.json")["method"] == method
    assert all(one["loss"] is not None for one in read_metrics(attempt))


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
