"""The trainer as the supervisor starts it: a process, on the real model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.training.ml.cases import line, read_json, read_metrics, write_attempt, write_snapshot

REPOSITORY = Path(__file__).resolve().parents[3]


def start(attempt: Path) -> subprocess.Popen[bytes]:
    with (attempt / "log.txt").open("wb") as log:
        command = [sys.executable, "-m", "training.ml.train", str(attempt)]
        return subprocess.Popen(
            command, cwd=REPOSITORY, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "2"}
        )


def catches_sigterm(pid: int) -> bool:
    """Whether the process has installed its handler, from the kernel's mask of caught signals."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = next(text.split()[1] for text in status.splitlines() if text.startswith("SigCgt"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def test_it_survives_being_stopped_and_makes_what_peft_loads(model_dir: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot", [line(i) for i in range(6)], [line(9)])
    params = {"batch_pairs": 2, "epochs": 1.0, "learning_rate": 3e-4}
    starting = write_attempt(tmp_path, model_dir, params=params)
    process = start(starting)
    while not catches_sigterm(process.pid):
        time.sleep(0.005)
    process.terminate()
    assert process.wait() == 3

    training = write_attempt(tmp_path, model_dir, 2, params=params)
    process = start(training)
    while not read_metrics(training) and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    assert process.wait() == 3, (training / "log.txt").read_text()
    (left,) = training.glob("checkpoint-*")

    resumed = write_attempt(tmp_path, model_dir, 3, params=params, resume=str(left))
    assert start(resumed).wait() == 0, (resumed / "log.txt").read_text()
    assert "resumed at step" in (resumed / "log.txt").read_text()
    assert [one["step"] for attempt in (training, resumed) for one in read_metrics(attempt)] == [1, 2, 3]
    assert read_json(resumed / "result.json")["n_steps"] == 3
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), resumed / "adapter")
    probe = json.loads((resumed / "adapter" / "probes.json").read_text())
    assert (slope := measured_slope(stock.float(), probe)) > 0.9, slope
    assert slope < 1.1


def measured_slope(model: PeftModel, probes: dict[str, list[list[float]]]) -> float:
    """How the effects in plain peft go with those in probes.json: 1 when they agree."""
    there, here = torch.zeros(0), torch.zeros(0)
    for ids, effects in zip(probes["token_ids"], probes["effects"], strict=True):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            changed = model(tokens).logits[0, :-1].log_softmax(-1)
            with model.disable_adapter():
                plain = model(tokens).logits[0, :-1].log_softmax(-1)
        here = torch.cat([here, (changed - plain).gather(-1, tokens[0, 1:, None].long())[:, 0]])
        there = torch.cat([there, torch.tensor(effects)])
    return float((here @ there) / (there @ there))
