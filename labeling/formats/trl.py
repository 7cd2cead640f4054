"""The data sets of TRL (preference with explicit and implicit prompt, unpaired preference; plain and conversational)
and of hh-rlhf. Source: huggingface.co/docs/trl/dataset_formats.
"""

import re
from typing import Any

from labeling.errors import Invalid
from labeling.formats import records
from labeling.formats.cells import shared_prompt, turns, unpacked
from labeling.formats.records import Record, Verdict, Vote

_HH_TURN = re.compile(r"\n\n(Human|Assistant):[ \t]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def matches_preference(value: dict[str, Any]) -> bool:
    return {"chosen", "rejected"} <= set(value)


def read_preference(value: dict[str, Any]) -> Record:
    """{"prompt"?, "chosen", "rejected"}, texts or turns; without a prompt it is what both begin with.

    A `label` of 0.5 (a soft label) is a tie; a `margin` is a reward gap and says nothing of how strongly a person felt.
    """
    chosen, rejected = unpacked(value["chosen"]), unpacked(value["rejected"])
    messages, better, worse = _parts(unpacked(value.get("prompt")), chosen, rejected)
    is_tie = isinstance(value.get("label"), float) and value["label"] == 0.5
    strength = value.get("strength") if type(value.get("strength")) is int and not is_tie else None
    vote = records.ranked(
        (1, 1) if is_tie else (1, 2),
        strength=strength,
        annotator=records.name(value.get("annotator")),
        rationale=records.rationale(value.get("rationale")),
    )
    answers = [(better, value.get("chosen_model")), (worse, value.get("rejected_model"))]
    return records.make(messages, answers, [vote], value.get("domain", ""))


def _parts(prompt: object, chosen: object, rejected: object) -> tuple[object, object, object]:
    """Messages and the two answers. As in TRL, a text prompt beside conversations that hold it counts for nothing."""
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise Invalid("chosen and rejected must both be texts, or both be lists of turns.")
    if isinstance(chosen, list):
        given = turns(prompt) if isinstance(prompt, list) else []
        if len(chosen) == 1 and isinstance(prompt, str):
            given = [{"role": "user", "content": prompt}]
        return shared_prompt([*given, *turns(chosen)], [*given, *turns(rejected)])
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise Invalid("chosen and rejected must be texts or lists of turns.")
    if prompt is None or prompt == "":
        return _implicit(chosen, rejected)
    if isinstance(prompt, str) and _HH_TURN.search(f"\n\n{prompt.lstrip()}"):
        return shared_prompt(_hh(prompt + _after(prompt, chosen)), _hh(prompt + _after(prompt, rejected)))
    return prompt, _after(prompt, chosen), _after(prompt, rejected)


def _after(prompt: object, answer: str) -> str:
    """The answer alone, where it repeats the prompt."""
    return answer.removeprefix(prompt) if isinstance(prompt, str) else answer


def _implicit(chosen: str, rejected: str) -> tuple[object, object, object]:
    """What both texts begin with is the prompt, cut at a word's end. TRL cuts at the first character that differs, and
    so in the middle of a word.
    """
    if is_hh(chosen) and is_hh(rejected):
        return shared_prompt(_hh(chosen), _hh(rejected))
    differs = (at for at, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other)
    same = chosen[: next(differs, min(len(chosen), len(rejected)))]
    cut = max(same.rfind(" "), same.rfind("\n")) + 1
    if not same[:cut].strip():
        raise Invalid("There is no prompt, and the two texts do not begin alike, so none can be found.")
    return same[:cut], chosen[cut:], rejected[cut:]


def is_hh(text: object) -> bool:
    """Whether a text is a conversation as hh-rlhf writes it."""
    return isinstance(text, str) and bool(re.match(r"\s*Human:", text)) and "\n\nAssistant:" in text


def _hh(text: str) -> list[dict[str, str]]:
    """The turns of "\\n\\nHuman: …\\n\\nAssistant: …"."""
    pieces = _HH_TURN.split(f"\n\n{text.lstrip()}")
    if pieces[0].strip():
        raise Invalid("The conversation must begin with “Human:” or “Assistant:”.")
    found = [
        {"role": _ROLES[role], "content": content.strip()}
        for role, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    return _joined(found)


def _joined(found: list[dict[str, str]]) -> list[dict[str, str]]:
    """Turns of one role in a row are one turn: in some lines of hh-rlhf a person writes twice."""
    joined: list[dict[str, str]] = []
    for turn in found:
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1]["content"] += f"\n\n{turn['content']}"
        else:
            joined.append(turn)
    return joined


def matches_unpaired(value: dict[str, Any]) -> bool:
    return {"completion", "label"} <= set(value) and isinstance(value["label"], bool | str | int)


def read_unpaired(value: dict[str, Any]) -> Record:
    """{"prompt", "completion", "label": true or false}: a thumb on one response."""
    label = _LABELS.get(str(value["label"]).lower())
    if label is None:
        raise Invalid(f"label must be true or false, not {str(value['label'])[:40]!r}.")
    prompt, completion = unpacked(value.get("prompt")), unpacked(value["completion"])
    if isinstance(completion, list):
        given = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        prompt, completion, _same = shared_prompt([*given, *completion], [*given, *completion])
    annotator = records.name(value.get("annotator"))
    vote = Vote(label, annotator=annotator, rationale=records.rationale(value.get("rationale")))
    return records.make(prompt, [(completion, value.get("model"))], [vote], value.get("domain", ""))


_LABELS = {"true": Verdict.GOOD, "1": Verdict.GOOD, "false": Verdict.BAD, "0": Verdict.BAD}
