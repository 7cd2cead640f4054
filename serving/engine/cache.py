"""Keys and values: one growing store per sequence, and finished prompt blocks that other sequences may copy.

Attention is computed for each sequence alone, over exactly its own tokens (measured: as fast as a padded batch on CPUs).
So a sequence needs no slot in a shared arena: its store is one tensor of the length it may reach. The operating system
hands out the pages when they are first written, so a store costs what is used of it.
"""

import itertools
import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = (
    64  # prompt tokens computed (and shared) at a time; at 64 rows a product is within 5 % of its best speed per row
)
_uids = itertools.count(1)


def new_uid() -> int:
    """A number never used before in this process: the identity of a version or of a block."""
    return next(_uids)


class SequenceCache:
    """Keys and values of one sequence.

    `store`: (L, 2·Hkv, capacity, D), keys first; `rows[i]` and `keys[i]`, `values[i]` are views of layer i, made once because
    slicing costs as much as a small kernel.
    """

    __slots__ = ("capacity", "keys", "rows", "store", "values")

    def __init__(
        self, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.capacity = capacity
        with torch.inference_mode():
            self.store = torch.empty(n_layers, 2 * n_kv_heads, capacity, head_dim, dtype=dtype, device=device)
            self.rows = self.store.unbind(0)  # each (2·Hkv, capacity, D)
            self.keys = [layer[None, :n_kv_heads] for layer in self.rows]  # each (1, Hkv, capacity, D)
            self.values = [layer[None, n_kv_heads:] for layer in self.rows]

    @torch.inference_mode()
    def read(self, start: int, end: int) -> Tensor:
        return self.store[:, :, start:end].clone()

    @torch.inference_mode()
    def write(self, start: int, block: Tensor) -> None:
        self.store[:, :, start : start + block.shape[2]] = block


@dataclass(frozen=True, slots=True)
class Block:
    """Up to BLOCK consecutive prompt tokens of one version, in the context of the blocks before it."""

    uid: int
    key: tuple[int, tuple[int, ...]]
    keys_values: Tensor  # (L, 2·Hkv, n, D)
    hidden: Tensor  # (H,) of the last token: what its logits are computed from, so a whole prompt needs no step at all

    @property
    def n_bytes(self) -> int:
        return self.keys_values.nbytes + self.hidden.nbytes


class PrefixCache:
    """Blocks by (identity of what came before, tokens); the first block's predecessor is the version itself.

    So a key can never match another version's tokens, and tokens are compared, not hashes. Blocks always begin at a
    multiple of BLOCK: a token's numbers are then the same whether its block was computed or found.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._blocks: OrderedDict[tuple[int, tuple[int, ...]], Block] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()  # versions are dropped from another thread

    def find(self, parent: int, tokens: tuple[int, ...]) -> Block | None:
        with self._lock:
            block = self._blocks.get((parent, tokens))
            if block:
                self._blocks.move_to_end(block.key)
            return block

    def add(self, parent: int, tokens: tuple[int, ...], keys_values: Tensor, hidden: Tensor) -> Block:
        """Keep a computed block, making room by dropping the least recently used ones."""
        block = Block(new_uid(), (parent, tokens), keys_values, hidden)
        with self._lock:
            if block.n_bytes > self.max_bytes:
                return block
            self._blocks[block.key] = block
            self.n_bytes += block.n_bytes
            while self.n_bytes > self.max_bytes:
                self._forget(next(iter(self._blocks)))
        return block

    def touch(self, chain: list[Block]) -> None:
        """Mark a prompt's blocks as used, the first one last: a block without its predecessor can never be found."""
        with self._lock:
            for block in reversed(chain):
                if block.key in self._blocks:
                    self._blocks.move_to_end(block.key)

    def drop(self, version: int) -> None:
        """Forget every block of a version."""
        with self._lock:
            gone = {version}
            for key in sorted(self._blocks, key=lambda k: self._blocks[k].uid):  # predecessors have smaller uids
                if key[0] in gone:
                    gone.add(self._blocks[key].uid)
                    self._forget(key)

    def __len__(self) -> int:
        return len(self._blocks)

    def _forget(self, key: tuple[int, tuple[int, ...]]) -> None:
        self.n_bytes -= self._blocks.pop(key).n_bytes
