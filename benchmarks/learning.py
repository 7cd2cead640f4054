"""What is learned, against TRL with the same budget: preference accuracy on held-out pairs before and after DPO.

    python -m benchmarks.learning NAME=TRAIN.jsonl.gz:TEST.jsonl.gz … [--pairs 160] [--test 300] [--epochs 1] [--without trl]

A line of a file: {"prompt", "response_a", "response_b", "outcome": "a" or "b"}, or {"prompt", "chosen", "rejected"} with lists
of messages. Ours is the trainer as a worker starts it (`python -m training.ml.train`), TRL's DPOTrainer is at its best; both
learn from the same pairs with the same LoRA start, rate, beta and number of steps. All are judged by the same code: a model
prefers the response that it has made more likely than the base does. Before training that is no opinion, so `before` is the
base's own taste, its log-probability per token. `difference` is ours minus TRL's with a 95 % bootstrap interval over pairs. A
reward model learns from the same pairs. Prints a table and one JSON line last.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.training import BUDGET, make_starts
from benchmarks.training_peer import BETA, RATE
from training.ml import data, policy
from training.ml.data import Pair
from training.ml.logprobs import response_logps, trunk_below
from training.ml.progress import Progress
from training.ml.scores import Memory, Scorer, Scores, score_by
from training.ml.watch import Watch

BATCH = 4
DRAWS = 2000
PARAMS: dict[str, Any] = {
    "learning_rate": RATE,
    "batch_pairs": BATCH,
    "schedule": "constant",
    "warmup": 0.0,
    "max_tokens": 768,
}
Values = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="NAME=TRAIN:TEST")
    parser.add_argument("--model", type=Path, default=Path(os.environ.get("MODEL", "var/models/smollm2-135m-instruct")))
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--without", default="", help="trl, reward_model")
    arguments = parser.parse_args()
    print(machine.describe(), flush=True)
    figures: dict[str, Any] = {}
    for item in arguments.data:
        name, _, paths = item.partition("=")
        train, _, test = paths.partition(":")
        with tempfile.TemporaryDirectory(prefix="alignapp-learning-") as folder:
            found = Study(arguments, Path(folder), Path(train), Path(test)).run()
        for key, value in found.items():
            print(f"{name:12} {key:28} {value}", flush=True)
        figures |= {f"{name}_{key}": value for key, value in found.items()}
    print(json.dumps({"benchmark": "learning", **figures}))


class Study:
    """One set of pairs: who learns what from it."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, train: Path, test: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.snapshot = folder / "snapshot"
        self.snapshot.mkdir()
        for name, path, n in (("train", train, arguments.pairs), ("heldout", test, arguments.test)):
            lines = [line(i, *row) for i, row in zip(range(n), read(path), strict=False)]
            (self.snapshot / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))

    def run(self) -> dict[str, Any]:
        attempt = self.train("dpo", {"beta": BETA} | PARAMS)
        base = policy.load_base(self.arguments.model)
        pairs = data.read(self.snapshot, base.tokenizer, PARAMS["max_tokens"])
        scores = {"ours": attempt / "adapter"}
        if "trl" not in self.arguments.without.split(","):
            scores["trl"] = self.train_by_trl(cast(list[Pair], pairs.train))  # what DPO's source has
        judge = Judge(base, pairs.heldout, self.folder)
        before = judge.taste()
        right = {name: judge.is_right(adapter) for name, adapter in scores.items()}
        found = {"pairs": len(pairs.train), "test_pairs": len(pairs.heldout), "before": _share(before)}
        found |= {f"after_{name}": _share(values) for name, values in right.items()}
        if "trl" in right:
            found |= difference(right["ours"] - right["trl"])
        if "reward_model" not in self.arguments.without.split(","):
            found |= self.reward_model()
        return found

    def train(self, method: str, params: dict[str, Any]) -> Path:
        """The attempt's folder of a run by the trainer; its process is a worker's."""
        attempt = self.folder / method / "attempt-1"
        attempt.mkdir(parents=True)
        config = {
            "run": 1, "attempt": 1, "token": 1, "method": method, "params": params | {"epochs": self.arguments.epochs},
            "model": str(self.arguments.model.resolve()), "snapshot": str(self.snapshot), "snapshot_sha256": "0" * 64,
            "cache": str(self.folder / "cache"), "incumbent": None, "incumbent_name": None, "resume": None,
        }  # fmt: skip
        (attempt / "config.json").write_text(json.dumps(config))
        call([sys.executable, "-m", "training.ml.train", str(attempt)])
        return attempt

    def train_by_trl(self, pairs: list[Pair]) -> Path:
        rows = [
            {"prompt_ids": list(pair.prompt), "chosen_ids": list(pair.chosen), "rejected_ids": list(pair.rejected)}
            for pair in pairs
        ]
        job = {
            "model": str(self.arguments.model), "start": str(make_starts(self.arguments.model, self.folder)["ours"]),
            "rows": rows, "batch": BATCH, "is_tuned": True, "threads": os.cpu_count(), "folder": str(self.folder), "budget": BUDGET,
            "epochs": self.arguments.epochs, "save": str(self.folder / "trl-adapter"),
        }  # fmt: skip
        (self.folder / "job.json").write_text(json.dumps(job))
        call([sys.executable, "-m", "benchmarks.training_trl", str(self.folder / "job.json")])
        return self.folder / "trl-adapter"

    def reward_model(self) -> dict[str, Any]:
        attempt = self.train("reward_model", dict(PARAMS))
        card = json.loads((attempt / "reward_model" / "reward.json").read_text())
        return {f"reward_{key}": card[key] for key in ("accuracy", "ece", "temperature", "n_heldout") if key in card}


