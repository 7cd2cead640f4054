"""Log-probabilities of whole responses under a fixed model, remembered by content: what is known is not computed again.

A score depends on the weights, the numeric path and the tokens, and on nothing else: not on the run, not on what else was
in the pass. So the reference's scores and an incumbent's serve every later run.
"""

import hashlib
import json
import math
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from training.ml import files, lanes
from training.ml.errors import TrainingError
from training.ml.logprobs import response_logps
from training.ml.memory import in_smaller_parts
from training.ml.progress import Progress
from training.ml.rows import Item, Pack, Tokens, longest, pack
from training.ml.watch import Watch

MIN_BUDGET = 16  # tokens per pass: below this every item is alone anyway
Scores = dict[tuple[Tokens, Tokens], float]  # (prompt, response) -> nats


@dataclass(frozen=True)
class Alone:
    """One response as an item of a pack."""

    prompt: Tokens
    response: Tokens

    @property
    def responses(self) -> tuple[Tokens, ...]:
        return (self.response,)


class Memory:
    """Scores of one scorer (`who`: everything but the tokens), in immutable files below the cache folder.

    A file is written whole under the hash of its content, so runs that share the folder cannot disturb each other.
    """

    def __init__(self, cache: Path, who: str) -> None:
        self.who = who
        self.folder = cache / hashlib.sha256(who.encode()).hexdigest()[:32]
        self.known: dict[str, float] = {}
        self.new: dict[str, float] = {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                self.known |= json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError) as error:
                print(f"ignoring unreadable {path}: {error}", flush=True)

    def key(self, prompt: Tokens, response: Tokens) -> str:
        digest = hashlib.sha256(self.who.encode())
        for part in (prompt, response):
            digest.update(len(part).to_bytes(8, "little") + array("q", part).tobytes())
        return digest.hexdigest()

    def get(self, prompt: Tokens, response: Tokens) -> float | None:
        return self.known.get(self.key(prompt, response))

    def put(self, prompt: Tokens, response: Tokens, score: float) -> None:
        key = self.key(prompt, response)
        self.known[key] = self.new[key] = score

    def save(self) -> None:
        """Writes what is new since the last time."""
        if not self.new:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(json.dumps(sorted(self.new)).encode()).hexdigest()
        files.write_json(self.folder / f"{name}.json", self.new)
        self.new = {}


def missing(items: Iterable[Item], memory: Memory) -> list[Alone]:
    """The responses among the items whose scores the memory lacks, each once."""
    wanted = dict.fromkeys((item.prompt, response) for item in items for response in item.responses)
    return [Alone(*sequence) for sequence in wanted if memory.get(*sequence) is None]


@dataclass(frozen=True)
class Scorer:
    """What gives the scores (R,) of a pack's responses, and whether it reads their last tokens."""

    forward: Callable[[Pack], torch.Tensor]
    device: torch.device
    keep_last: bool = False


def score(
    model: PreTrainedModel, items: Sequence[Item], memory: Memory, *, budget: int, watch: Watch, progress: Progress
) -> Scores:
    """Scores of all the items' responses under the model as it is now; the new ones are saved, also when stopped."""
    scorer = Scorer(partial(response_logps, model), model.device)
    return score_by(scorer, items, memory, budget=budget, watch=watch, progress=progress)


def score_by(
    scorer: Scorer, items: Sequence[Item], memory: Memory, *, budget: int, watch: Watch, progress: Progress
) -> Scores:
    """As `score`, of any kind."""
    try:
        _compute(scorer, missing(items, memory), memory, budget, watch, progress)
    finally:
        with watch.shielded():
            memory.save()
    wanted = {(item.prompt, response) for item in items for response in item.responses}
    return {(prompt, response): memory.known[memory.key(prompt, response)] for prompt, response in wanted}


def _compute(scorer: Scorer, items: list[Alone], memory: Memory, budget: int, watch: Watch, progress: Progress) -> None:
    """In passes of at most `budget` tokens; what is left when memory does not suffice, in smaller ones."""

    def compute(budget: int) -> None:
        left = [item for item in items if memory.get(item.prompt, item.response) is None]
        n_lanes = lanes.count(scorer.device, budget, longest(left, keep_last=scorer.keep_last))
        waiting = pack(left, budget // n_lanes, device=scorer.device, keep_last=scorer.keep_last)
        while waiting:
            batches, waiting = waiting[-n_lanes:], waiting[:-n_lanes]
            since = time.monotonic()
            found = lanes.run([partial(_forward, scorer, batch) for batch in batches], n_lanes)
            for batch, scores in zip(batches, found, strict=True):
                for (prompt, response), value in zip(batch.order, scores, strict=True):
                    memory.put(prompt, response, value)
            watch.report(seconds_left=progress.did(sum(batch.n_tokens for batch in batches), since))

    in_smaller_parts(compute, budget, MIN_BUDGET)


def _forward(scorer: Scorer, batch: Pack) -> list[float]:
    with torch.no_grad():
        scores = scorer.forward(batch).tolist()
    if not all(map(math.isfinite, scores)):
        raise TrainingError("The model gives scores that are not finite; its weights are damaged.", "model")
    return scores
