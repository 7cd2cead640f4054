"""Memory for matrices in large pages, of 2 MiB where Linux has them to give instead of 4 KiB.

A step reads every weight once, so what limits it is how fast memory streams, and with small pages that is how fast addresses
are looked up: in a virtual machine each page costs a walk through two tables. Measured by summing 256 MiB on two cores of
Zen 4: 39 to 45 GB/s from small pages, 64 from large ones.
"""

import contextlib
import math
import mmap

import numpy as np
import torch
from torch import Tensor

LARGE = 2 * 2**20
CHUNK = 64 * 2**20  # matrices share chunks, as few are a multiple of a page; the last page of each is lost
ALIGNED = 64


class Pages:
    """Hands out pieces to the matrices of one version, one after the other. A chunk is freed with the last piece of it."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)

    def copied(self, tensor: Tensor) -> Tensor:
        """The same numbers, contiguous, in large pages. Raises MemoryError."""
        n_bytes = tensor.numel() * tensor.element_size()
        n_taken = math.ceil(n_bytes / ALIGNED) * ALIGNED
        if n_taken > len(self._chunk):
            self._chunk = _chunk(max(n_taken, CHUNK))
        piece, self._chunk = self._chunk[:n_bytes], self._chunk[n_taken:]
        return piece.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _chunk(n_bytes: int) -> Tensor:
    """(n_bytes,) that begin where a large page may. What is never written takes no memory."""
    try:
        memory = mmap.mmap(-1, n_bytes + LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {n_bytes} bytes of weights") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them: small ones do as well, more slowly
            memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.from_numpy(np.frombuffer(memory, dtype=np.uint8))  # keeps the mapping as long as any piece lives
    start = -whole.data_ptr() % LARGE
    return whole[start : start + n_bytes]
