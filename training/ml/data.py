"""A snapshot's lines become pairs of token ids: read, checked, tokenised once, cut to length, chosen for this run."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from training.ml.errors import TrainingError
from training.ml.rows import Tokens

TIE = 0.5


@dataclass(frozen=True)
class Line:
    """One line of a snapshot, as `docs/architecture.md` has it."""

    pair: str
    prompt_sha256: str
    messages: list[dict[str, str]]
    chosen: str
    rejected: str
    label: float
    weight: float
    is_new: bool


@dataclass(frozen=True)
class Pair:
    """A comparison with a preferred response, in token ids. The responses end with the end-of-turn token."""

    id: str
    prompt_sha256: str
    prompt: Tokens
    chosen: Tokens
    rejected: Tokens
    label: float
    weight: float
    is_new: bool
    n_chars_chosen: int
    n_chars_rejected: int
    margin: float = 0.0  # mean grade towards chosen, 0 to 3
    tie_share: float = 0.0  # of the votes

    @property
    def responses(self) -> tuple[Tokens, ...]:
        return self.chosen, self.rejected

    @property
    def others(self) -> tuple["Single", ...]:
        return ()


@dataclass(frozen=True)
class Single:
    """One response that was judged alone, in token ids: a thumb up or down, half of a pair, or what people wrote."""

    id: str
    prompt_sha256: str
    prompt: Tokens
    response: Tokens
    is_good: bool
    weight: float
    is_new: bool
    mismatch: Tokens | None = None  # a response to another prompt, by which KTO estimates the KL

    @property
    def responses(self) -> tuple[Tokens, ...]:
        return (self.response,)

    @property
    def others(self) -> tuple["Single", ...]:
        """What must be scored, but not learned from, to learn from this."""
        return () if self.mismatch is None else (replace(self, response=self.mismatch, mismatch=None),)


Example = Pair | Single


@dataclass(frozen=True)
class Pairs:
    train: list[Pair]
    heldout: list[Pair]
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> how many were left out or cut


def read(snapshot: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Pairs:
    """The snapshot's pairs. Raises TrainingError naming the file and line that cannot be used."""
    skipped: Counter[str] = Counter()
    tokenise = Tokenise(tokenizer, max_tokens, skipped)
    parts = []
    for name in ("train", "heldout"):
        lines = list(read_lines(snapshot / f"{name}.jsonl"))
        decided = [line for line in lines if line.label != TIE]
        skipped[f"{name}_ties"] += len(lines) - len(decided)
        pairs = tokenise(decided)
        parts.append([pair for pair in pairs if pair.chosen != pair.rejected])
        skipped[f"{name}_identical"] += len(pairs) - len(parts[-1])
    return Pairs(parts[0], parts[1], {reason: n for reason, n in skipped.items() if n})


