"""Texts that say nearly the same, found exactly and in seconds: a set-similarity join. Pure functions over numpy arrays.

Two texts are near-duplicates when the Jaccard similarity of their sets of character 5-grams is at least JACCARD (Broder
1997, "On the resemblance and containment of documents"); letter case, punctuation and white space are left out, and
characters instead of words make no assumption about the language. Candidates come from prefix filtering (Chaudhuri et al.
2006, "A primitive operator for similarity joins in data cleaning"): of two sets that similar, in any order common to all,
the first fifths must have an element in common, and how many bounds the whole overlap (as in PPJoin, Xiao et al. 2008).
Rare ones come first in that order, so nearly all texts share none. Unlike MinHash, this misses no pair, and the answer
depends on no seed.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

JACCARD = 0.8
SHINGLE = 5  # characters
MAX_CHARS = 4_000  # of the end, where conversations with the same beginning differ
BLOCK = 1_000  # texts shingled at a time
MANY, FEW = 20_000, 4  # of a text with so many that share a shingle with it, so few of each rare one are tried first
BUCKETS = 1 << 20  # in which shingles are counted, to know the rare ones
LEVEL_BITS, HASH_BITS = 6, 32  # a shingle's place in the order: log2 of its count, then its hash
NUMBER_BITS = 25  # of a text; with its side and a shingle, 64
SLACK = 1e-9
_NOT_WORD = re.compile(r"[\W_]+")
_POWERS = np.array([pow(1_000_003, k, 2**32) for k in range(SHINGLE)], dtype=np.uint32)

Hashes = NDArray[np.uint32]
Numbers = NDArray[np.int64]


def find_leaving(texts: Sequence[str], sides: Sequence[bool]) -> NDArray[np.bool_]:
    """(n,) whether a text leaves: it is a near-duplicate of an earlier one that stays, on the other side.

    The order is that in which texts came. What is said of a text depends on it and earlier ones only, so it stays the
    same whatever comes later; and no two texts that stay, on different sides, are near-duplicates.
    """
    plain = [normalise(text) for text in texts]
    leaves = np.zeros(len(plain), dtype=bool)
    for number, candidates in _candidates(plain, np.asarray(sides, dtype=bool), leaves):
        own = shingles(plain[number])
        leaves[number] = any(similarity(own, shingles(plain[other])) >= JACCARD for other in candidates)
    return leaves


def normalise(text: str) -> str:
    """Words only, in one letter case, one space between them, of the last MAX_CHARS characters."""
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text[-MAX_CHARS:]).casefold()).strip()


def shingles(plain: str) -> Hashes:
    """(n,) the hashes of a normalised text's 5-grams, each once; shorter texts are one, filled up with spaces."""
    return np.unique(_hash([plain])[0])


def similarity(first: Hashes, second: Hashes) -> float:
    """Jaccard similarity of two sets."""
    n_both = len(np.intersect1d(first, second, assume_unique=True))
    return n_both / (len(first) + len(second) - n_both)


def _hash(plain: Sequence[str]) -> tuple[Hashes, Numbers]:
    """(n,) the hash of every 5-gram, text after text, and (n,) the index of its text."""
    filled = [text.ljust(SHINGLE) for text in plain]
    codes = np.frombuffer("".join(filled).encode("utf-32-le", "replace"), dtype=np.uint32)
    lengths = np.array([len(text) for text in filled])
    owner = np.repeat(np.arange(len(filled)), lengths)
    hashes = np.zeros(len(codes) - SHINGLE + 1, dtype=np.uint32)
    for k in range(SHINGLE):
        hashes += codes[k : k + len(hashes)] * _POWERS[k]  # modulo 2³²
    is_whole = owner[: len(hashes)] == owner[SHINGLE - 1 :]
    return _mix(hashes[is_whole]), owner[: len(hashes)][is_whole]


