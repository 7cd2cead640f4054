"""One run on several processes of one machine, as torchrun starts them: each takes its share of every step's passes.

All processes hold the whole model and take the same decisions from the same summed gradients and gathered metrics, so
nothing but those is exchanged. The first one alone is supervised, writes, evaluates and hands the adapter over.
"""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from training.ml.errors import PeerLost, is_out_of_memory

EXIT_CODE = "exit_code"  # in the attempt's folder: what the first process ended with; torchrun's own code says less
PATIENCE = timedelta(hours=12)  # the others wait while the first scores with the reference


def size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(folder: Path) -> Iterator[Path]:
    """In a group of processes if there are several; yields the folder to write to, which only the first one keeps."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield folder
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    if is_first():
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="trainer-") as own:
            yield Path(own)
    distributed.destroy_process_group()


def let_the_first_speak(folder: Path, patience: float = 300.0) -> None:
    """Waits, for at most `patience` seconds, until the first process has said in the attempt's folder how it ended.

    For another one that failed over what the first will find as well: torchrun ends all processes as soon as one is gone,
    and the first, still importing, would leave no word.
    """
    deadline = time.monotonic() + patience
    while not is_first() and not (folder / EXIT_CODE).exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def follow_the_first() -> None:
    """The first one decides when to stop; its end is the others', whose next exchange fails."""
    if not is_first():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def exchanging() -> Iterator[None]:
    """An exchange with the others. Raises PeerLost where it fails, which it does when one of them has ended."""
    try:
        yield
    except RuntimeError as error:  # gloo has no type of its own for it
        if is_out_of_memory(error):
            raise
        print(f"another process of the run is gone: {error}", flush=True)
        raise PeerLost from error


@contextmanager
def first_alone() -> Iterator[None]:
    """A block that the others enter when the first one is through it, and find its files."""
    if size() > 1 and not is_first():
        _wait_for_all()
    yield
    if size() > 1 and is_first():
        _wait_for_all()


def _wait_for_all() -> None:
    with exchanging():
        distributed.barrier()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Leaves in every process the sum over all of them; one exchange for all parameters."""
    if size() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    with exchanging():
        distributed.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).clone()


def gather(own: list[Any]) -> list[Any]:
    """What all processes have, in the order of their ranks: the same in each. Tensors must be on the CPU."""
    if size() == 1:
        return own
    found: list[list[Any]] = [[] for _ in range(size())]
    with exchanging():
        distributed.all_gather_object(found, own)
    return [item for part in found for item in part]


def anywhere(is_so: bool) -> bool:
    """Whether it is so in any process."""
    return any(gather([is_so]))
