"""Weights in large pages: the same numbers, in memory that goes when the last of them does."""

import gc

import psutil
import pytest
import torch

from serving.engine.native import PackedLayout
from serving.engine.native.pages import CHUNK, LARGE, Pages

MIB = 2**20


def test_it_copies_numbers_of_any_layout() -> None:
    pages = Pages()
    whole = torch.arange(60, dtype=torch.int32).view(3, 4, 5)
    copies = [pages.copied(whole), pages.copied(whole.transpose(1, 2)), pages.copied(whole.bfloat16()[:, 1])]
    assert torch.equal(copies[0], whole)
    assert torch.equal(copies[1], whole.transpose(1, 2))
    assert torch.equal(copies[2], whole.bfloat16()[:, 1])
    assert all(copy.is_contiguous() and copy.data_ptr() % 64 == 0 for copy in copies)


def test_it_keeps_pieces_apart_and_beside_each_other() -> None:
    pages = Pages()
    first, second = pages.copied(torch.ones(100)), pages.copied(torch.ones(100))
    assert (first.data_ptr() % LARGE, second.data_ptr() - first.data_ptr()) == (0, 448)
    second.zero_()
    assert bool((first == 1).all())


def test_it_takes_what_is_larger_than_a_chunk() -> None:
    pages = Pages()
    large = pages.copied(torch.ones(CHUNK // 4 + 1000))
    assert float(large.sum()) == CHUNK // 4 + 1000
    assert large.data_ptr() % LARGE == 0


@pytest.mark.parametrize("n", [MIB, 5 * MIB // 2, 20 * MIB])  # of four bytes each; the last exceeds a chunk
def test_it_takes_little_more_than_matrices_have(n: int) -> None:
    pages, ones, n_pieces = Pages(), torch.ones(n), 200 * MIB // n
    before = psutil.Process().memory_info().rss
    pieces = [pages.copied(ones) for _ in range(n_pieces)]
    grown = psutil.Process().memory_info().rss - before
    assert 0.9 < grown / (4 * n * len(pieces)) < 1.05


def test_it_gives_memory_back_when_a_version_goes() -> None:
    """All of it: what is loaded next has chunks of its own."""
    layout, weight = PackedLayout(), torch.ones(1024, 20 * 1024, dtype=torch.bfloat16)  # 40 MiB
    base = layout.fresh().linear(weight, None)
    before = psutil.Process().memory_info().rss
    loading = layout.fresh()
    version = [loading.linear(weight, None) for _ in range(5)]
    del loading
    assert psutil.Process().memory_info().rss - before > 180 * MIB
    del version
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 16 * MIB
    assert bool((base.weight == 1).all())
