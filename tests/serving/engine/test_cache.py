"""The prefix cache: blocks are found by exact tokens and version, and old ones make room."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.cache import PrefixCache, Root, SequenceCache, new_uid

BLOCK_BYTES = (2 * 4 * 8 * 16 + 16) * 4


def root(caller: str = "") -> Root:
    """A version of its own."""
    return new_uid(), caller


def add(cache: PrefixCache, parent: Root | int, tokens: tuple[int, ...]) -> int:
    return cache.add(parent, tokens, torch.zeros(2, 4, 8, 16), torch.zeros(16)).uid


def test_it_finds_by_predecessor_and_tokens_only() -> None:
    cache, version, other = PrefixCache(10 * BLOCK_BYTES), root(), root()
    first = add(cache, version, (1, 2))
    add(cache, first, (3, 4))
    assert cache.find(version, (1, 2))
    assert cache.find(first, (3, 4))
    assert cache.find(version, (3, 4)) is None
    assert cache.find(version, (1, 3)) is None
    assert cache.find(other, (1, 2)) is None


def test_it_stays_within_its_bytes_and_drops_the_least_recently_used() -> None:
    cache, version = PrefixCache(3 * BLOCK_BYTES), root()
    for token in (1, 2, 3):
        add(cache, version, (token,))
    assert cache.find(version, (1,))
    add(cache, version, (4,))
    assert cache.n_bytes == 3 * BLOCK_BYTES
    assert cache.find(version, (2,)) is None
    assert cache.find(version, (1,))


def test_it_keeps_the_beginning_of_a_prompt_longer_than_its_end() -> None:
    cache, version = PrefixCache(2 * BLOCK_BYTES), root()
    first = cache.add(version, (1,), torch.zeros(2, 4, 8, 16), torch.zeros(16))
    second = cache.add(first.uid, (2,), torch.zeros(2, 4, 8, 16), torch.zeros(16))
    cache.touch([first, second])
    add(cache, version, (9,))
    assert cache.find(version, (1,))
    assert cache.find(first.uid, (2,)) is None


def test_it_evicts_from_the_end_of_a_prompt_that_is_being_computed() -> None:
    cache, version = PrefixCache(3 * BLOCK_BYTES), root()
    parents: list[Root | int] = [version]
    for token in range(5):
        parents.append(add(cache, parents[-1], (token,)))
    assert all(cache.find(parent, (token,)) for token, parent in enumerate(parents[:2]))
    assert len(cache) == reachable(cache, version) > 0


def test_it_keeps_nothing_that_could_not_be_found() -> None:
    cache, version = PrefixCache(BLOCK_BYTES), root()
    first = add(cache, version, (1,))
    add(cache, version, (9,))
    add(cache, first, (2,))
    assert cache.find(version, (9,))
    assert (len(cache), cache.n_bytes) == (1, BLOCK_BYTES)
    cache.drop(version[0])
    assert (len(cache), cache.n_bytes, cache._followers) == (0, 0, {})


def test_it_keeps_a_block_once() -> None:
    cache, version = PrefixCache(10 * BLOCK_BYTES), root()
    assert add(cache, version, (1,)) == add(cache, version, (1,))
    assert (len(cache), cache.n_bytes) == (1, BLOCK_BYTES)


@given(moves=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=60))
def test_it_can_find_whatever_it_keeps(moves: list[tuple[int, int]]) -> None:
    cache, versions = PrefixCache(4 * BLOCK_BYTES), [root(), root()]
    parents: list[Root | int] = list(versions)
    for place, token in moves:
        parent = parents[place % len(parents)]
        block = cache.find(parent, (token,))
        parents.append(block.uid if block else add(cache, parent, (token,)))
        assert sum(reachable(cache, version) for version in versions) == len(cache)
        assert cache.n_bytes == len(cache) * BLOCK_BYTES <= cache.max_bytes
    for version in versions:
        cache.drop(version[0])
        assert reachable(cache, version) == 0
    assert (len(cache), cache.n_bytes, cache._followers) == (0, 0, {})


def reachable(cache: PrefixCache, parent: Root | int) -> int:
    """How many of the kept blocks lie behind this predecessor."""
    own = [block for key, block in cache._blocks.items() if key[0] == parent]
    return len(own) + sum(reachable(cache, block.uid) for block in own)


def test_it_tells_nobody_what_another_asked() -> None:
    cache, (version, _) = PrefixCache(10 * BLOCK_BYTES), root()
    add(cache, (version, "key-1"), (1, 2))
    assert cache.find((version, "key-1"), (1, 2))
    assert cache.find((version, "key-2"), (1, 2)) is None
    assert cache.find((version, ""), (1, 2)) is None
    cache.drop(version)
    assert len(cache) == 0


def test_it_takes_no_block_larger_than_itself() -> None:
    cache = PrefixCache(BLOCK_BYTES - 1)
    add(cache, root(), (1,))
    assert (len(cache), cache.n_bytes) == (0, 0)


def test_it_forgets_a_version_whole_and_no_other() -> None:
    cache, gone, stays = PrefixCache(10 * BLOCK_BYTES), root(), root()
    for version in (gone, stays):
        add(cache, add(cache, version, (1,)), (2,))
    cache.drop(gone[0])
    assert len(cache) == 2
    assert cache.n_bytes == 2 * BLOCK_BYTES
    assert cache.find(stays, (1,))


def test_it_copies_blocks_in_and_out() -> None:
    one = SequenceCache(2, 3, 4, 10, torch.float32, torch.device("cpu"))
    two = SequenceCache(2, 3, 4, 20, torch.float32, torch.device("cpu"))
    block = torch.randn(2, 6, 5, 4)
    one.write(2, block)
    two.write(9, one.read(2, 7))
    assert torch.equal(two.read(9, 14), block)
    assert torch.equal(two.keys[1][0, :, 9:14], block[1, :3])
    assert torch.equal(two.values[0][0, :, 9:14], block[0, 3:])
