"""A snapshot's lines become examples in token ids: tokenised once, cut to length, chosen and ordered for this run."""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from training import catalog
from training.ml import lines
from training.ml.errors import TrainingError
from training.ml.lines import TIE, PairLine, SingleLine
from training.ml.rows import Tokens

MAX_BALANCE = 4.0


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
    def is_tie(self) -> bool:
        """Whether people lean to neither side: it has no right one."""
        return self.label == TIE

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
class Examples:
    train: list[Example]
    heldout: list[Pair]  # decided ones, whatever is trained on
    heldout_ties: list[Pair] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)  # reason -> how many were left out or cut


class Reader:
    """A snapshot's files as examples, counting what is left out."""

    def __init__(self, snapshot: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.snapshot = snapshot
        self.skipped: Counter[str] = Counter()
        self.tokenise = Tokenise(tokenizer, max_tokens, self.skipped)

    def pairs(self, name: str) -> list[Pair]:
        """All pairs of a file, ties among them; two responses that read the same teach nothing."""
        found = self.tokenise.pairs(lines.pairs(self.snapshot / f"{name}.jsonl"))
        different = [pair for pair in found if pair.chosen != pair.rejected]
        self.skipped[f"{name}_identical"] += len(found) - len(different)
        return different

    def decided(self, name: str) -> list[Pair]:
        found = self.pairs(name)
        decided = [pair for pair in found if not pair.is_tie]
        self.skipped[f"{name}_ties"] += len(found) - len(decided)
        return decided

    def singles(self, name: str) -> list[Single]:
        return self.tokenise.singles(lines.singles(self.snapshot / f"{name}.jsonl"))


def _thumbs(reader: Reader, params: Any) -> list[Example]:
    halves = [half for pair in reader.decided("train") for half in split(pair)] if params.splits_pairs else []
    return [*reader.singles("unpaired"), *halves]


# What a method learns from (catalog.SOURCES) -> its training examples.
TRAIN: dict[str, Callable[[Reader, Any], Sequence[Example]]] = {
    "pairs": lambda reader, params: reader.decided("train"),
    "pairs_with_ties": lambda reader, params: reader.pairs("train"),
    "unpaired": _thumbs,
    "edits": lambda reader, params: reader.singles("edits"),
}


def read(
    snapshot: Path, tokenizer: PreTrainedTokenizerBase, max_tokens: int, source: str = "pairs", params: Any = None
) -> Examples:
    """What a method with this source and these parameters learns from, and the pairs that are held out.

    Raises TrainingError naming the file and line that cannot be used.
    """
    reader = Reader(snapshot, tokenizer, max_tokens)
    train = list(TRAIN[source](reader, params))
    heldout = reader.pairs("heldout")
    ties = [pair for pair in heldout if pair.is_tie]
    reader.skipped["heldout_ties"] += len(ties)
    decided = [pair for pair in heldout if not pair.is_tie]
    return Examples(train, decided, ties, {reason: n for reason, n in reader.skipped.items() if n})


def split(pair: Pair) -> list[Single]:
    """A decided pair as a good and a bad response, the weight of both that of its votes' majority.

    A vote for the other side would make the good half bad and the bad one good; of losses like KTO's and APO-zero's,
    where good and bad add up to a constant, it takes away as much gradient as one vote gives, if both sides weigh the
    same. So 2p − 1 is exact then. With weights g ≠ b (good_weight, bad_weight, balance) the votes would give the chosen
    one p·g − (1 − p)·b, which a narrow majority can make negative; here what most prefer stays good.
    """
    weight = pair.weight * (2 * pair.label - 1)
    sides = ((pair.chosen, True), (pair.rejected, False))
    return [
        Single(f"{pair.id} {response}", pair.prompt_sha256, pair.prompt, tokens, is_good, weight, pair.is_new)
        for response, (tokens, is_good) in zip(("chosen", "rejected"), sides, strict=True)
    ]


def prepare(examples: list[Example], method: catalog.Method, params: catalog.Common) -> list[Any]:
    """The examples with what the method wants of them beside their responses."""
    if getattr(params, "is_balanced", False):
        examples = balance(examples)  # type: ignore[assignment,arg-type]
    return add_mismatches(examples, params.max_tokens) if method.wants_kl else examples  # type: ignore[arg-type]


def balance(singles: Sequence[Single]) -> list[Single]:
    """The examples with weights such that good and bad ones weigh the same together, and all as much as before.

    Ethayarajh et al. 2024, arXiv 2402.01306, section 4.2: the sides' weights times counts should be about equal. No
    example counts more than MAX_BALANCE times one of the other side: a single thumb down is no half of the truth.
    """
    sums = {is_good: sum(single.weight for single in singles if single.is_good == is_good) for is_good in (True, False)}
    total, more = sum(sums.values()), max(sums.values())
    if not min(sums.values()):
        return list(singles)
    factors = {is_good: min(more / sums[is_good], MAX_BALANCE) for is_good in sums}
    scale = total / sum(sums[is_good] * factors[is_good] for is_good in sums)
    return [replace(single, weight=single.weight * factors[single.is_good] * scale) for single in singles]


def add_mismatches(singles: Sequence[Single], max_tokens: int) -> list[Single]:
    """Gives each example the response of the next one that answers another prompt, cyclically, cut to what its own
    prompt leaves of max_tokens.

    The policy's log-ratio on such pairs estimates its KL from the reference: Ethayarajh et al. 2024, section 4.1, and
    TRL rotate the responses of a batch; here of all, so that the reference scores them once and for every epoch.
    """
    n = len(singles)
    found = list(singles)
    other: Tokens | None = None
    for i in range(2 * n - 1, -1, -1):  # twice around, so that the last ones find the first
        here, after = singles[i % n], singles[(i + 1) % n]
        if after.prompt != here.prompt:
            other = after.response
        found[i % n] = replace(here, mismatch=other and other[: max_tokens - len(here.prompt)])
    return found


class Tokenise:
    """Lines to pairs: the prompt through the chat template, the responses as plain text and the end of turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int, skipped: Counter[str]) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.skipped = skipped
        self.end_of_turn = end_of_turn(tokenizer)

    def pairs(self, lines: list[PairLine]) -> list[Pair]:
        return [
            Pair(
                id=line.id,
                prompt_sha256=line.prompt_sha256,
                prompt=prompt,
                chosen=chosen,
                rejected=rejected,
                label=line.label,
                weight=line.weight,
                is_new=line.is_new,
                n_chars_chosen=len(line.chosen),
                n_chars_rejected=len(line.rejected),
                margin=line.margin,
                tie_share=line.tie_share,
            )
            for line, (prompt, (chosen, rejected)) in zip(lines, self._sequences(lines), strict=True)
        ]

    def singles(self, lines: list[SingleLine]) -> list[Single]:
        return [
            Single(line.id, line.prompt_sha256, prompt, response, line.is_good, line.weight, line.is_new)
            for line, (prompt, (response,)) in zip(lines, self._sequences(lines), strict=True)
        ]

    def _sequences(self, lines: Sequence[PairLine | SingleLine]) -> list[tuple[Tokens, list[Tokens]]]:
        """Per line its prompt and its responses, cut; every text is tokenised once."""
        if not lines:
            return []
        rendered = {json.dumps(line.messages): line.messages for line in lines}
        prompts = dict(zip(rendered, self._encode([self._render(m) for m in rendered.values()], False), strict=True))
        texts = list(dict.fromkeys(text for line in lines for text in line.texts))
        responses = dict(zip(texts, self._encode(texts, True), strict=True))
        return [
            self._cut(prompts[json.dumps(line.messages)], [[*responses[text], self.end_of_turn] for text in line.texts])
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

    def _cut(self, prompt: list[int], responses: list[list[int]]) -> tuple[Tokens, list[Tokens]]:
        """At least half of the room is the prompt's: its end, which says more about the answer than its beginning."""
        room = self.max_tokens - min(max(map(len, responses)), self.max_tokens // 2)
        cut = prompt[-room:]
        room = self.max_tokens - len(cut)
        self.skipped["prompts_cut"] += len(cut) < len(prompt)
        self.skipped["responses_cut"] += sum(len(response) > room for response in responses)
        return tuple(cut), [tuple(response[:room]) for response in responses]


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


def choose(examples: Sequence[Example], *, is_continuing: bool, replay: float, seed: int) -> list[Example]:
    """What to train on: all of it, or, continuing the incumbent, what is new and `replay` old examples for each."""
    if not is_continuing:
        return list(examples)
    new = [example for example in examples if example.is_new]
    old = [example for example in examples if not example.is_new]
    n_old = min(len(old), round(replay * len(new)))
    return new + random.Random(f"replay {seed}").sample(old, n_old)  # noqa: S311


class Order:
    """Which examples each optimizer step sees: seeded epochs, a prompt's side by side so that they share its row."""

    def __init__(self, pairs: Sequence[Example], *, epochs: float, batch_pairs: int, seed: int) -> None:
        self.pairs, self.batch_pairs, self.seed = list(pairs), batch_pairs, seed
        self.n_visits = max(1, round(epochs * len(pairs)))
        self.n_steps = -(-self.n_visits // batch_pairs)
        self._epochs: dict[int, list[Example]] = {}

    def step(self, step: int) -> list[Example]:
        """The examples of step 1 … n_steps: a function of the step alone, so a resumed run needs no other position."""
        visits = range((step - 1) * self.batch_pairs, min(step * self.batch_pairs, self.n_visits))
        return [self._epoch(visit // len(self.pairs))[visit % len(self.pairs)] for visit in visits]

    def _epoch(self, epoch: int) -> list[Example]:
        if epoch not in self._epochs:
            groups: dict[Tokens, list[Example]] = {}
            for pair in self.pairs:
                groups.setdefault(pair.prompt, []).append(pair)
            shuffled = list(groups.values())
            random.Random(f"epoch {epoch} {self.seed}").shuffle(shuffled)  # noqa: S311
            self._epochs = {epoch - 1: self._epochs.get(epoch - 1, []), epoch: [p for g in shuffled for p in g]}
        return self._epochs[epoch]
