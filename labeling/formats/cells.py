"""What the formats of several tools share: numbered columns, JSON inside a cell, conversations."""

import re
from collections.abc import Iterable
from typing import Any

from labeling.errors import Invalid
from labeling.formats import files

PROMPTS = ("prompt", "instruction", "question", "input", "query", "text")
# response_1, response-b, reply 2, generation-0, left_answer … : a word, and which one it is.
_NUMBERED = re.compile(r"(?P<word>[a-z]+(?:[ _-][a-z]{2,})*?)[ _-]?(?P<place>[0-9]|a|b|c|d|left|right)")
_PLACED = re.compile(r"(?P<place>left|right)[ _-](?P<word>[a-z]+)")
_ORDER = {"left": "a", "right": "b"}


def split(key: str) -> tuple[str, str] | None:
    """("response", "1") of response_1, Response-1 or response1; None of a key that is not numbered."""
    found = _PLACED.fullmatch(key.lower()) or _NUMBERED.fullmatch(key.lower())
    return (found["word"], _ORDER.get(found["place"], found["place"])) if found else None


def numbered(value: dict[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """The entries of the first of `words` that numbers at least one key, in their order: response_1, response_2 …"""
    for word in words:
        keys = {key: parts[1] for key in value if (parts := split(key)) and parts[0] == word}
        if keys:
            return {key: value[key] for key in sorted(keys, key=keys.__getitem__)}
    return {}


def unpacked(cell: object) -> Any:
    """A list or object that stands as text in a cell, as itself; anything else as it is. Raises Invalid."""
    if not isinstance(cell, str) or not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        return files.parse(cell)
    except ValueError as error:
        raise Invalid(f"A cell begins like JSON, but is none: {error}") from error


def words(content: object) -> object:
    """The text of a turn, also of one that is a list of parts, as multimodal exports write it. Raises Invalid for
    pictures and sounds.
    """
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, dict)]
    if len(parts) < len(content) or any(part.get("type", "text") != "text" for part in parts):
        raise Invalid("A turn holds a picture or something else that is no text.")
    return "\n".join(str(part.get("text") or "") for part in parts)


def turns(conversation: object) -> list[dict[str, Any]]:
    """The turns of a conversation with nothing but role and content. Raises Invalid when it is none."""
    conversation = unpacked(conversation)
    if not isinstance(conversation, list) or not all(isinstance(turn, dict) for turn in conversation):
        raise Invalid('A conversation is a list of turns like {"role": "user", "content": "…"}.')
    return [{"role": turn.get("role"), "content": words(turn.get("content"))} for turn in conversation]


def shared_prompt(first: object, second: object) -> tuple[list[dict[str, Any]], object, object]:
    """The turns that two conversations share, and the answer that each ends with. Raises Invalid when they differ
    before the last turn: then they do not answer the same prompt.
    """
    one, other = turns(first), turns(second)
    if not one or not other:
        raise Invalid("A conversation is empty.")
    if one[:-1] != other[:-1]:
        raise Invalid(
            "The two conversations differ before their last turn, so the judgment is one of whole conversations and "
            "not of two responses to one prompt."
        )
    if one[-1]["role"] != "assistant" or other[-1]["role"] != "assistant":
        raise Invalid("The last turn of a conversation must be the assistant's.")
    return one[:-1], one[-1]["content"], other[-1]["content"]
