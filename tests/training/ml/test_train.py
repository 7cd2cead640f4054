"""Whole runs on the tiny model, in this process: files in, files out."""

import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.training.ml.cases import (
    POLICY_METHODS,
    copy_of,
    line,
    read_json,
    read_metrics,
    with_incumbent,
    write_attempt,
    write_lease,
    write_singles,
    write_snapshot,
)
from training import catalog
from training.ml import conduct, jobs, rows, train
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


def test_it_begins_from_the_base_without_an_incumbent_to_continue(
    finished: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    attempt = write_attempt(copy_of(finished, tmp_path), tiny_model_dir, params={"start": "incumbent"})
    assert train.main(attempt) == 0
    assert weights(attempt) == weights(finished / "attempt-1")


@pytest.mark.parametrize("method", {catalog.get(name).source: name for name in POLICY_METHODS}.values())
def test_it_makes_an_adapter_of_every_source(finished: Path, tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    """The last method of each; test_loop takes steps by every one."""
    attempt = write_attempt(copy_of(finished, tmp_path), tiny_model_dir, method=method, params={"epochs": 1.0})
    write_singles(tmp_path / "snapshot" / "unpaired.jsonl", [{"desirable": n % 2 == 0} for n in range(6)])
    write_singles(tmp_path / "snapshot" / "edits.jsonl", [{"original_id": n} for n in range(6)])
    assert train.main(attempt) == 0
    assert read_json(attempt / "adapter" / "manifest.json")["method"] == method
    assert all(one["loss"] is not None for one in read_metrics(attempt))
