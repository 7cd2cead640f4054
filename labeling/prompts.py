"""Prompts: one canonical form, one hash, once per campaign."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from django.db.models import F, QuerySet

from labeling import texts
from labeling.errors import Invalid
from labeling.models import Campaign, Prompt

ROLES = ("system", "user", "assistant")
Messages = list[dict[str, str]]


def canonical(messages: object) -> Messages:
    """The messages with cleaned contents and nothing but `role` and `content`; a plain string is one user turn.

    Raises Invalid, saying which turn is wrong and why.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise Invalid('A prompt is a text, or a list of turns like {"role": "user", "content": "…"}.')
    turns = [_turn(number, turn) for number, turn in enumerate(messages, 1)]
    if turns[-1]["role"] != "user":
        raise Invalid(
            f"The last turn is the {turns[-1]['role']}'s; it must be the user's, so that there is something to answer."
        )
    return turns


def _turn(number: int, turn: object) -> dict[str, str]:
    if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
        raise Invalid(f"Turn {number} must have exactly the keys role and content.")
    if turn["role"] not in ROLES:
        raise Invalid(f"Turn {number} has the role {str(turn['role'])[:40]!r}; it must be one of {', '.join(ROLES)}.")
    if turn["role"] == "system" and number > 1:
        raise Invalid(f"Turn {number} is a system turn; only the first one can be.")
    content = texts.clean(turn["content"])
    if not content:
        raise Invalid(f"Turn {number} is empty.")
    return {"role": turn["role"], "content": content}


def digest(messages: Messages) -> str:
    """sha256 of canonical messages; splits and duplicates go by it."""
    return texts.digest(json.dumps(messages, ensure_ascii=False, sort_keys=True, separators=(",", ":")))


def add_prompts(
    campaign: Campaign, items: Iterable[Mapping[str, Any]], source: str, *, wants_candidates: bool = True
) -> list[Prompt]:
    """One row per item (`messages`, and optionally `domain` and `warnings`), in their order; a prompt that is there already is not
    added again, and items that are the same share a row.

    With `wants_candidates`, and unless the campaign samples none, new prompts wait for the engine's responses.
    Raises Invalid before anything is written.
    """
    drafts = [_draft(campaign, item, source, wants_candidates) for item in items]
    hashes = [draft.sha256 for draft in drafts]
    Prompt.objects.bulk_create({draft.sha256: draft for draft in drafts}.values(), ignore_conflicts=True)
    rows = {prompt.sha256: prompt for prompt in campaign.prompts.filter(sha256__in=hashes)}
    return [rows[sha256] for sha256 in hashes]


def _draft(campaign: Campaign, item: Mapping[str, Any], source: str, wants_candidates: bool) -> Prompt:
    messages = canonical(item["messages"])
    return Prompt(
        campaign=campaign,
        messages=messages,
        sha256=digest(messages),
        domain=texts.clean(item.get("domain", ""))[:40],
        source=source,
        warnings=item.get("warnings", []),
        candidates_state=first_state(campaign) if wants_candidates else "none",
    )


def first_state(campaign: Campaign) -> str:
    """A new prompt waits for the engine's responses, unless its campaign samples none."""
    return "wanted" if campaign.n_candidates > 0 else "none"


def want_candidates(prompts: QuerySet[Prompt]) -> int:
    """Asks the engine (again) for responses to these prompts; returns to how many.

    Prompts being written now are left alone, and so are those of campaigns that sample none: they would wait forever.
    """
    idle = prompts.exclude(candidates_state__in=("claimed", "sampled")).filter(campaign__n_candidates__gt=0)
    again = F("candidates_round") + 1  # other seeds than before, also where nothing came of those
    return idle.update(candidates_state="wanted", candidates_attempts=0, candidates_round=again)
