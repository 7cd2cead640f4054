"""Work that is done again in smaller parts where memory does not suffice."""

from collections.abc import Callable
from typing import TypeVar

from training.ml.errors import is_out_of_memory

T = TypeVar("T")


def in_smaller_parts(work: Callable[[int], T], size: int, least: int) -> T:
    """work(size), again with half the size down to `least` for as long as it runs out of memory."""
    while True:
        try:
            return work(size)
        except Exception as error:
            if not is_out_of_memory(error) or size // 2 < least:
                raise
        size //= 2  # not within the `except`: the error holds on to what was allocated
        print(f"out of memory: going on in parts of {size}", flush=True)
