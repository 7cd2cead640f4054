"""What one version does: the responses it samples and how well it still reads neutral texts. Remembered by content.

Samples are drawn at the chat's temperature, for the gate asks what people would get, on the same prompts and from the
same seed for every version.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from training.ml import files, neutral, samples
from training.ml.data import Pair
from training.ml.lines import PairLine
from training.ml.policy import Base
from training.ml.rows import Tokens
from training.ml.scores import Alone, Scores

N_TOKENS = 96
N_HELDOUT_PROMPTS = 8
MAX_PROMPT_TOKENS = 512  # held-out prompts longer than this are not sampled from: they would cost more than they tell
TEMPERATURE = 0.7
SEED = 20260101


@dataclass(frozen=True)
class Question:
    """A prompt that every version answers."""

    messages: list[dict[str, str]]
    prompt: Tokens
    is_fixed: bool


def questions(tokenizer: PreTrainedTokenizerBase, lines: Sequence[PairLine], pairs: Sequence[Pair]) -> list[Question]:
    """The fixed prompts, and the first few of the held-out ones: the same again when more are added to the snapshot."""
    found = [_fixed(tokenizer, prompt) for prompt in neutral.PROMPTS]
    messages = {line.id: line.messages for line in lines}
    heldout: dict[Tokens, Question] = {}
    for pair in pairs:
        if len(pair.prompt) <= MAX_PROMPT_TOKENS and len(heldout) < N_HELDOUT_PROMPTS:
            heldout.setdefault(pair.prompt, Question(messages[pair.id], pair.prompt, is_fixed=False))
    return [*found, *heldout.values()]


def respond(base: Base, who: str, asked: Sequence[Question], cache: Path) -> list[list[int]]:
    """The responses of the version that is active, `who` by its hash; generated once."""
    prompts = [question.prompt for question in asked]
    key = json.dumps([base.path_key, who, samples.BATCH, samples.DRAWN_BY, N_TOKENS, TEMPERATURE, SEED, prompts])
    file = cache / "samples" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    if (known := _read(file, len(prompts))) is not None:
        return known
    found = samples.generate(base.model, base.tokenizer, prompts, N_TOKENS, SEED, temperature=TEMPERATURE)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, {"responses": found})
    return found


def neutral_items(tokenizer: PreTrainedTokenizerBase) -> list[Alone]:
    """The neutral texts, each token but the first to be predicted."""
    encoded = tokenizer(list(neutral.TEXTS), add_special_tokens=False)["input_ids"]
    return [Alone(tuple(ids[:1]), tuple(ids[1:])) for ids in encoded]


def perplexity(items: Sequence[Alone], scores: Scores) -> float:
    """exp(−mean log-probability per token) over all texts."""
    total = sum(scores[item.prompt, item.response] for item in items)
    return math.exp(-total / sum(len(item.response) for item in items))


def _fixed(tokenizer: PreTrainedTokenizerBase, prompt: str) -> Question:
    messages = [{"role": "user", "content": prompt}]
    text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    return Question(messages, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), is_fixed=True)


def _read(file: Path, n: int) -> list[list[int]] | None:
    """Remembered responses; None where there are none, or not as they were written."""
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))["responses"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = isinstance(found, list) and len(found) == n and all(isinstance(r, list) and r for r in found)
    return found if whole else None
