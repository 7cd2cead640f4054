"""Log-probabilities of whole responses under a fixed model, remembered by content: what is known is not computed again.

A score depends on the weights, the numeric path and the tokens, and on nothing else: not on the run, not on what else was
in the pass. So the reference's scores and an incumbent's serve every later run.
"""

import hashlib
import json
import math
import secrets
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
MAX_FILES = 16  # of one scorer, before they become one: every run adds some
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

    Runs share the folder: each file is written whole under a name of its own, and removed only when a newer one that holds
    all of it is on the disk. So whatever several of them write, read and merge at a time, no score is lost.
    """

    def __init__(self, cache: Path, who: str) -> None:
        self.who = who
        self.folder = cache / hashlib.sha256(who.encode()).hexdigest()[:32]
        self.known: dict[str, float] = {}
        self.new: dict[str, float] = {}
        for scores in self._read().values():
            self.known |= scores

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
        self._write(self.new)
        self.new = {}
        self._merge()

    def _merge(self) -> None:
        """Puts the files into one where they have become many."""
        if len(list(self.folder.glob("*.json"))) <= MAX_FILES:
            return
        found = self._read()
        self._write({key: score for scores in found.values() for key, score in scores.items()})
        for path in found:
            path.unlink(missing_ok=True)  # another process may have merged it too

    def _write(self, scores: dict[str, float]) -> None:
        files.write_json(self.folder / f"{secrets.token_hex(16)}.json", scores)

    def _read(self) -> dict[Path, dict[str, float]]:
        """What each file holds. One that vanishes was merged into another, so the folder is listed again."""
        found: dict[Path, dict[str, float]] = {}
        damaged: set[Path] = set()
        while unread := sorted({*self.folder.glob("*.json")} - found.keys() - damaged):
            for path in unread:
                try:
                    found[path] = {} | json.loads(path.read_text(encoding="utf-8"))
                except FileNotFoundError:
                    continue
                except (OSError, ValueError, TypeError) as error:
                    print(f"ignoring unreadable {path}: {error}", flush=True)
                    damaged.add(path)
        return found


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
