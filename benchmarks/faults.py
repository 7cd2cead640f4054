"""Faults planted into training runs of the real model, with the monitor acting and without it.

    python -m benchmarks.faults --pairs PAIRS.jsonl.gz [--steps 40] [--batch 4] [--clean 3] [--model FOLDER]

A line of the file: {"prompt": [messages], "chosen": [message], "rejected": [message]}. The shortest pairs are taken, so
that it ends. A run's score is the mean probability that it gives to people's choice in pairs it has not seen. Prints a
table and one JSON line last.
"""

import argparse
import gzip
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import injection, machine
from benchmarks.site import REPOSITORY
from training import catalog
from training.ml import data, exams, loop, losses, optim, policy, scores
from training.ml.data import Order, Pair
from training.ml.errors import TrainingError
from training.ml.exams import Writer
from training.ml.monitor import Monitor
from training.ml.progress import Progress
from training.ml.scores import Memory
from training.ml.watch import Watch

BUDGET = 768


@dataclass
class Bench:
    """The model, once, and what every run starts from."""

    base: policy.Base
    order: Order
    heldout: list[Pair]
    test: list[Pair]
    params: catalog.Common
    folder: Path
    n_runs: int = 0
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        self.model = policy.add_adapter(self.base, self.params)
        self.parameters = policy.parameters(self.model)
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        every = [*self.order.pairs, *self.heldout, *self.test]
        with self.model.disable_adapter():
            self.reference = scores.score(
                self.base.model,
                every,
                Memory(self.folder / "cache", "base"),
                budget=BUDGET,
                watch=Watch(self.folder, 1),
                progress=Progress(),
            )

    def run(self, fault: str, mode: str, at: int) -> dict[str, Any]:
        self.n_runs += 1
        folder = self.folder / f"run-{self.n_runs}"
        folder.mkdir()
        learner = self.learner(mode)
        order = injection.FAULTS.get(fault, injection.clean)(learner, self.order, at)
        since = time.monotonic()
        try:
            loop.train(learner, order, folder, {}, Watch(folder, 1), Progress())
        except TrainingError as error:
            learner.stopped = str(error)
        seconds = time.monotonic() - since
        with torch.no_grad():
            found = exams.heldout(learner, self.test, None)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        alarms = [{"step": line["step"], **alarm} for line in lines for alarm in line["alarms"]]
        marks = found.get("heldout_scores", [0.0])
        caught = next((alarm["step"] - at for alarm in alarms if alarm["step"] >= at), None)
        return {
            "fault": fault,
            "mode": mode,
            "score": sum(marks) / len(marks),
            "accuracy": found["heldout_accuracy"] or 0.0,
            "caught_after": caught if fault != "clean" else None,
            "alarms": dict(Counter(f"{alarm['signal']}: {alarm['action']}" for alarm in alarms)),
            "seconds": seconds,
            "stopped": learner.stopped,
        }

    def learner(self, mode: str) -> loop.Learner:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.start, strict=True):
                parameter.copy_(value)
        learner = loop.Learner(
            model=self.base.model,
            parameters=self.parameters,
            optimizer=optim.optimizer(self.parameters, self.params),
            loss=losses.dpo,
            params=self.params,
            reference=self.reference,
            budget=BUDGET,
        )
        learner.exams = exams.prepare(self.order, self.heldout, Writer(self.model, self.base.tokenizer), BUDGET)
        learner.monitor = Monitor(mode, examines=bool(learner.exams.pairs))
        return learner


def read_pairs(path: Path, tokenizer: Any, n: int) -> list[Pair]:
    """The n shortest pairs, in an order of their own."""
    with gzip.open(path, "rt") as file:
        found = [json.loads(line) for line in file]
    lines = [
        {
            "pair": str(i),
            "prompt_sha256": str(i),
            "messages": one["prompt"],
            "chosen": one["chosen"][-1]["content"],
            "rejected": one["rejected"][-1]["content"],
            "label": 1.0,
            "weight": 1.0,
        }
        for i, one in enumerate(found)
    ]
    with tempfile.TemporaryDirectory(prefix="alignapp-faults-") as snapshot:
        (Path(snapshot) / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (Path(snapshot) / "heldout.jsonl").write_text("")
        pairs = data.read(Path(snapshot), tokenizer, 512, "pairs", catalog.parse("dpo", {})).train
    short = sorted(pairs, key=lambda pair: len(pair.prompt) + sum(map(len, pair.responses)))[:n]
    random.Random(0).shuffle(short)
    return short  # type: ignore[return-value]  # what is read as pairs is pairs


def show(row: dict[str, Any], clean: float) -> None:
    what = ", ".join(f"{name} ×{n}" for name, n in row["alarms"].items()) or "none"
    after = "–" if row["caught_after"] is None else str(row["caught_after"])
    share = row["score"] / clean
    print(
        f"{row['fault']:15} {row['mode']:5} {row['score']:.4f} {share:6.1%} {after:>6} {row['seconds']:6.0f} s  {what}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=REPOSITORY / "var" / "models" / "smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--test", type=int, default=64, help="unseen pairs that the score is of")
    parser.add_argument("--faults", nargs="+", choices=injection.FAULTS, default=list(injection.FAULTS))
    parser.add_argument("--clean", type=int, default=3, help="clean runs, for false alarms")
    arguments = parser.parse_args()
    print(machine.describe(), flush=True)
    base = policy.load_base(arguments.model)
    n_test = arguments.test
    n_train = arguments.steps * arguments.batch // arguments.epochs
    pairs = read_pairs(arguments.pairs, base.tokenizer, n_train + exams.N_PAIRS + n_test)
    test, heldout, train = pairs[:n_test], pairs[n_test:][: exams.N_PAIRS], pairs[n_test + exams.N_PAIRS :]
    # Clipping would hide a gradient a thousand times too large, so it is as wide as it can be.
    values = {"learning_rate": arguments.rate, "max_grad_norm": 1000.0, "schedule": "constant"}
    params = catalog.parse("dpo", values)
    rows = []
    with tempfile.TemporaryDirectory(prefix="alignapp-faults-") as folder:
        orders = [
            Order(train, epochs=arguments.epochs, batch_pairs=arguments.batch, seed=seed)
            for seed in range(arguments.clean)
        ]
        bench = Bench(base, orders[0], heldout, test, params, Path(folder))
        for order in reversed(orders):
            bench.order = order
            rows.append(bench.run("clean", "act", 0))
        clean = rows[-1]["score"]
        for row in rows:
            show(row, clean)
        for fault in arguments.faults:
            at = orders[0].n_steps // (6 if fault == "huge_gradient" else 2)
            for mode in ("act", "off"):
                rows.append(bench.run(fault, mode, at))
                show(rows[-1], clean)
    false = sum(bool(row["alarms"]) for row in rows if row["fault"] == "clean")
    figures = {
        f"{row['fault']}_{row['mode']}": round(row["score"] / clean, 4) for row in rows if row["fault"] != "clean"
    }
    caught = {f"{row['fault']}_after": row["caught_after"] for row in rows if row["caught_after"] is not None}
    print(json.dumps({"benchmark": "faults", "clean": round(clean, 4), "false_alarms": false, **figures, **caught}))


if __name__ == "__main__":
    main()
