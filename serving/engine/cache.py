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

# Prompt tokens computed (and shared) at a time: at 64 rows a product is within 5 % of its best speed per row.
BLOCK = 64
_uids = itertools.count(1)


def new_uid() -> int:
    """A number never used before in this process: the identity of a version or of a block."""
    return next(_uids)


class SequenceCache:
    """Keys and values of one sequence.

    `store`: (L, 2·Hkv, capacity, D), keys first; `rows[i]` and `keys[i]`, `values[i]` are views of layer i, made once because
    slicing costs as much as a small kernel.
    """

    __slots__ = ("address", "capacity", "keys", "rows", "sizes", "store", "values")

    def __init__(
        self, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.capacity, self.sizes = capacity, (n_layers, n_kv_heads, head_dim)
        with torch.inference_mode():
            self.store = torch.empty(n_layers, 2 * n_kv_heads, capacity, head_dim, dtype=dtype, device=device)
            self.address = self.store.data_ptr()
            self.rows = self.store.unbind(0)  # each (2·Hkv, capacity, D)
            self.keys = [layer[None, :n_kv_heads] for layer in self.rows]  # each (1, Hkv, capacity, D)
            self.values = [layer[None, n_kv_heads:] for layer in self.rows]

    @torch.inference_mode()
    def read(self, start: int, end: int) -> Tensor:
        return self.store[:, :, start:end].clone()

    @torch.inference_mode()
    def write(self, start: int, block: Tensor) -> None:
        self.store[:, :, start : start + block.shape[2]] = block


Root = tuple[int, str]  # a version's uid, and who asks it
Key = tuple[Root | int, tuple[int, ...]]  # (what came before: a root, or a block's uid; tokens)


@dataclass(frozen=True, slots=True)
class Block:
    """Up to BLOCK consecutive prompt tokens of one version, in the context of the blocks before it."""

    uid: int
    key: Key
    keys_values: Tensor  # (L, 2·Hkv, n, D)
    hidden: Tensor  # (H,) of the last token: what its logits are computed from, so a whole prompt needs no step at all

    @property
    def n_bytes(self) -> int:
        return self.keys_values.nbytes + self.hidden.nbytes


class PrefixCache:
    """Blocks by (identity of what came before, tokens); the first block's predecessor is the version, for one caller.

    So a key can never match another version's tokens, and nobody can find out by a quick answer, or by the count of cached
    tokens, what somebody else has asked. Tokens are compared, not hashes. Blocks always begin at a
    multiple of BLOCK: a token's numbers are then the same whether its block was computed or found. A block's predecessors
    are kept as long as it is itself: without them it could not be found.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._blocks: OrderedDict[Key, Block] = OrderedDict()  # least recently used first
        self._followers: dict[Root | int, dict[int, Block]] = {}  # by what they follow
        self._lock = threading.Lock()  # versions are dropped from another thread

    def find(self, parent: Root | int, tokens: tuple[int, ...]) -> Block | None:
        with self._lock:
            block = self._blocks.get((parent, tokens))
            if block:
                self._blocks.move_to_end(block.key)
            return block

    def add(self, parent: Root | int, tokens: tuple[int, ...], keys_values: Tensor, hidden: Tensor) -> Block:
        """Keep a computed block, making room by dropping the end of what was least recently used."""
        block = Block(new_uid(), (parent, tokens), keys_values, hidden)
        with self._lock:
            if known := self._blocks.get(block.key):
                return known
            is_lost = isinstance(parent, int) and parent not in self._followers
            if is_lost or block.n_bytes > self.max_bytes:
                return block
            self._keep(block)
            while self.n_bytes > self.max_bytes:
                self._forget(self._end_of(next(iter(self._blocks.values()))))
        return block

    def touch(self, chain: list[Block]) -> None:
        """Mark a prompt's blocks as used, the first one last: more prompts begin with it than with the others."""
        with self._lock:
            for block in reversed(chain):
                if block.key in self._blocks:
                    self._blocks.move_to_end(block.key)

    def drop(self, version: int) -> None:
        """Forget every block of a version."""
        with self._lock:
            roots = [root for root in self._followers if isinstance(root, tuple) and root[0] == version]
            for root in roots:
                while followers := self._followers.get(root):
                    self._forget(self._end_of(next(iter(followers.values()))))

    def __len__(self) -> int:
        return len(self._blocks)

    def _keep(self, block: Block) -> None:
        self._blocks[block.key] = block
        self._followers[block.uid] = {}
        self._followers.setdefault(block.key[0], {})[block.uid] = block
        self.n_bytes += block.n_bytes

    def _end_of(self, block: Block) -> Block:
        """The last block of a chain through this one."""
        while followers := self._followers[block.uid]:
            block = next(iter(followers.values()))
        return block

    def _forget(self, block: Block) -> None:
        """A block that nothing follows."""
        parent = block.key[0]
        del self._blocks[block.key], self._followers[block.uid], self._followers[parent][block.uid]
        if isinstance(parent, tuple) and not self._followers[parent]:
            del self._followers[parent]
        self.n_bytes -= block.n_bytes
