import time

from training.ml.progress import Progress


def test_it_knows_nothing_before_the_first_work() -> None:
    progress = Progress()
    progress.plan(100)
    assert progress.did(0, time.monotonic()) is None


def test_it_expects_the_rest_to_go_as_fast() -> None:
    progress = Progress()
    progress.plan(100)
    left = progress.did(20, time.monotonic() - 4)
    assert left is not None
    assert round(left) == 16


def test_it_expects_no_more_after_more_work_than_planned() -> None:
    progress = Progress()
    progress.plan(10)
    assert progress.did(30, time.monotonic() - 1) == 0.0
