"""A reward model as files: PEFT's in adapter/, head.safetensors and reward.json. Written whole, read with suspicion.

A score is in logits: (r − mean) / temperature, so that σ(score of a − score of b) is the probability that people prefer a,
and 0 is an average answer.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save

from training.ml import adapter, files
from training.ml.errors import TrainingError
from training.ml.jobs import Job
from training.ml.policy import Base, read_config
from training.ml.progress import Progress
from training.ml.reward_head import Head, response_rewards
from training.ml.rows import Item
from training.ml.scores import Memory, Scorer, Scores, score_by
from training.ml.watch import Watch

NAME = "reward"  # the adapter's within peft
ADAPTER, HEAD, CARD = "adapter", "head.safetensors", "reward.json"
PREFIX = "base_model.model."  # of peft's names of tensors


@dataclass(frozen=True)
class Judge:
    """A reward model on a base, whose other adapters it leaves as they are."""

    base: Base
    head: Head
    sha256: str  # of adapter and head: what a reward depends on besides the base and the tokens
    temperature: float
    mean: float
    max_tokens: int

    def calibrate(self, reward: float) -> float:
        """A reward in logits."""
        return (reward - self.mean) / self.temperature


def serialise(head: Head) -> bytes:
    return save({"weight": head.weight.detach().to("cpu", torch.float32).contiguous()})


def identity(weights: bytes, head: bytes) -> str:
    """sha256 of what a reward depends on: the adapter's file and the head's."""
    return hashlib.sha256(hashlib.sha256(weights).digest() + hashlib.sha256(head).digest()).hexdigest()


def write(
    folder: Path, weights: bytes, head: bytes, model: PeftModel, base: Base, job: Job, card: dict[str, Any]
) -> None:
    """Writes the folder; reward.json is last: what it stands beside is complete."""
    adapter.write(folder / ADAPTER, weights, model, base, job)
    (folder / HEAD).write_bytes(head)
    files.write_json(
        folder / CARD,
        {
            "format": 1,
            "base_sha256": base.sha256,
            "sha256": identity(weights, head),
            "max_tokens": job.params.max_tokens,
        }
        | card,
    )


def load(base: Base, folder: Path) -> Judge:
    """The reward model in a folder, beside whatever adapters the base has. Raises TrainingError."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if card["base_sha256"] != base.sha256:
            raise ValueError("it belongs to another base model")
        weights = (folder / ADAPTER / "adapter_model.safetensors").read_bytes()
        head = (folder / HEAD).read_bytes()
        judge = Judge(
            base,
            _head(folder / HEAD, base),
            identity(weights, head),
            _number(card, "temperature", above=0),
            _number(card, "mean"),
            int(_number(card, "max_tokens", above=1)),
        )
        _inject(base, folder / ADAPTER)
    except Exception as error:  # a folder can be broken in any way; safetensors, peft and json each raise their own
        raise TrainingError(
            f"The reward model {folder.name} cannot be loaded ({error}); choose another.", "reward"
        ) from error
    return judge


def _number(card: dict[str, Any], name: str, *, above: float = -math.inf) -> float:
    value = card[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= above:
        raise ValueError(f"{name} in {CARD} is no possible number")
    return float(value)


def _head(path: Path, base: Base) -> Head:
    tensors = load_file(path)
    size = base.model.config.get_text_config().hidden_size
    if set(tensors) != {"weight"} or tensors["weight"].shape != (1, size):
        raise ValueError(f"{HEAD} must hold one weight of shape (1, {size})")
    if not torch.isfinite(tensors["weight"]).all():
        raise ValueError(f"{HEAD} holds numbers that are not finite")
    head = Head(size)
    head.load_state_dict({"weight": tensors["weight"].float()}, strict=False)
    return head.requires_grad_(False).to(base.model.device)


def _inject(base: Base, folder: Path) -> None:
    """Adds the adapter to the layers it changes, switched off."""
    tensors = load_file(folder / "adapter_model.safetensors")
    with _unchanged(base):
        _remove(base)
        inject_adapter_in_model(read_config(folder), base.model, NAME)
    places = {
        f"{PREFIX}{name}.lora_{side}.weight": getattr(layer, f"lora_{side}")[NAME].weight
        for name, layer in _layers(base)
        if NAME in layer.lora_A
        for side in "AB"
    }
    if set(places) != set(tensors):
        raise ValueError("its adapter does not fit the model's layers")
    with torch.no_grad():
        for name, parameter in places.items():
            if tensors[name].shape != parameter.shape or not torch.isfinite(tensors[name]).all():
                raise ValueError(f"{name} has a wrong shape, or numbers that are not finite")
            parameter.copy_(tensors[name]).requires_grad_(False)


def _layers(base: Base) -> list[tuple[str, LoraLayer]]:
    return [(name, module) for name, module in base.model.named_modules() if isinstance(module, LoraLayer)]


def _remove(base: Base) -> None:
    for _name, layer in _layers(base):
        layer.delete_adapter(NAME)


@contextmanager
def _unchanged(base: Base) -> Iterator[None]:
    """A block after which the layers' adapters are active, and trained, as they were; layers new in it are switched off."""
    before = {id(layer): (list(layer.active_adapters), layer.disable_adapters) for _, layer in _layers(base)}
    trained = {id(parameter) for parameter in base.model.parameters() if parameter.requires_grad}
    try:
        yield
    finally:
        for _name, layer in _layers(base):
            active, is_off = before.get(id(layer), ([NAME], True))
            layer.set_adapter(active)
            layer.enable_adapters(not is_off)
        for parameter in base.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)


@contextmanager
def active(judge: Judge) -> Iterator[None]:
    """The reward model's adapter in place of all others."""
    with _unchanged(judge.base):
        for _name, layer in _layers(judge.base):
            is_ours = NAME in layer.lora_A
            if is_ours:
                layer.set_adapter(NAME)
            layer.enable_adapters(is_ours)
        yield


def score(judge: Judge, items: Sequence[Item], cache: Path, budget: int, watch: Watch, progress: Progress) -> Scores:
    """The items' responses in logits; what the cache knows of this reward model is not computed again."""
    memory = remember(judge.base, judge.sha256, cache)
    with active(judge):
        rewards = score_by(scorer(judge.base, judge.head), items, memory, budget=budget, watch=watch, progress=progress)
    return {sequence: judge.calibrate(reward) for sequence, reward in rewards.items()}


def scorer(base: Base, head: Head) -> Scorer:
    """The base with the adapter that is active."""
    return Scorer(partial(response_rewards, base.model, head), base.model.device, keep_last=True)


def remember(base: Base, sha256: str, cache: Path) -> Memory:
    """Rewards by the reward model of this `identity`."""
    return Memory(cache, f"{base.path_key} reward {sha256}")
