"""Serving against its peers: tokens/s and time to the first token at 1, 4, 8 and 32 streams, and while versions are swapped.

    python -m benchmarks.serving [PAIRS.jsonl.gz] [--model FOLDER] [--rounds 3] [--streams 1,4,8,32] [--seconds 30]
        [--llama-server PATH --gguf-bf16 FILE --gguf-q8 FILE] [--serve-packages FOLDER] [--only a,b] [--without a,b]

Every prompt has 128 tokens, every answer 64 (end tokens ignored), greedy; no prompt comes twice to anybody, so no cache of
prompts helps. All run at the same time, stopped but for the one whose turn it is; a warm-up goes before each measurement;
figures are medians over the rounds. Tokens/s count from the first request to the last token, prompts included. "Decode" is
tokens/s while all streams are being written; servers that begin the first answer before they have read the last prompt are
asked once more for it, for answers of 160 tokens.

ours          `python -m serving.engine` as `manage.py up` starts it; HTTP, streamed
generate      transformers' generate, bf16, all prompts as one static batch, in process
hf_serve      `transformers serve --dtype bfloat16`; HTTP, streamed; it answers one request after the other
hf_serve_cb   the same with --continuous-batching
peft          generate with an unmerged LoRA adapter (r = 16, all linear layers)
llamacpp      llama.cpp's own server, bf16: -t 2 -tb 2 -np 32 -c 10240 -cb -fa on, caches of prompts off; HTTP, streamed
llamacpp_q8   the same with q8_0 weights: half the bytes, other answers

llama.cpp comes with the source of llama-cpp-python (`pip download --no-binary :all: --no-deps llama-cpp-python`, unpack); in
its folder vendor/llama.cpp:

    cmake -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_BUILD_SERVER=ON
    cmake --build build --target llama-server llama-quantize
    python convert_hf_to_gguf.py MODEL --outtype bf16 --outfile bf16.gguf       (needs sentencepiece)
    build/bin/llama-quantize bf16.gguf q8.gguf q8_0

`transformers serve` needs fastapi: `pip install --target FOLDER --no-deps fastapi annotated-doc opentelemetry-api` and
--serve-packages FOLDER. A peer that cannot run is named with the reason.

Then eight streams on ours while a version is published every 5 s (`benchmarks.serving_swap`). The limit of n streams: what
the products of all prompts take, and for each of 64 steps the longer of two: reading weights, keys and values once, or
computing; at the rates that the machine reaches, measured each round (`limits`). Prints tables and one JSON line last.
--profile prints the CPU seconds of the engine's threads.
"""

import argparse
import gzip
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tokenizers import Tokenizer

from benchmarks import machine, serving_peers, serving_swap
from benchmarks.serving_load import Answer, Prompt, faults, figures
from benchmarks.serving_peers import Batches, Missing, Peer, Server
from benchmarks.site import REPOSITORY

N_PROMPT = 128
NAMES = ("ours", "generate", "hf_serve", "hf_serve_cb", "peft", "llamacpp", "llamacpp_q8")
MIXING = ("ours", "hf_serve_cb", "llamacpp", "llamacpp_q8")  # read prompts and write answers in one step
SHOWN = ("tok_s", "decode_tok_s", "ttft_ms", "itl_ms", "itl_p99_ms")
HEAD = f"{'contender':12} {'tok/s':>8} {'decode':>8} {'TTFT ms':>8} {'ITL ms':>8} {'p99 ms':>8}"
Figures = dict[str, float]
# What the last line always names; null where it was not measured.
NAMED = (
    *(f"{prefix}tok_s_{n}" for prefix in ("", "generate_", "hf_serve_", "llamacpp_") for n in (1, 4, 8, 32)),
    *(
        "ttft_ms_1",
        "llamacpp_ttft_ms_1",
        "swap_stall_ms",
        "publish_to_token_ms",
        "itl_p99_swap_ratio",
        "failed",
        "torn",
    ),
)