def _mix(x: Hashes) -> Hashes:
    """Spreads the bits of polynomial hashes: the finaliser of MurmurHash3 (Appleby 2011), a bijection."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


@dataclass(frozen=True)
class _Prefixes:
    """The first shingles of many sets, those from rare to frequent: (n,) shingle, the number and size of its set, how many
    of the set come after it (`left`) and after the prefix (`rest`), and the last shingle of the prefix.
    """

    shingle: NDArray[np.uint64]
    number: Numbers
    size: Numbers
    left: Numbers
    rest: Numbers
    last: NDArray[np.uint64]

    def of(self, chosen: NDArray | slice) -> "_Prefixes":
        return _Prefixes(*(getattr(self, column.name)[chosen] for column in fields(self)))


def _prefixes(plain: list[str]) -> _Prefixes:
    """Two passes, block by block, that keep the prefixes only: a fifth of all shingles."""
    counts = np.zeros(BUCKETS, dtype=np.int64)
    for start in range(0, len(plain), BLOCK):
        counts += np.bincount(_hash(plain[start : start + BLOCK])[0] % BUCKETS, minlength=BUCKETS)
    levels = np.log2(counts + 1).astype(np.uint64) << np.uint64(HASH_BITS)
    parts = [_block_prefixes(plain[start : start + BLOCK], start, levels) for start in range(0, len(plain), BLOCK)]
    return _Prefixes(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(_Prefixes)))


def _block_prefixes(plain: list[str], start: int, levels: NDArray[np.uint64]) -> _Prefixes:
    hashes, owner = _hash(plain)
    bits = np.uint64(LEVEL_BITS + HASH_BITS)
    keys = np.sort(owner.astype(np.uint64) << bits | levels[hashes % BUCKETS] | hashes)
    keys = keys[np.r_[True, keys[1:] != keys[:-1]]]
    owner = (keys >> bits).astype(np.int64)
    sizes = np.bincount(owner, minlength=len(plain))
    starts = np.cumsum(sizes) - sizes
    lengths = sizes - np.ceil(JACCARD * sizes - SLACK).astype(np.int64) + 1
    shingle = keys & np.uint64((1 << int(bits)) - 1)
    place, size = np.arange(len(keys)) - starts[owner], sizes[owner]
    last = shingle[starts + lengths - 1][owner]
    found = _Prefixes(shingle, owner + start, size, size - place - 1, (sizes - lengths)[owner], last)
    return found.of(place < lengths[owner])


def _candidates(
    plain: list[str], sides: NDArray[np.bool_], leaves: NDArray[np.bool_]
) -> Iterator[tuple[int, Iterator[int]]]:
    """Texts in their order, each with the earlier ones that stay, on the other side, among which its near-duplicates are.

    `leaves` (n,) is read as it stands when a text's turn has come. Nothing is kept from one text to the next: the pairs of
    prompts that were made from one template are as many as the square of their number.
    """
    if sides.all() or not sides.any():
        return
    prefixes = _prefixes(plain)
    posted, low, high = _posted(prefixes, sides)
    starts = np.flatnonzero(np.diff(prefixes.number, prepend=-1))
    ends = np.r_[starts[1:], len(prefixes.number)]
    has_any = np.logical_or.reduceat(high > low, starts)
    for start, end in zip(starts[has_any].tolist(), ends[has_any].tolist(), strict=True):
        own = slice(start, end)
        yield int(prefixes.number[start]), _earlier(prefixes.of(own), posted, low[own], high[own], leaves)


def _posted(prefixes: _Prefixes, sides: NDArray[np.bool_]) -> tuple[_Prefixes, Numbers, Numbers]:
    """The prefixes in an order in which those that have a shingle in common, on one side, stand together as texts came; and
    for each of `prefixes` (n,) from where (n,) until where they are those of earlier texts on the other side.
    """
    side, number = sides[prefixes.number].astype(np.uint64), prefixes.number.astype(np.uint64)
    shingle, other = prefixes.shingle << np.uint64(NUMBER_BITS + 1), (1 - side) << np.uint64(NUMBER_BITS)
    keys = shingle | side << np.uint64(NUMBER_BITS) | number
    order = np.argsort(keys)
    low, high = (np.searchsorted(keys[order], shingle | other | until) for until in (np.uint64(0), number))
    return prefixes.of(order), low, high


def _earlier(
    own: _Prefixes, posted: _Prefixes, low: Numbers, high: Numbers, leaves: NDArray[np.bool_]
) -> Iterator[int]:
    """Of one text. Where very many share a shingle with it, those of its rarest ones come first: most likely one is alike,
    and nobody asks for the rest.
    """
    if (high - low).sum() > MANY:
        for begin, end in zip(low.tolist(), high.tolist(), strict=True):
            numbers = posted.number[begin : min(end, begin + FEW)]
            yield from numbers[~leaves[numbers]].tolist()
            if end - begin > FEW:
                break
    yield from _join(own, posted, low, high, leaves)


def _join(own: _Prefixes, posted: _Prefixes, low: Numbers, high: Numbers, leaves: NDArray[np.bool_]) -> Iterator[int]:
    """Sets whose prefixes have so many shingles in common with this one's that the sets can have enough; the most first."""
    n = high - low
    row = np.repeat(np.arange(len(n)), n)
    match = np.arange(len(row)) - np.repeat(np.cumsum(n) - n, n) + low[row]
    stays = ~leaves[posted.number[match]]
    row, match = row[stays], match[stays]
    order = np.argsort(posted.number[match], kind="stable")
    number = posted.number[match[order]]
    ends = np.flatnonzero(np.r_[number[1:] != number[:-1], np.ones(min(1, len(number)), dtype=bool)])
    n_common = np.diff(ends, prepend=-1)
    a, b = own.of(row[order[ends]]), posted.of(match[order[ends]])  # the last shingle in common
    # What comes up to the end of the prefix that ends first is counted; of what comes later, all may be in common.
    most = n_common + np.minimum(np.where(a.last < b.last, a.rest, b.rest), np.minimum(a.left, b.left))
    spare = most - (JACCARD / (1 + JACCARD) * (a.size + b.size) - SLACK)
    likely = np.argsort(-spare, kind="stable")
    yield from number[ends[likely[spare[likely] >= 0]]].tolist()
