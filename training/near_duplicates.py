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
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

JACCARD = 0.8
SHINGLE = 5  # characters
MAX_CHARS = 4_000  # of the end, where conversations with the same beginning differ
BLOCK = 1_000  # texts shingled at a time
CHUNK = 2_000_000  # possible pairs looked at together
BUCKETS = 1 << 20  # in which shingles are counted, to know the rare ones
LEVEL_BITS, HASH_BITS = 6, 32  # a shingle's place in the order: log2 of its count, then its hash
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
    earlier: dict[int, list[int]] = defaultdict(list)
    for first, second in _candidates(plain, np.asarray(sides, dtype=bool)):
        earlier[max(first, second)].append(min(first, second))
    leaves = np.zeros(len(plain), dtype=bool)
    for number in sorted(earlier):
        own = shingles(plain[number])
        staying = (other for other in earlier[number] if not leaves[other])
        leaves[number] = any(similarity(own, shingles(plain[other])) >= JACCARD for other in staying)
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


def _candidates(plain: list[str], sides: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Pairs of texts on different sides among which all near-duplicates are; each once."""
    if sides.all() or not sides.any():
        return
    prefixes = _prefixes(plain)
    ones, others = prefixes.of(sides[prefixes.number]), prefixes.of(~sides[prefixes.number])
    ones = ones.of(np.argsort(ones.shingle, kind="stable"))
    low, high = (np.searchsorted(ones.shingle, others.shingle, side) for side in ("left", "right"))
    totals = np.r_[0, np.cumsum(high - low)]
    borders = np.r_[np.flatnonzero(np.diff(others.number, prepend=-1)), len(others.number)]  # a set stays in one part
    begin = 0
    while begin < len(borders) - 1:
        end = int(np.searchsorted(totals[borders], totals[borders[begin]] + CHUNK, "right")) - 1
        end = max(begin + 1, end)
        part = slice(borders[begin], borders[end])
        yield from _join(ones, others.of(part), low[part], high[part])
        begin = end


def _join(ones: _Prefixes, others: _Prefixes, low: Numbers, high: Numbers) -> Iterator[tuple[int, int]]:
    """Pairs of sets whose prefixes have so many shingles in common that the sets can have enough."""
    n = high - low
    row = np.repeat(np.arange(len(n)), n)
    match = np.arange(len(row)) - np.repeat(np.cumsum(n) - n, n) + low[row]
    pair = others.number[row] << 32 | ones.number[match]
    order = np.argsort(pair, kind="stable")
    pair = pair[order]
    ends = np.flatnonzero(np.r_[pair[1:] != pair[:-1], np.ones(min(1, len(pair)), dtype=bool)])
    n_common = np.diff(ends, prepend=-1)
    a, b = others.of(row[order[ends]]), ones.of(match[order[ends]])  # the last shingle in common
    # What comes up to the end of the prefix that ends first is counted; of what comes later, all may be in common.
    most = n_common + np.minimum(np.where(a.last < b.last, a.rest, b.rest), np.minimum(a.left, b.left))
    enough = JACCARD / (1 + JACCARD) * (a.size + b.size) - SLACK
    for code in pair[ends][most >= enough].tolist():
        yield code >> 32, code & 0xFFFFFFFF