class Judge:
    """Held-out pairs under the base and under adapters."""

    def __init__(self, base: policy.Base, pairs: list[Pair], folder: Path) -> None:
        self.base, self.pairs, self.folder = base, pairs, folder
        self.reference = self.score("base")

    def score(self, who: str) -> Scores:
        forward = partial(response_logps, self.base.model, trunk=trunk_below(self.base.model, self.folder))
        scorer = Scorer(forward, self.base.model.device)
        memory = Memory(self.folder / "judged", who)
        alone = Watch(self.folder, token=0)
        return score_by(scorer, self.pairs, memory, budget=BUDGET, watch=alone, progress=Progress())

    def taste(self) -> Values:
        """(n,) 1 where the base's log-probability per token is higher for the chosen response."""
        return np.array(
            [
                float(
                    self.reference[p.prompt, p.chosen] / len(p.chosen)
                    > self.reference[p.prompt, p.rejected] / len(p.rejected)
                )
                for p in self.pairs
            ]
        )

    def is_right(self, adapter: Path) -> Values:
        """(n,) 1 where the adapter raises the chosen response above the rejected one, by its log-ratio to the base."""
        model = policy.add_incumbent(self.base, adapter)
        found = self.score(str(adapter))
        model.unload()
        gaps = [
            found[p.prompt, p.chosen] - self.reference[p.prompt, p.chosen]
            - found[p.prompt, p.rejected] + self.reference[p.prompt, p.rejected]
            for p in self.pairs
        ]  # fmt: skip
        return (np.sign(gaps) + 1) / 2


def difference(gains: Values) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    draws = rng.choice(gains, (DRAWS, len(gains))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"difference": round(float(gains.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _share(values: Values) -> float:
    return round(float(values.mean()), 4)


def call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} failed:\n{done.stdout[-1500:]}{done.stderr[-3000:]}")


def read(path: Path) -> Iterator[tuple[list[dict[str, str]], str, str]]:
    """Messages, chosen, rejected."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for raw in lines:
            row = json.loads(raw)
            prompt = row["prompt"]
            messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
            if "outcome" in row:
                pair = row["response_a"], row["response_b"]
                yield messages, *(pair if row["outcome"] == "a" else pair[::-1])
            else:
                yield messages, _text(row["chosen"]), _text(row["rejected"])


def _text(turns: Any) -> str:
    return turns if isinstance(turns, str) else turns[-1]["content"]


def line(number: int, messages: list[dict[str, str]], chosen: str, rejected: str) -> dict[str, Any]:
    """A line of a snapshot."""
    return {
        "pair": str(number), "prompt_sha256": f"{number:064x}", "messages": messages, "chosen": chosen,
        "rejected": rejected, "label": 1.0, "weight": 1.0, "margin": 0, "is_new": True,
    }  # fmt: skip


if __name__ == "__main__":
    main()
