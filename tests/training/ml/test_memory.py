"""Work in smaller parts: how small, and what it never hides."""

import pytest

from training.ml.memory import in_smaller_parts


class Work:
    """Runs out of memory with more than `most` at a time."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.tried: list[int] = []

    def __call__(self, size: int) -> int:
        self.tried.append(size)
        if size > self.most:
            raise MemoryError
        return size


@pytest.mark.parametrize(("most", "tried"), [(64, [64]), (20, [64, 32, 16]), (8, [64, 32, 16, 8])])
def test_it_halves_until_it_fits(most: int, tried: list[int]) -> None:
    work = Work(most)
    assert in_smaller_parts(work, 64, 8) == tried[-1]
    assert work.tried == tried


def test_it_gives_up_at_the_least() -> None:
    work = Work(0)
    with pytest.raises(MemoryError):
        in_smaller_parts(work, 64, 8)
    assert work.tried == [64, 32, 16, 8]


def test_it_does_not_try_other_errors_again() -> None:
    tried = []

    def fail(size: int) -> None:
        tried.append(size)
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"):
        in_smaller_parts(fail, 64, 8)
    assert tried == [64]
