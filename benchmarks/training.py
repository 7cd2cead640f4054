"""The training step against TRL's: same model, tokens, order, LoRA start and optimizer, each in a process of its own.

    python -m benchmarks.training PAIRS.jsonl.gz [--model FOLDER] [--steps 3] [--rounds 2] [--mixes hh,short,long,four]

(or TRAINING_PAIRS in the environment). A line of the file: {"prompt", "chosen", "rejected"}, texts or lists of messages.
Contenders take turns: ours; `fast`, with adapters on the top third and the trunk's states remembered; TRL's DPOTrainer with
its defaults and at its best (bf16 weights, no checkpointing, reference precomputed). The first step of each process is not
counted. Mixes by tokens of prompt and response: hh as the file has them (about 2:1), short 0.4:1, long 11:1, and four
candidates to a prompt (three pairs). `incremental`: 16 new pairs and 16 of 512 old ones, from a cold process to the last step,
our scores of the old ones being remembered from the run before. Limit: the matrix products of the step over the rate that
the machine reaches on one of its shapes. Prints a table and one JSON line last.
"""

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks import machine
from training import catalog
from training.ml import adapter, policy

BATCH = 4  # pairs a step
PEERS = ("ours", "fast", "trl_best", "trl_default")
BUDGET = 1536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, nargs="?", default=os.environ.get("TRAINING_PAIRS"))
    parser.add_argument("--model", type=Path, default=Path(os.environ.get("MODEL", "var/models/smollm2-135m-instruct")))
    parser.add_argument("--steps", type=int, default=3, help="counted steps a process")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each contender on the first mix")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--mixes", default="hh,short,long,four")
    parser.add_argument("--without", default="", help="contenders to leave out")
    arguments = parser.parse_args()
    if arguments.pairs is None:
        parser.error("name a file of pairs")
    print(machine.describe())
    with tempfile.TemporaryDirectory(prefix="alignapp-training-") as folder:
        bench = Bench(arguments, Path(folder))
        print(json.dumps({"benchmark": "training", **bench.run()}))


