"""The prefix cache: blocks are found by exact tokens and version, and old ones make room."""

import torch

from serving.engine.cache import PrefixCache, SequenceCache, new_uid

BLOCK_BYTES = (2 * 4 * 8 * 16 + 16) * 4


def add(cache: PrefixCache, parent: int, tokens: tuple[int, ...]) -> int:
    return cache.add(parent, tokens, torch.zeros(2, 4, 8, 16), torch.zeros(16)).uid


def test_it_finds_by_predecessor_and_tokens_only() -> None:
    cache, version, other = PrefixCache(10 * BLOCK_BYTES), new_uid(), new_uid()
    first = add(cache, version, (1, 2))
    add(cache, first, (3, 4))
    assert cache.find(version, (1, 2))
    assert cache.find(first, (3, 4))
    assert cache.find(version, (3, 4)) is None
    assert cache.find(version, (1, 3)) is None
    assert cache.find(other, (1, 2)) is None


def test_it_stays_within_its_bytes_and_drops_the_least_recently_used() -> None:
    cache, version = PrefixCache(3 * BLOCK_BYTES), new_uid()
    for token in (1, 2, 3):
        add(cache, version, (token,))
    assert cache.find(version, (1,))
    add(cache, version, (4,))
    assert cache.n_bytes == 3 * BLOCK_BYTES
    assert cache.find(version, (2,)) is None
    assert cache.find(version, (1,))


def test_it_keeps_the_beginning_of_a_prompt_longer_than_its_end() -> None:
    cache, version = PrefixCache(2 * BLOCK_BYTES), new_uid()
    first = cache.add(version, (1,), torch.zeros(2, 4, 8, 16), torch.zeros(16))
    second = cache.add(first.uid, (2,), torch.zeros(2, 4, 8, 16), torch.zeros(16))
    cache.touch([first, second])
    add(cache, version, (9,))
    assert cache.find(version, (1,))
    assert cache.find(first.uid, (2,)) is None


def test_it_takes_no_block_larger_than_itself() -> None:
    cache = PrefixCache(BLOCK_BYTES - 1)
    add(cache, new_uid(), (1,))
    assert (len(cache), cache.n_bytes) == (0, 0)


def test_it_forgets_a_version_whole_and_no_other() -> None:
    cache, gone, stays = PrefixCache(10 * BLOCK_BYTES), new_uid(), new_uid()
    for version in (gone, stays):
        add(cache, add(cache, version, (1,)), (2,))
    cache.drop(gone)
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
