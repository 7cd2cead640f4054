"""Ours, as a contender of `benchmarks.training` in a process of its own: `python -m benchmarks.training_peer JOB.json`.

The job: model folder, LoRA start, rows of token ids in their order, pairs per step, threads. Prints one JSON line: seconds,
CPU seconds, loss and gradient norm of every step, seconds until the first step, peak RSS.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the trainer has it

import psutil
import torch

from training import catalog
from training.ml import batches, lanes, losses, optim, policy
from training.ml.data import Pair
from training.ml.logprobs import response_logps, trunk_below
from training.ml.loop import Learner, accumulate
from training.ml.progress import Progress
from training.ml.scores import Memory, Scorer, score_by
from training.ml.watch import Watch

RATE, BETA = 1e-4, 0.1


Peer = Callable[[dict[str, Any], "Stopwatch"], int]


class Stopwatch:
    """Wall and CPU seconds of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.first_at: float | None = None

    def start(self) -> None:
        self.first_at = self.first_at or time.time()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, loss: float, norm: float) -> None:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self.steps.append({"seconds": wall, "cpu": cpu, "loss": loss, "grad_norm": norm})


def ours(job: dict[str, Any], watch: Stopwatch) -> int:
    """What the trainer runs, without its files; the number of tokens that went through the model in all steps."""
    lanes.share_heap()
    base = policy.load_base(Path(job["model"]))
    params = catalog.parse("dpo", {"learning_rate": RATE, "beta": BETA, "batch_pairs": job["batch"]})
    model = policy.add_incumbent(base, Path(job["start"]))
    parameters = policy.parameters(model)
    pairs = [_pair(i, row) for i, row in enumerate(job["rows"])]
    forward = partial(response_logps, base.model, trunk=trunk_below(base.model, Path(job["folder"])))
    alone = Watch(Path(job["folder"]), token=0)
    memory = Memory(Path(job["cache"]), f"{base.path_key} base")
    with model.disable_adapter():
        scorer = Scorer(forward, base.model.device)
        reference = score_by(scorer, pairs, memory, budget=job["budget"], watch=alone, progress=Progress())
    learner = Learner(
        model=base.model,
        parameters=parameters,
        optimizer=optim.optimizer(parameters, params),
        loss=losses.dpo,
        params=params,
        reference=reference,
        budget=job["budget"],
        source=batches.SOURCES["pairs"],
        forward=forward,
    )
    tokens = 0
    for i in range(0, len(pairs), job["batch"]):
        watch.start()
        metrics = accumulate(learner, pairs[i : i + job["batch"]], alone)
        norm = torch.nn.utils.clip_grad_norm_(parameters, params.max_grad_norm).item()
        learner.optimizer.step()
        watch.stop(metrics["loss"], norm)
        tokens += metrics["tokens"]
    return tokens


def _pair(number: int, row: dict[str, Any]) -> Pair:
    prompt, chosen, rejected = (tuple(row[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids"))
    return Pair(
        id=str(number), prompt_sha256=str(number), prompt=prompt, chosen=chosen, rejected=rejected, label=1.0, weight=1.0,
        is_new=True, n_chars_chosen=1, n_chars_rejected=1,
    )  # fmt: skip


def report(peer: Peer) -> None:
    """Runs a contender on the job named in the command line and prints its line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path)
    job = json.loads(parser.parse_args().job.read_text())
    torch.set_num_threads(job["threads"])
    watch = Stopwatch()
    tokens = peer(job, watch)
    born = psutil.Process().create_time()
    print(
        json.dumps(
            {
                "steps": watch.steps,
                "seconds_to_first": (watch.first_at or 0) - born,
                "seconds_cold": time.time() - born,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "tokens": tokens,
            }
        )
    )


if __name__ == "__main__":
    report(ours)