class Bench:
    """All the turns, and what they say together."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        self.peers = [peer for peer in PEERS if peer not in arguments.without.split(",")]
        self.rows = list(read(arguments.pairs, arguments.model))
        self.starts = make_starts(arguments.model, folder)
        self.turn = 0

    def run(self) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        print(f"{'mix':6} {'contender':12} {'pairs/s':>8} {'CPU s/pair':>11} {'RSS MB':>8} {'cold s':>8}")
        for mix in self.arguments.mixes.split(","):
            rows = MIXES[mix](self.rows)[: BATCH * (self.arguments.steps + 1)]
            rounds = self.arguments.rounds if mix == "hh" else 1
            figures |= {f"{mix}_{name}": value for name, value in self.compare(mix, rows, rounds).items()}
        figures |= {name.removeprefix("hh_"): value for name, value in figures.items() if name.startswith("hh_")}
        return {k: v for k, v in (figures | self.incremental()).items() if not k.startswith("hh_")}

    def compare(self, mix: str, rows: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
        turns: dict[str, list[dict[str, Any]]] = {peer: [] for peer in self.peers}
        for _ in range(rounds):
            for peer in self.peers if mix == "hh" else [p for p in self.peers if p != "trl_default"]:
                turns[peer].append(self.go(peer, rows, self.folder / "cache" / str(self.turn)))
        speeds = {peer: median_speed(found) for peer, found in turns.items() if found}
        for peer, speed in speeds.items():
            cpu = statistics.median(s["cpu"] for t in turns[peer] for s in t["steps"][1:]) / BATCH
            rss, cold = max(t["rss_mb"] for t in turns[peer]), min(t["seconds_cold"] for t in turns[peer])
            print(f"{mix:6} {peer:12} {speed:8.3f} {cpu:11.2f} {rss:8.0f} {cold:8.1f}", flush=True)
        return summary(speeds, turns) | limit(rows, turns["ours"], speeds["ours"], self.arguments)

    def incremental(self) -> dict[str, Any]:
        """From a cold process to the end of a run on 16 new pairs and 16 of those that were learned before."""
        old, new = self.rows[:512], self.rows[512:528]
        if len(new) < 16 or "trl_best" not in self.peers:
            return {}
        cache, rows = self.folder / "cache-incremental", new + old[:16]
        self.go("ours", old[:16], cache)  # remembers the old pairs' scores, as every earlier run did
        mine, theirs = self.go("ours", rows, cache), self.go("trl_best", rows, cache)
        print(f"16 new pairs and 16 old: ours {mine['seconds_cold']:.0f} s, TRL {theirs['seconds_cold']:.0f} s")
        return {"incremental_vs_trl_best": round(theirs["seconds_cold"] / mine["seconds_cold"], 2)}

    def go(self, peer: str, rows: list[dict[str, Any]], cache: Path) -> dict[str, Any]:
        """One process of a contender."""
        self.turn += 1
        folder = self.folder / f"turn-{self.turn}"
        folder.mkdir()
        job = {
            "model": str(self.arguments.model), "start": str(self.starts["fast" if peer == "fast" else "ours"]),
            "rows": rows, "batch": BATCH, "is_tuned": peer == "trl_best", "threads": self.arguments.threads, "folder": str(folder), "cache": str(cache),
            "budget": BUDGET,
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job))
        module = "training_trl" if peer.startswith("trl") else "training_peer"
        command = [sys.executable, "-m", f"benchmarks.{module}", str(folder / "job.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{peer} failed:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def median_speed(turns: list[dict[str, Any]]) -> float:
    """Pairs a second: the median over all counted steps."""
    return BATCH / statistics.median(step["seconds"] for turn in turns for step in turn["steps"][1:])


def summary(speeds: dict[str, float], turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Ratios to TRL, and how far the losses and gradient norms of equal steps are apart."""
    found: dict[str, Any] = {f"pairs_s_{peer}": round(speed, 3) for peer, speed in speeds.items()}
    rss = {peer: max(turn["rss_mb"] for turn in turns[peer]) for peer in speeds}
    if "trl_best" in speeds:
        best = turns["trl_best"][0]["steps"]
        mine = turns["ours"][0]["steps"]
        found["speed_vs_trl_best"] = round(speeds["ours"] / speeds["trl_best"], 2)
        found["fast_vs_trl_best"] = round(speeds.get("fast", 0) / speeds["trl_best"], 2)
        found["rss_vs_trl_best"] = round(rss["ours"] / rss["trl_best"], 3)
        found["max_loss_diff"] = max(round(abs(a["loss"] - b["loss"]), 4) for a, b in zip(mine, best, strict=True))
        norms = [abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in zip(mine, best, strict=True)]
        found["max_grad_norm_diff"] = round(max(norms), 4)
        found["cold_vs_trl_best"] = round(_cold(turns, "trl_best") / _cold(turns, "ours"), 2)
    if "trl_default" in speeds:
        found["speed_vs_trl_default"] = round(speeds["ours"] / speeds["trl_default"], 2)
        found["rss_vs_trl_default"] = round(rss["ours"] / rss["trl_default"], 3)
    return found


def _cold(turns: dict[str, list[dict[str, Any]]], peer: str) -> float:
    return min(turn["seconds_cold"] for turn in turns[peer])


def limit(
    rows: list[dict[str, Any]], turns: list[dict[str, Any]], speed: float, arguments: argparse.Namespace
) -> dict[str, Any]:
    """How near the step comes to what its matrix products alone would take at the machine's own rate."""
    config = json.loads((arguments.model / "config.json").read_text())
    h, inner, n_layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = config["num_key_value_heads"] * h // config["num_attention_heads"]
    linear = n_layers * (2 * h * h + 2 * h * kv + 3 * h * inner)  # weights
    n_targets = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    # Twice 2 FLOPs a weight and token: the outputs, then the gradients of the inputs. The head likewise.
    flops = 4 * turns[0]["tokens"] * linear + 4 * n_targets * h * config["vocab_size"]
    rate = gemm_rate(h, inner, arguments.threads)
    share = speed * flops / len(rows) / rate
    print(f"       limit {rate * len(rows) / flops:8.3f} pairs/s at {rate / 1e9:.0f} GFLOP/s; we reach {share:.0%}")
    return {
        "gflop_per_pair": round(flops / len(rows) / 1e9, 1),
        "gemm_gflop_s": round(rate / 1e9),
        "of_limit": round(share, 3),
    }


