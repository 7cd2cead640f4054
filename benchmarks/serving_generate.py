"""The parts of `benchmarks.serving` that import torch, each a process: `python -m benchmarks.serving_generate KIND …`.

`generate`: transformers' generate on a static batch, bf16. `peft`: the same with an unmerged LoRA adapter (r = 16, all
linear layers, bf16 as the base). Both read jobs as JSON lines and answer each with the times of its tokens.
`adapters FOLDER`: writes two adapter folders to publish, as the trainer writes them but with random B. `rates`: GB/s from
memory and GFLOP/s of products, as all threads together reach them.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from benchmarks.training import gemm_rate
from training import catalog
from training.ml import adapter, policy, probes

SIZE = 0.02  # of B's entries: changes greedy texts within a few tokens, and still writes English
BUFFER = 2**30  # bytes; far more than any cache holds
BUDGET = 1536  # tokens at once, as the trainer has it


class Clock(BaseStreamer):
    """When each token of the batch was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())  # the first call brings the prompt

    def end(self) -> None:
        pass


def answer_jobs(folder: Path, *, has_adapter: bool) -> None:
    """Reads {"prompts", "n_tokens"} a line, until the end of the input."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None  # every answer as long as asked
    if has_adapter:
        config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        model = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
        shake(model, seed=0)
    _say({"is_ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        clock, sent_at = Clock(), time.perf_counter()
        batch = tokenizer(job["prompts"], return_tensors="pt")
        model.generate(**batch, max_new_tokens=job["n_tokens"], do_sample=False, streamer=clock)
        _say({"sent_at": sent_at, "times": clock.times[1:], "n_prompt": batch["input_ids"].shape[1]})


def write_adapters(folder: Path, model: Path) -> None:
    base = policy.load_base(model)
    for seed in range(2):
        params = catalog.parse("dpo", {"seed": seed, "lora_rank": 16})
        changed = policy.add_adapter(base, params)
        shake(changed, seed)
        weights, part = adapter.serialise(changed), folder / f"adapter-{seed}"
        part.mkdir(parents=True)
        (part / "adapter_model.safetensors").write_bytes(weights)
        sha256 = hashlib.sha256(weights).hexdigest()
        files = {
            "adapter_config.json": adapter.clean_config(changed, base),
            "manifest.json": {"format": 1, "sha256": sha256, "base_sha256": base.sha256},
            "probes.json": probes.measure(changed, base.model, base.tokenizer, BUDGET),
        }
        for name, value in files.items():
            (part / name).write_text(json.dumps(value))
        base = policy.load_base(model)


def shake(model: torch.nn.Module, seed: int) -> None:
    """B is zero in a new adapter: make it random."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(SIZE * torch.randn(parameter.shape, generator=random))


def bandwidth() -> float:
    """GB/s that all threads together read from memory, the best of 20 sums."""
    buffer = torch.ones(BUFFER // 4)
    best = math.inf
    for _ in range(20):
        since = time.perf_counter()
        buffer.sum()
        best = min(best, time.perf_counter() - since)
    return BUFFER / best / 1e9


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["generate", "peft", "adapters", "rates"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.kind == "rates":
        config = json.loads((arguments.model / "config.json").read_text())
        rate = gemm_rate(config["hidden_size"], config["intermediate_size"], arguments.threads)
        _say({"gb_s": bandwidth(), "gflop_s": rate / 1e9})
    elif arguments.kind == "adapters":
        write_adapters(arguments.folder, arguments.model)
    else:
        answer_jobs(arguments.model, has_adapter=arguments.kind == "peft")


if __name__ == "__main__":
    main()
