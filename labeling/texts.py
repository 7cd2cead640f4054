"""Texts from models and files, which are hostile until cleaned; and when two of them say the same."""

import hashlib
import re
from collections import Counter

from labeling.errors import Invalid

MAX_CHARS = 100_000
SHINGLE = 3  # words
NEAR_IDENTICAL = 0.85
_WORD = re.compile(r"\w+")


def clean(text: object) -> str:
    """The text as it is stored: one kind of line end, no NUL and no lone surrogate (PostgreSQL takes neither), no
    white space around it.

    Raises Invalid when it is no text, or is longer than MAX_CHARS.
    """
    if not isinstance(text, str):
        raise Invalid(f"A text is wanted here, not {type(text).__name__}.")
    if len(text) > MAX_CHARS:
        raise Invalid(f"This text has {len(text):,} characters; at most {MAX_CHARS:,} are taken. Shorten it.")
    text = text.replace("\x00", "").replace("\r\n", "\n").replace("\r", "\n")
    return text.encode("utf-8", "replace").decode().strip()


def digest(text: str) -> str:
    """sha256 of a cleaned text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def are_near_identical(first: str, second: str) -> bool:
    """Whether a reader would look for the difference instead of the better answer.

    Jaccard similarity of the two multisets of word trigrams, letter case and punctuation left out, is at least
    NEAR_IDENTICAL (Broder 1997, "On the resemblance and containment of documents"). Linear in the length, so that a
    degenerate answer that repeats one word costs no more than a good one.
    """
    a, b = _shingles(first), _shingles(second)
    union = (a | b).total()
    return union == 0 or (a & b).total() / union >= NEAR_IDENTICAL


def _shingles(text: str) -> Counter[tuple[str, ...]]:
    words = _WORD.findall(text.casefold())
    return (
        Counter(tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))) if words else Counter()
    )
