"""Snapshots, attempts and learners for the trainer's tests."""

import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from training import catalog
from training.ml import batches, losses, optim, policy
from training.ml.data import Example, Pair, Single, add_mismatches
from training.ml.loop import Learner
from training.ml.rows import Item
from training.ml.scores import Scores

# The methods that make an adapter: their losses are in training.ml.losses.
POLICY_METHODS = [method.name for method in catalog.METHODS.values() if method.output == "adapter"]

WORDS = [
    "river",
    "stone",
    "paper",
    "lamp",
    "quiet",
    "copper",
    "window",
    "garden",
    "bread",
    "story",
    "winter",
    "signal",
    "yellow",
    "honest",
    "bridge",
]


def line(number: int, *, prompt: str | None = None, **changes: Any) -> dict[str, Any]:
    """A line of a snapshot: the chosen response is long, the rejected one short, both of seeded words."""
    rng = random.Random(number)
    text = prompt or f"Say something about {rng.choice(WORDS)} number {number}."
    return {
        "pair": f"pair-{number}",
        "prompt_sha256": f"{number:064x}",
        "messages": [{"role": "user", "content": text}],
        "chosen": " ".join(rng.choices(WORDS, k=rng.randint(6, 12))),
        "rejected": " ".join(rng.choices(WORDS, k=rng.randint(2, 4))),
        "label": 1.0,
        "weight": 1.0,
        "margin": 0,
        "is_new": True,
    } | changes


def write_snapshot(folder: Path, train: list[dict[str, Any]], heldout: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("train", train), ("heldout", heldout)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def single_line(number: int, **changes: Any) -> dict[str, Any]:
    """A line of unpaired.jsonl, or of edits.jsonl."""
    return {
        "prompt_sha256": f"{number:064x}",
        "messages": [{"role": "user", "content": f"Number {number}?"}],
        "response": f"Copper bridge {number}",
        "response_id": number,
        "judgments": [1],
        "is_new": True,
    } | changes


def write_singles(path: Path, changes: Sequence[dict[str, Any]]) -> None:
    """Lines 1, 2, … with these changes."""
    lines = [single_line(number, **each) for number, each in enumerate(changes, start=1)]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))


def write_attempt(root: Path, model: Path, number: int = 1, *, method: str = "dpo", **changes: Any) -> Path:
    """root/attempt-<number> with a config.json and a lease; `params` and every other key can be given."""
    folder = root / f"attempt-{number}"
    folder.mkdir(parents=True)
    snapshot = root / "snapshot"
    if not snapshot.exists():
        write_snapshot(snapshot, [line(i) for i in range(12)], [line(i) for i in range(100, 104)])
    params = {"batch_pairs": 4, "epochs": 2.0, "lora_rank": 4, "learning_rate": 0.003} | changes.pop("params", {})
    config = {
        "run": 7,
        "attempt": number,
        "token": 1,
        "method": method,
        "params": params,
        "model": str(model),
        "snapshot": str(snapshot),
        "cache": str(root / "cache"),
        "incumbent": None,
        "incumbent_name": None,
        "resume": None,
        "threads": 0,
        "nice": 0,
        "snapshot_sha256": "a" * 64,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    write_lease(folder)
    return folder


def write_lease(folder: Path, *, token: int = 1, seconds: float = 600) -> None:
    (folder / "lease.json").write_text(json.dumps({"token": token, "until": time.time() + seconds}))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def pair(prompt: list[int], chosen: list[int], rejected: list[int], **changes: Any) -> Pair:
    values: dict[str, Any] = {
        "id": "p",
        "prompt_sha256": "",
        "prompt": tuple(prompt),
        "chosen": tuple(chosen),
        "rejected": tuple(rejected),
        "label": 1.0,
        "weight": 1.0,
        "is_new": True,
        "n_chars_chosen": 1,
        "n_chars_rejected": 1,
    }
    return Pair(**values | changes)


def some_pairs(n: int = 8) -> list[Pair]:
    """n pairs of random tokens; the first three share their prompt and the first two a response."""
    rng = random.Random(5)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(3, 40_000) for _ in range(rng.randint(low, high))]

    shared, common = tokens(7, 7), tokens(5, 5)
    first = [
        pair(shared, common, tokens(3, 3)),
        pair(shared, tokens(1, 1), common),
        pair(shared, tokens(6, 6), tokens(2, 2)),
    ]
    return [*first, *(pair(tokens(2, 9), tokens(1, 9), tokens(1, 9)) for _ in range(n - 3))]


