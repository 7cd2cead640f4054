"""Texts as vectors, without a model: hashed n-grams, and the style of an answer.

They are for choosing and for small reward models, not for understanding. The same texts give the same numbers on every
machine; n-grams are weighted by how rare they are among the texts that are passed together, so vectors of two calls must
not be mixed.
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DIMS = 32
BUCKETS = 1 << 14
MAX_CHARS = 4000  # of a text: what comes later changes little
GRAM = 4  # bytes of a character n-gram; shorter ones are in every text
_WORD = re.compile(r"\w+")
_MARKS = (r"^#{1,6} ", r"^\s*[-*+] ", r"^\s*\d+[.)] ", r"\*\*", r"```", r"\?", r"\d", r"\n\n")
_STYLE = tuple(re.compile(pattern, re.MULTILINE) for pattern in _MARKS)
N_STYLE = len(_STYLE) + 4


def embed(texts: Sequence[str], dims: int = DIMS) -> Floats:
    """(n, dims), rows of length 1 (0 for an empty text): words, pairs of words and character 4-grams.

    Counts are hashed into buckets (Weinberger et al. 2009, "Feature hashing for large scale multitask learning"),
    weighted by (1 + log tf) · idf (Salton & Buckley 1988) and projected by a fixed Gaussian matrix, which keeps angles
    (Johnson & Lindenstrauss 1984).
    """
    counted = [np.unique(_buckets(text[:MAX_CHARS].casefold()), return_counts=True) for text in texts]
    n_texts_with = np.zeros(BUCKETS)
    for buckets, _ in counted:
        n_texts_with[buckets] += 1
    rarity = np.log((1 + len(texts)) / (1 + n_texts_with))
    projection = _projection(dims)
    rows = [((1 + np.log(counts)) * rarity[buckets]) @ projection[buckets] for buckets, counts in counted]
    return _unit(np.array(rows).reshape(len(texts), dims))


def style(texts: Sequence[str], prompts: Sequence[str]) -> Floats:
    """(n, N_STYLE): log length in characters, log of the counts of headings, bullets, numbers, bold, code, questions,
    digits and paragraphs, mean length of a word, share of different words, share of words taken from the prompt.
    """
    rows = [_style(text[:MAX_CHARS], prompt[:MAX_CHARS]) for text, prompt in zip(texts, prompts, strict=True)]
    return np.array(rows, dtype=float).reshape(len(rows), N_STYLE)


def describe(texts: Sequence[str], prompts: Sequence[str], dims: int = DIMS) -> Floats:
    """(n, N_STYLE + dims): the features of answers that a small reward model is fitted on. Columns have standard
    deviation 1 over the texts, those of `embed` together.
    """
    looks, vectors = style(texts, prompts), embed(texts, dims)
    looks = (looks - looks.mean(axis=0)) / np.maximum(looks.std(axis=0), 1e-9) if len(looks) else looks
    scale = vectors.std() if len(vectors) else 0.0
    return np.hstack([looks, vectors / max(scale, 1e-9)])


def cosine(a: Floats, b: Floats) -> Floats:
    """(n,) similarity of the rows of two (n, d) arrays, −1 to 1; 0 where one is empty."""
    return np.einsum("ij,ij->i", _unit(a), _unit(b))


def _buckets(text: str) -> NDArray[np.int64]:
    """One number below BUCKETS per word, pair of words and character n-gram."""
    words = np.array([zlib.crc32(word.encode("utf-8", "replace")) for word in _WORD.findall(text)], dtype=np.uint64)
    pairs = words[:-1] * np.uint64(0x9E3779B1) + words[1:]
    raw = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.uint64)
    n = max(len(raw) - GRAM + 1, 0)
    grams = sum((raw[i : i + n] << np.uint64(8 * i) for i in range(GRAM)), start=np.zeros(n, np.uint64))
    hashes = np.concatenate([words, pairs, grams + np.uint64(1 << 40)]) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci
    return (hashes >> np.uint64(50)).astype(np.int64)  # the upper 14 bits are the well mixed ones


@cache
def _projection(dims: int) -> Floats:
    return np.random.default_rng(20260301).normal(0, dims**-0.5, (BUCKETS, dims))


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _style(text: str, prompt: str) -> list[float]:
    words = _WORD.findall(text.casefold())
    n_words = max(len(words), 1)
    counted, asked = Counter(words), set(_WORD.findall(prompt.casefold()))
    marks = [float(np.log1p(len(mark.findall(text)))) for mark in _STYLE]
    taken = sum(n for word, n in counted.items() if word in asked) / n_words
    return [float(np.log1p(len(text))), *marks, sum(map(len, words)) / n_words, len(counted) / n_words, taken]