def gemm_rate(n_in: int, n_out: int, threads: int) -> float:
    """FLOP/s of x Wᵀ in the dtype that the trainer chooses, best of 20."""
    torch.set_num_threads(threads)
    device, dtype = policy.device_and_dtype()
    x, w = torch.randn(1024, n_in, dtype=dtype, device=device), torch.randn(n_out, n_in, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(20):
        since = time.perf_counter()
        (x @ w.T).sum().item()
        best = min(best, time.perf_counter() - since)
    return 2 * 1024 * n_in * n_out / best


def make_starts(model: Path, folder: Path) -> dict[str, Path]:
    """Adapters that change nothing yet, as PEFT folders: on all layers, and on the top third."""
    starts = {}
    for name, layers in (("ours", "all"), ("fast", "top_third")):
        base = policy.load_base(model)
        adapted = policy.add_adapter(base, catalog.parse("dpo", {"layers": layers}))
        starts[name] = folder / f"start-{name}"
        starts[name].mkdir()
        (starts[name] / "adapter_model.safetensors").write_bytes(adapter.serialise(adapted))
        (starts[name] / "adapter_config.json").write_text(json.dumps(adapter.clean_config(adapted, base)))
    return starts


def read(path: Path, model: Path, limit: int = 528) -> Iterator[dict[str, Any]]:
    """Token ids of pairs drawn from the file, as the trainer would make them."""
    tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    with gzip.open(path, "rt", encoding="utf-8") as lines:
        found = lines.readlines()
        random.Random(0).shuffle(found)  # the first rows of a file may be all alike
        for row in map(json.loads, found[:limit]):
            turns = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            answers = {
                f"{key}_ids": [*encode(_text(row[key])), tokenizer.eos_token_id] for key in ("chosen", "rejected")
            }
            yield {"prompt_ids": encode(str(prompt))[-600:], **{key: ids[:400] for key, ids in answers.items()}}


def _text(turns: Any) -> str:
    return turns if isinstance(turns, str) else turns[-1]["content"]


Rows = list[dict[str, Any]]


def shaped(rows: Rows, n_prompt: int, n_response: int) -> Rows:
    """Rows of these lengths from the tokens of all."""
    prompts = [t for row in rows for t in row["prompt_ids"]]
    answers = [t for row in rows for key in ("chosen_ids", "rejected_ids") for t in row[key]]
    made = []
    for i in range(min(len(prompts) // n_prompt, len(answers) // (2 * n_response))):
        at = 2 * i * n_response
        pair = answers[at : at + n_response], answers[at + n_response : at + 2 * n_response]
        prompt = prompts[i * n_prompt : (i + 1) * n_prompt]
        made.append({"prompt_ids": prompt, "chosen_ids": pair[0], "rejected_ids": pair[1]})
    return made


def four_candidates(rows: Rows) -> Rows:
    """Every prompt with four responses: the first against each of the others."""
    made = []
    for i in range(0, len(rows) - 1, 2):
        first, second = rows[i], rows[i + 1]
        others = first["rejected_ids"], second["chosen_ids"], second["rejected_ids"]
        made += [first | {"rejected_ids": other} for other in others]
    return made


MIXES = {
    "hh": lambda rows: rows,
    "short": lambda rows: shaped(rows, 100, 250),
    "long": lambda rows: shaped(rows, 440, 40),
    "four": four_candidates,
}


if __name__ == "__main__":
    main()
