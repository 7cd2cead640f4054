"""The frozen trunk's hidden states, remembered: what stands below the first adapted layer never changes.

With adapters on the top third, the lower two thirds give the policy, the reference, every epoch and every evaluation the
same states. They are computed once per prompt and response and kept in a file below the attempt's folder, mapped into
memory: 2 bytes × hidden size per token in bf16, which the system may drop from memory and read again.
"""

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from training.ml import block
from training.ml.attention import Plan
from training.ml.lora import Linear
from training.ml.rows import Pack, Tokens

MAX_BYTES = 4 << 30  # of states: 3.7 million tokens of the 135M model; later ones are computed each time

Key = tuple[Tokens, Tokens]  # (prompt, the response's input tokens; none for the prompt itself)


def first_adapted(layers: Any, *, counts_disabled: bool = False) -> int:
    """The lowest layer with an adapter, by default one that is switched on; the number of layers where there is none."""
    for i, layer in enumerate(layers):
        adapters = [m for m in layer.modules() if isinstance(m, Linear) and set(m.active_adapters) & set(m.lora_A)]
        if any(counts_disabled or not module.disable_adapters for module in adapters):
            return i
    return len(layers)


class Trunk:
    """States (T, W) after `n_layers` layers of a model whose layers `block` knows."""

    def __init__(self, model: PreTrainedModel, n_layers: int, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.n_layers = n_layers
        self.dtype: torch.dtype = model.dtype
        self.width = int(model.config.hidden_size)
        self.n_computed = 0  # tokens
        self._places: dict[Key, slice] = {}
        self._n_used = 0
        self._lock = threading.Lock()
        self._rows = _mapped(folder, max_bytes // (self.width * self.dtype.itemsize), self.width, self.dtype)

    def states(self, pack: Pack, x: torch.Tensor, layers: Any, rotation: block.Rotation, plan: Plan) -> torch.Tensor:
        """The trunk's output for the embedded pack x (T', W), T' ≥ T: remembered where all of it is, else computed."""
        spans = list(_spans(pack))
        found = [self._places.get(key) for key, _ in spans]
        if None not in found:
            known = torch.cat([self._rows[place] for place in found if place])  # (T, W), in the pack's order
            return pad(known.to(x.device), (0, 0, 0, len(x) - len(known)))
        with torch.no_grad():
            for layer in layers[: self.n_layers]:
                x = block.run(layer, x, rotation, plan)
        self.n_computed += pack.n_tokens
        for (key, span), place in zip(spans, found, strict=True):
            if place is None:
                self._keep(key, x[span])
        return x

    def _keep(self, key: Key, states: torch.Tensor) -> None:
        with self._lock:
            place = slice(self._n_used, self._n_used + len(states))
            if place.stop > len(self._rows) or key in self._places:
                return
            self._n_used = place.stop
        self._rows[place] = states.to("cpu")
        self._places[key] = place  # last: another lane may read it from here on


def _spans(pack: Pack) -> Iterator[tuple[Key, slice]]:
    """What is in each segment of a pack, and where."""
    ids = pack.input_ids[0].tolist()
    for s in pack.segments:
        own = tuple(ids[s.start : s.end])
        is_prompt = s.prompt_start == s.prompt_end
        yield ((own, ()) if is_prompt else (tuple(ids[s.prompt_start : s.prompt_end]), own)), slice(s.start, s.end)


def _mapped(folder: Path, n_rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """(n_rows, width) in a file that has no name and ends with the process. Holes take no room until they are written.

    As many rows as the disk has room for, with a gigabyte left: a full disk would kill the process at a write.
    """
    disk = os.statvfs(folder)
    room = max(0, disk.f_bavail * disk.f_frsize - (1 << 30))
    n_rows = max(1, min(n_rows, room // (width * dtype.itemsize)))
    with tempfile.TemporaryFile(dir=folder) as file:
        mapped = np.memmap(file, dtype=np.uint8, mode="w+", shape=(n_rows * width * dtype.itemsize,))
    return torch.from_numpy(mapped).view(dtype).view(n_rows, width)