def some_singles(n: int = 8) -> list[Single]:
    """n responses of random tokens, good and bad by turns, with a response to another prompt; some share a prompt."""
    halves = [(pair, response) for pair in some_pairs(n) for response in pair.responses][:n]
    return add_mismatches(
        [
            Single(f"s{i}", "", pair.prompt, response, is_good=i % 3 > 0, weight=1.0 + i % 2, is_new=True)
            for i, (pair, response) in enumerate(halves)
        ],
        max_tokens=512,
    )


def judged(n: int = 8) -> list[Pair]:
    """some_pairs with soft labels, ties, weights and grades."""
    labels = [1.0, 0.5, 0.8, 0.65, 1.0, 0.7, 0.5, 0.9]
    return [
        replace(pair, label=labels[i % 8], tie_share=(i % 4) / 5, margin=i % 4 * 0.7, weight=1 + i / 4)
        for i, pair in enumerate(some_pairs(n))
    ]


def examples_for(method: str) -> list[Any]:
    """Some of what the method learns from; whoever writes a response finds it good."""
    source = catalog.get(method).source
    edits = [replace(single, is_good=True, mismatch=None) for single in some_singles()]
    return {"unpaired": some_singles(), "edits": edits}.get(source, judged())


def shake(model: PeftModel, size: float = 0.1) -> None:
    """Gives a new adapter, whose B is zero, an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)


def exact_norms(model: PreTrainedModel) -> PreTrainedModel:
    """Norms that compute in the model's dtype: transformers' own go through fp32 even in a float64 model."""
    for module in list(model.modules()):
        children: list[tuple[str, Any]] = list(module.named_children())  # a norm is told by what it has
        for name, norm in children:
            if hasattr(norm, "variance_epsilon"):
                ours: Any = torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, dtype=norm.weight.dtype)
                ours.variance_epsilon = norm.variance_epsilon
                setattr(module, name, ours.requires_grad_(False))
    return model


def flat_reference(items: Sequence[Example], value: float = -20.0) -> Scores:
    """A reference for tests that need one and do not care which."""
    found: list[Item] = [*items, *(other for item in items for other in item.others)]
    return {(item.prompt, response): value for item in found for response in item.responses}


def make_learner(
    base: policy.Base, pairs: Sequence[Example], *, method: str = "dpo", reference: Scores | None = None, **params: Any
) -> tuple[Learner, PeftModel]:
    parsed = catalog.parse(method, {"lora_rank": 4, "learning_rate": 0.003} | params)
    model = policy.add_adapter(base, parsed)
    trained = policy.parameters(model)
    learner = Learner(
        model=base.model,
        parameters=trained,
        optimizer=optim.optimizer(trained, parsed, policy.second_matrices(model)),
        loss=getattr(losses, method),
        params=parsed,
        reference=reference or flat_reference(pairs),
        budget=512,
        source=batches.SOURCES[catalog.get(method).source],
        anchor=parsed.anchor,
    )
    return learner, model


def copy_of(finished: Path, root: Path) -> Path:
    """A run with the same snapshot, nothing computed yet."""
    shutil.copytree(finished / "snapshot", root / "snapshot")
    return root


def with_incumbent(finished: Path, root: Path, model: Path, **params: Any) -> Path:
    return write_attempt(
        copy_of(finished, root),
        model,
        params=params,
        incumbent=str(finished / "attempt-1" / "adapter"),
        incumbent_name="adapter-7",
    )