def main() -> None:
    arguments = parse(sys.argv[1:])
    serving_peers.exit_on_sigterm()
    print(machine.describe(), flush=True)
    with tempfile.TemporaryDirectory(prefix="alignapp-serving-") as folder:
        bench = Bench(arguments, Path(folder))
        try:
            bench.start()
            found = bench.run()
        finally:
            bench.end()
    print(json.dumps({"benchmark": "serving", **{name: short(value) for name, value in found.items()}}))


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "pairs", type=Path, nargs="?", help="prompts are cut from its texts; else from our documentation"
    )
    parser.add_argument("--model", type=Path, default=Path(os.environ.get("MODEL", "var/models/smollm2-135m-instruct")))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=numbers, default=[1, 4, 8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument(
        "--decode-tokens",
        type=int,
        default=160,
        help="of each answer that decoding is timed in; 0: only in the short ones",
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of the peers; the engine decides by itself"
    )
    parser.add_argument("--only", default=",".join(NAMES), help="contenders to run")
    parser.add_argument("--without", default="", help="contenders to leave out")
    parser.add_argument("--seconds", type=float, default=30, help="of each load of the swap; 0 leaves it out")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--gguf-bf16", type=Path)
    parser.add_argument("--gguf-q8", type=Path)
    parser.add_argument("--serve-packages", type=Path)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args(words)
    arguments.names = [n for n in NAMES if n in arguments.only.split(",") and n not in arguments.without.split(",")]
    if unknown := {*arguments.only.split(","), *arguments.without.split(",")} - {*NAMES, ""}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if max(arguments.streams) > serving_peers.MAX_STREAMS:
        parser.error(f"at most {serving_peers.MAX_STREAMS} streams")
    arguments.model = arguments.model.resolve()
    return arguments


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


class Bench:
    """All contenders and their turns."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder, self.adapters = arguments, folder, folder / "adapters"
        self.prompts = iter_prompts(arguments)
        self.peers: dict[str, Peer] = {}
        self.missing: dict[str, str] = {}
        self.turns: dict[tuple[str, int], list[Figures]] = {}
        self.rates: list[dict[str, float]] = []

    def start(self) -> None:
        """Each that can run, then stopped until its turn."""
        self.adapters.mkdir()
        if "ours" in self.arguments.names and self.arguments.seconds:
            generate(self.arguments, "adapters", str(self.adapters))
        for name in self.arguments.names:
            try:
                peer = self.make(name)
                self.peers[name] = peer
                peer.start(self.folder / f"{name}.log")
            except Missing as reason:
                self.peers.pop(name, None)
                self.missing[name] = str(reason)
                print(f"{name} is left out: {reason}", flush=True)
        if not self.peers:
            sys.exit("No contender can run.")

    def make(self, name: str) -> Peer:
        """Raises Missing."""
        a = self.arguments
        makers: dict[str, Callable[[], Peer]] = {
            "ours": lambda: serving_peers.ours(a.model, self.adapters),
            "generate": lambda: Batches("generate", a.model, a.threads),
            "hf_serve": lambda: serving_peers.transformers_serve(a.model, a.serve_packages, a.threads, is_continuous=False),
            "hf_serve_cb": lambda: serving_peers.transformers_serve(a.model, a.serve_packages, a.threads, is_continuous=True),
            "peft": lambda: Batches("peft", a.model, a.threads),
            "llamacpp": lambda: serving_peers.llama_server(a.llama_server, a.gguf_bf16, a.threads),
            "llamacpp_q8": lambda: serving_peers.llama_server(a.llama_server, a.gguf_q8, a.threads),
        }  # fmt: skip
        return makers[name]()

    def run(self) -> dict[str, Any]:
        print(f"{'round':>5} {'streams':>7} {HEAD}")
        for number in range(self.arguments.rounds):
            self.rates.append(generate(self.arguments, "rates"))
            for n in self.arguments.streams:
                self.compare(number, n)
        medians = {key: median(turns) for key, turns in self.turns.items()}
        for line in table(medians, self.arguments.streams):
            print(line, flush=True)
        found = {**dict.fromkeys(NAMED), **summary(medians), **self.of_limits(medians), "missing": self.missing}
        return {
            **found,
            **self.swap(sum(int(t["failed"]) for (name, _), ts in self.turns.items() if name == "ours" for t in ts)),
        }

    def compare(self, number: int, n: int) -> None:
        """One turn of each with n streams; who begins changes from round to round."""
        warm, prompts, longer = self.take(n), self.take(n), self.take(n)
        names = list(self.peers)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            peer = self.peers[name]
            peer.ask(warm, 2)
            before = cpu_seconds(peer) if self.arguments.profile and name == "ours" else {}
            answers, n_tokens = peer.ask(prompts, self.arguments.tokens), self.arguments.tokens
            found = figures(answers, N_PROMPT, n_tokens)
            if name in MIXING and self.arguments.decode_tokens:
                found |= decoding(peer.ask(longer, self.arguments.decode_tokens), self.arguments.decode_tokens)
            self.turns.setdefault((name, n), []).append(found)
            print(f"{number + 1:5} {n:7} {name:12} " + row(found), *faults(answers, N_PROMPT, n_tokens)[:3], flush=True)
            if before:
                print_profile(before, cpu_seconds(peer))

    def swap(self, n_failed: int) -> dict[str, Any]:
        ours = self.peers.get("ours")
        if not isinstance(ours, Server) or not self.arguments.seconds:
            return {"failed": n_failed}
        with ours.awake():
            prompts = self.take(serving_swap.N_KNOWN + int(8 * self.arguments.seconds))
            tokens = self.arguments.tokens
            found = serving_swap.run(ours, self.adapters, prompts, N_PROMPT, tokens, self.arguments.seconds)
        for name, value in found.items():
            print(f"{name:24} {short(value)}", flush=True)
        return found | {"failed": found["failed"] + n_failed}

    def of_limits(self, medians: dict[tuple[str, int], Figures]) -> dict[str, float]:
        """What part of the limits ours reaches; the machine is as fast as in its best round."""
        best = {rate: max(found[rate] for found in self.rates) for rate in ("gb_s", "gflop_s")}
        found = limits(self.arguments, **best)
        print(f"memory {best['gb_s']:.1f} GB/s, products {best['gflop_s']:.0f} GFLOP/s", flush=True)
        for n in self.arguments.streams:
            for kind in ("", "decode_"):
                if mine := medians.get(("ours", n), {}).get(f"{kind}tok_s"):
                    limit = found[f"limit_{kind}tok_s_{n}"]
                    found[f"of_{kind}limit_{n}"] = mine / limit
                    what = "decoding" if kind else "in all"
                    print(f"{n:7} streams, {what}: at most {limit:.0f} tokens/s, we reach {mine / limit:.0%}")
        return found | ({"of_limit": found["of_limit_1"]} if "of_limit_1" in found else {})

    def take(self, n: int) -> list[Prompt]:
        return [next(self.prompts) for _ in range(n)]

    def end(self) -> None:
        for peer in self.peers.values():
            peer.end()


# --- prompts ---------------------------------------------------------------------------------------------------------
def iter_prompts(arguments: argparse.Namespace) -> Iterator[Prompt]:
    """Raises SystemExit when they are used up."""
    texts = texts_of(arguments.pairs) if arguments.pairs else own_texts()
    yield from cut(Tokenizer.from_file(str(arguments.model / "tokenizer.json")), "\n\n".join(texts))
    raise SystemExit("There is not enough text for so many prompts; name a file of pairs.")


def cut(tokenizer: Tokenizer, text: str) -> Iterator[Prompt]:
    """Prompts of N_PROMPT tokens, no two of which begin alike: windows that read as the same tokens when alone."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    seen = set()
    starts = list(range(max(len(ids) - N_PROMPT, 0)))
    random.Random(0).shuffle(starts)
    for start in starts:  # windows overlap, but nothing that caches beginnings can use that
        window = ids[start : start + N_PROMPT]
        alone = tokenizer.decode(window, skip_special_tokens=False)
        if tuple(window[:8]) not in seen and tokenizer.encode(alone).ids == window:
            seen.add(tuple(window[:8]))
            yield Prompt(alone, tuple(window))


def own_texts() -> list[str]:
    return [path.read_text() for path in sorted((REPOSITORY / "docs").rglob("*.md"))]


def texts_of(pairs: Path) -> list[str]:
    """The prompts of a file of pairs, of texts or of lists of messages."""
    with gzip.open(pairs, "rt", encoding="utf-8") as lines:
        prompts = [json.loads(line)["prompt"] for line in lines]
    return [p if isinstance(p, str) else "\n".join(turn["content"] for turn in p) for p in prompts]


# --- figures ---------------------------------------------------------------------------------------------------------
def median(turns: list[Figures]) -> Figures:
    """Of each figure over the turns that have it; failures add up."""
    values: dict[str, list[float]] = {}
    for turn in turns:
        for name, value in turn.items():
            if name != "failed" and not math.isnan(value):
                values.setdefault(name, []).append(value)
    found = {name: float(np.median(all_)) for name, all_ in values.items()}
    return found | {"failed": sum(turn["failed"] for turn in turns)}


def decoding(answers: list[Answer], n_tokens: int) -> Figures:
    found = figures(answers, N_PROMPT, n_tokens)
    return {"decode_tok_s": found["decode_tok_s"]} if "decode_tok_s" in found else {}


def summary(medians: dict[tuple[str, int], Figures]) -> dict[str, float]:
    """JSON's names: ours without a prefix, others with theirs; `…ratio_8` is ours over theirs in tokens/s."""
    found: dict[str, float] = {}
    for (name, n), theirs in medians.items():
        prefix = "" if name == "ours" else f"{name}_"
        found |= {f"{prefix}{figure}_{n}": theirs[figure] for figure in SHOWN if figure in theirs}
        mine = medians.get(("ours", n), {})
        if prefix and "tok_s" in mine and "tok_s" in theirs:
            found[f"{prefix}ratio_{n}"] = mine["tok_s"] / theirs["tok_s"]
        if prefix and "decode_tok_s" in mine and "decode_tok_s" in theirs:
            found[f"{prefix}decode_ratio_{n}"] = mine["decode_tok_s"] / theirs["decode_tok_s"]
        if prefix and theirs["failed"]:
            found[f"{prefix}failed_{n}"] = theirs["failed"]
    return found


def table(medians: dict[tuple[str, int], Figures], streams: list[int]) -> Iterator[str]:
    yield f"\n{'streams':>7} {HEAD} {'ours/it':>8}"
    for n in streams:
        mine = medians.get(("ours", n), {}).get("tok_s")
        for (name, m), found in medians.items():
            if m == n:
                ratio = f"{mine / found['tok_s']:8.2f}" if mine and "tok_s" in found and name != "ours" else ""
                yield f"{n:7} {name:12} {row(found)} {ratio}".rstrip()


def row(found: Figures) -> str:
    text = " ".join(f"{found[name]:8.1f}" if name in found else f"{'-':>8}" for name in SHOWN)
    return text + (f"  {found['failed']:.0f} failed" if found["failed"] else "")


def short(value: Any) -> Any:
    """For JSON and people: four significant digits, nothing for NaN."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else float(f"{value:.4g}")


def limits(arguments: argparse.Namespace, gb_s: float, gflop_s: float) -> dict[str, float]:
    """Tokens/s that these rates allow, prompts included: each step reads the weights once, or computes for longer."""
    config = json.loads((arguments.model / "config.json").read_text())
    n_layers, h = config["num_hidden_layers"], config["hidden_size"]
    heads, kv_heads = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    linear = n_layers * (2 * h * heads + 2 * h * kv_heads + 3 * h * config["intermediate_size"])  # weights
    kv = 4 * n_layers * kv_heads * (N_PROMPT + arguments.tokens // 2)  # bytes of a stream halfway
    weights = (arguments.model / "model.safetensors").stat().st_size
    found = {"bandwidth_gb_s": gb_s, "gemm_gflop_s": gflop_s, "bytes_per_step": float(weights + kv)}
    for n in arguments.streams:
        prompts = 2e-9 * n * N_PROMPT * linear / gflop_s
        step = max(1e-9 * (weights + n * kv) / gb_s, 2e-9 * n * (linear + h * config["vocab_size"]) / gflop_s)
        found[f"limit_tok_s_{n}"] = n * arguments.tokens / (prompts + arguments.tokens * step)
        found[f"limit_decode_tok_s_{n}"] = n / step
    return found


def generate(arguments: argparse.Namespace, *words: str) -> dict[str, Any]:
    """The last line of a `benchmarks.serving_generate` that is done when it ends, if it says any."""
    command = [sys.executable, "-m", "benchmarks.serving_generate", *words]
    command += ["--model", str(arguments.model), "--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{words[0]} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}


# --- where the time goes ---------------------------------------------------------------------------------------------
def cpu_seconds(peer: Peer) -> dict[int, float]:
    """By thread of the process."""
    return {t.id: t.user_time + t.system_time for t in psutil.Process(peer.process.pid).threads()}


def print_profile(before: dict[int, float], after: dict[int, float]) -> None:
    """The first thread has the event loop; the busiest of the others is the engine's, then its helpers in the products."""
    spent = {thread: seconds - before.get(thread, 0.0) for thread, seconds in after.items()}
    first = min(spent)
    others = sorted((seconds for thread, seconds in spent.items() if thread != first), reverse=True)
    print(f"      CPU seconds: event loop {spent[first]:.2f}; others {', '.join(f'{s:.2f}' for s in others[:4])}")


if __name__ == "__main__":
    main()
