"""Several processes on one machine: the same entry under torchrun, with gloo on the CPU."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.training.ml.cases import read_json, read_metrics, write_attempt
from training.ml import launch as launcher
from training.ml import parallel, train

REPOSITORY = Path(__file__).resolve().parents[3]


def launch(attempt: Path, n: int = 2) -> subprocess.Popen[bytes]:
    with (attempt / "log.txt").open("wb") as log:
        command = [sys.executable, "-m", "training.ml.launch", str(n), str(attempt)]
        return subprocess.Popen(
            command, cwd=REPOSITORY, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "2"}
        )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_it_trains_as_one_process_does_also_when_stopped(tiny_model_dir: Path, tmp_path: Path) -> None:
    alone = write_attempt(tmp_path / "alone", tiny_model_dir)
    assert train.main(alone) == 0

    stopped = write_attempt(tmp_path / "together", tiny_model_dir)
    process = launch(stopped)
    while not read_metrics(stopped) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    assert code in (0, 3), (stopped / "log.txt").read_text()  # 0: it was through before the signal came
    left = max((str(path) for path in stopped.glob("checkpoint-*")), key=len)

    resumed = write_attempt(tmp_path / "together", tiny_model_dir, 2, resume=left)
    assert launch(resumed).wait() == 0, (resumed / "log.txt").read_text()
    both = [one for attempt in (stopped, resumed) for one in read_metrics(attempt)]
    single = read_metrics(alone)
    assert [one["step"] for one in both] == [one["step"] for one in single] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "grad_norm", "margin", "margin_p90", "kl_chosen"):
        # Other passes, other rounding, where the base is bf16.
        assert [one[name] for one in both] == pytest.approx([one[name] for one in single], rel=0.02, abs=0.01), name
    expected = weights(alone)
    for name, tensor in weights(resumed).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0.05, atol=0.02)
    assert {path.name for path in resumed.iterdir()} - {"exit_code"} == {path.name for path in alone.iterdir()} | {
        "log.txt"
    }
    assert read_json(resumed / "result.json")["n_steps"] == 6


def test_it_ends_with_the_trainers_own_code(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert launch(tmp_path).wait() == 1
    assert read_json(tmp_path / "error.json")["message"].startswith("config.json of the run cannot be read")


def test_it_lets_the_first_process_say_what_all_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun ends all with the first that fails: the one that has the word must not be it."""
    (tmp_path / "config.json").write_text("{")
    monkeypatch.setenv("RANK", "1")
    with ThreadPoolExecutor() as pool:
        other = pool.submit(train.main, tmp_path)
        with pytest.raises(TimeoutError):
            other.result(timeout=0.5)
        (tmp_path / parallel.EXIT_CODE).write_text("1")
        assert other.result(timeout=5) == 1
    assert not (tmp_path / "error.json").exists()
    (tmp_path / parallel.EXIT_CODE).unlink()
    parallel.let_the_first_speak(tmp_path, patience=0.05)  # not for ever
    monkeypatch.setenv("RANK", "0")
    parallel.let_the_first_speak(tmp_path)  # it has the word


def ranks(process: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """The trainer's processes by their number."""
    return {
        child.environ()["RANK"]: child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "RANK" in child.environ()
    }


def test_it_is_lost_with_any_of_its_processes(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Nobody asked it to stop, whatever torchrun tells the others: the try counts, and nothing is left running."""
    attempt = write_attempt(tmp_path, tiny_model_dir, params={"epochs": 20.0, "batch_pairs": 1})
    process = launch(attempt)
    while not read_metrics(attempt) and process.poll() is None:
        time.sleep(0.01)
    found = ranks(process)
    assert set(found) == {"0", "1"}, (attempt / "log.txt").read_text()
    found["1"].kill()
    assert process.wait() == launcher.LOST, (attempt / "log.txt").read_text()
    assert not any(one.is_running() for one in found.values())
    assert not (attempt / "error.json").exists()
    assert list(attempt.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("said", "is_asked", "code"),
    [
        (0, False, 0),
        (0, True, 0),
        (1, False, 1),
        (3, True, 3),
        (3, False, 5),
        (4, False, 4),
        (None, False, 5),
        (5, True, 5),
    ],
)
def test_it_tells_a_stop_that_was_asked_for_from_a_loss(said: int | None, is_asked: bool, code: int) -> None:
    assert launcher.judge(said, is_asked=is_asked) == code


def test_it_has_nothing_to_tell_when_stopped_before_it_began() -> None:
    assert launcher.judge(None, is_asked=True) == 3


def test_it_leaves_one_process_as_it_was() -> None:
    assert parallel.gather([1, 2]) == [1, 2]
    assert (parallel.size(), parallel.rank(), parallel.is_first(), parallel.anywhere(False)) == (1, 0, True, False)
