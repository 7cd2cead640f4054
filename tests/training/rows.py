"""Campaigns with judgments for the tests of training, made by labeling's own functions."""

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User

from labeling import choices, judgments
from labeling.models import Campaign, Comparison, Judgment, Prompt
from labeling.pairs import add_comparisons
from labeling.prompts import add_prompts
from labeling.responses import add_response
from training.split import is_heldout

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
_numbers = count(1)

GOOD = "The reason is simple: {}. That is why it holds."
BAD = "I do not know, {} maybe, whatever, whatever, whatever."


def add_campaign(**fields: Any) -> Campaign:
    n = next(_numbers)
    values = {"name": f"Campaign {n}", "slug": f"campaign-{n}", "overlap": 5, "n_candidates": 4, **fields}
    return Campaign.objects.create(**values)


def add_annotator() -> User:
    return User.objects.create_user(f"annotator-{next(_numbers)}", password="a long password")


def add_prompt(campaign: Campaign, text: str | None = None, *, wants_candidates: bool = False) -> Prompt:
    text = text or f"Why does number {next(_numbers)} matter?"
    items = [{"messages": [{"role": "user", "content": text}]}]
    return add_prompts(campaign, items, "test", wants_candidates=wants_candidates)[0]


def add_comparison(prompt: Prompt, texts: Sequence[str] = ()) -> Comparison:
    n = next(_numbers)
    responses = [add_response(prompt, text, source="test") for text in texts or (GOOD.format(n), BAD.format(n))]
    found = [response for response in responses if response]
    return add_comparisons(prompt.campaign, [found], Comparison.Source.CAMPAIGN)[0]


def judge(
    comparison: Comparison,
    verdict: str = "preference",
    *,
    chosen: int = 0,
    strength: int | None = 2,
    annotator: User | None = None,
    now: datetime = NOW,
) -> Judgment:
    """One judgment; `chosen` is the place of the preferred response in the order in which they were added."""
    order = [item.response_id for item in comparison.items.order_by("index")]
    is_preference = verdict == "preference"
    choice = choices.Choice(
        verdict, order, chosen=order[chosen] if is_preference else None, strength=strength if is_preference else None
    )
    return judgments.add(comparison, annotator or add_annotator(), uuid.uuid4(), choice, now)


def add_judged(campaign: Campaign, n_train: int, n_heldout: int = 0, *, now: datetime = NOW) -> list[Judgment]:
    """Judged pairs of prompts of their own: so many on each side of the split."""
    wanted = {False: n_train, True: n_heldout}
    annotator = add_annotator()
    made = []
    while any(wanted.values()):
        prompt = add_prompt(campaign)
        side = is_heldout(prompt.sha256)
        if wanted[side]:
            wanted[side] -= 1
            made.append(judge(add_comparison(prompt), annotator=annotator, now=now))
    return made


def model_card(folder: Path) -> str:
    """A folder that passes for the served model."""
    (folder / "alignapp-model.json").write_text(json.dumps({"sha256": "b" * 64, "chat_template_sha256": "c" * 64}))
    return str(folder)


# What the trainer says of an ordinary adapter's behaviour.
POLICY: dict[str, Any] = {
    "kl": 0.05,
    "kl_chosen": 0.02,
    "length": {"new": 44.0, "base": 40.0},
    "unfinished": {"new": 0.25, "base": 0.2},
    "repetition": {"new": 0.03, "base": 0.03},
    "distinct_2": {"new": 0.8, "base": 0.8},
    "refusal_rate": {"new": 0.0, "base": 0.0},
    "perplexity": {"new": 20.1, "base": 20.0},
    "win_rate": None,
    "samples": [{"prompt": [{"role": "user", "content": "Hello"}], "base": "Hi.", "new": "Hello!"} for _ in range(20)],
}