def read_lines(path: Path) -> Iterator[Line]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(
            f"{path.name} of the snapshot cannot be read ({error}); start a new run.", "snapshot"
        ) from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield _parse(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
                where = f"Line {number} of {path.name} in the snapshot is damaged ({reason})"
                raise TrainingError(f"{where}; start a new run, which makes a new snapshot.", "snapshot") from None


def _parse(line: Any) -> Line:
    if not isinstance(line, dict):
        raise TypeError("not a JSON object")
    messages = line["messages"]
    if not isinstance(messages, list) or not messages:
        raise TypeError("messages is not a list of messages")
    for text in [part for m in messages for part in (m["role"], m["content"])] + [line["chosen"], line["rejected"]]:
        if not isinstance(text, str):
            raise TypeError("a text is not a string")
    label, weight = float(line["label"]), float(line["weight"])
    if not 0 <= label <= 1 or not 0 <= weight < float("inf"):
        raise ValueError("label must be between 0 and 1, weight finite and not negative")
    return Line(
        pair=str(line["pair"]),
        prompt_sha256=str(line["prompt_sha256"]),
        messages=messages,
        chosen=line["chosen"],
        rejected=line["rejected"],
        label=label,
        weight=weight,
        is_new=bool(line.get("is_new", True)),
    )


class Tokenise:
    """Lines to pairs: the prompt through the chat template, the responses as plain text and the end of turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, skipped: Counter[str]) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.skipped = skipped
        self.end_of_turn = end_of_turn(tokenizer)

    def __call__(self, lines: list[Line]) -> list[Pair]:
        if not lines:
            return []
        rendered = {json.dumps(line.messages): line.messages for line in lines}
        prompts = dict(zip(rendered, self._encode([self._render(m) for m in rendered.values()], False), strict=True))
        texts = list(dict.fromkeys(text for line in lines for text in (line.chosen, line.rejected)))
        responses = dict(zip(texts, self._encode(texts, True), strict=True))
        return [
            self._pair(line, prompts[json.dumps(line.messages)], responses[line.chosen], responses[line.rejected])
            for line in lines
        ]

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except Exception as error:  # a template is a program: it raises what it likes
            raise TrainingError(f"The model's chat template refuses a prompt: {error}", "model") from error

    def _encode(self, texts: list[str], is_plain: bool) -> list[list[int]]:
        """is_plain: what looks like a special token is text, as it can only be in a response that people saw."""
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=is_plain)
        return encoded["input_ids"]

    def _pair(self, line: Line, prompt: list[int], chosen: list[int], rejected: list[int]) -> Pair:
        chosen, rejected = [*chosen, self.end_of_turn], [*rejected, self.end_of_turn]
        room = self.max_tokens - min(max(len(chosen), len(rejected)), self.max_tokens // 2)
        cut = prompt[-room:]  # the end of a conversation says more about the answer than its beginning
        room = self.max_tokens - len(cut)
        self.skipped["prompts_cut"] += len(cut) < len(prompt)
        self.skipped["responses_cut"] += (len(chosen) > room) + (len(rejected) > room)
        return Pair(
            id=line.pair,
            prompt_sha256=line.prompt_sha256,
            prompt=tuple(cut),
            chosen=tuple(chosen[:room]),
            rejected=tuple(rejected[:room]),
            label=line.label,
            weight=line.weight,
            is_new=line.is_new,
            n_chars_chosen=len(line.chosen),
            n_chars_rejected=len(line.rejected),
        )


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token the chat template puts after an assistant's message; the tokenizer's end of sequence if it puts none."""
    marker = "\u2042"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": marker}]
    after = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(marker)[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    if ids and ids[0] in tokenizer.all_special_ids:
        return ids[0]
    if tokenizer.eos_token_id is None:
        raise TrainingError("The model's tokenizer has no end-of-turn token, so responses cannot end.", "model")
    return tokenizer.eos_token_id


def choose(pairs: list[Pair], *, is_continuing: bool, replay: float, seed: int) -> list[Pair]:
    """The pairs to train on: all of them, or, continuing the incumbent, the new ones and `replay` old ones for each."""
    if not is_continuing:
        return pairs
    new = [pair for pair in pairs if pair.is_new]
    old = [pair for pair in pairs if not pair.is_new]
    n_old = min(len(old), round(replay * len(new)))
    return new + random.Random(f"replay {seed}").sample(old, n_old)  # noqa: S311


class Order:
    """Which pairs each optimizer step sees: seeded epochs, a prompt's pairs side by side so that they share its row."""

    def __init__(self, pairs: list[Pair], *, epochs: float, batch_pairs: int, seed: int) -> None:
        self.pairs, self.batch_pairs, self.seed = pairs, batch_pairs, seed
        self.n_visits = max(1, round(epochs * len(pairs)))
        self.n_steps = -(-self.n_visits // batch_pairs)
        self._epochs: dict[int, list[Pair]] = {}

    def step(self, step: int) -> list[Pair]:
        """The pairs of step 1 … n_steps: a function of the step alone, so a resumed run needs no other position."""
        visits = range((step - 1) * self.batch_pairs, min(step * self.batch_pairs, self.n_visits))
        return [self._epoch(visit // len(self.pairs))[visit % len(self.pairs)] for visit in visits]

    def _epoch(self, epoch: int) -> list[Pair]:
        if epoch not in self._epochs:
            groups: dict[Tokens, list[Pair]] = {}
            for pair in self.pairs:
                groups.setdefault(pair.prompt, []).append(pair)
            shuffled = list(groups.values())
            random.Random(f"epoch {epoch} {self.seed}").shuffle(shuffled)  # noqa: S311
            self._epochs = {epoch - 1: self._epochs.get(epoch - 1, []), epoch: [p for g in shuffled for p in g]}
        return self._epochs[epoch]
