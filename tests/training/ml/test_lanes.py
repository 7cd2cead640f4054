"""Passes side by side: the same results, whoever is faster."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.training.ml.cases import make_learner, shake, some_pairs
from training.ml import lanes, loop
from training.ml.logprobs import response_logps
from training.ml.policy import Base
from training.ml.progress import Progress
from training.ml.rows import pack
from training.ml.scores import Memory, Scorer, score_by
from training.ml.trunk import Trunk
from training.ml.watch import Watch

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def late(value: int) -> int:
    time.sleep(0.05 if value == 0 else 0)
    return value


@pytest.mark.usefixtures("two_threads")
def test_it_returns_results_in_the_order_of_the_works() -> None:
    assert lanes.run([partial(late, i) for i in range(5)], 2) == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("two_threads")
def test_it_gives_each_lane_its_share_of_the_threads() -> None:
    assert lanes.run([torch.get_num_threads, torch.get_num_threads], 2) == [1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_it_raises_the_first_error_after_all_have_ended() -> None:
    ended = []

    def fail() -> None:
        raise MemoryError

    def end() -> None:
        time.sleep(0.05)
        ended.append(1)

    with pytest.raises(MemoryError):
        lanes.run([fail, end], 2)
    assert ended


@pytest.mark.parametrize(
    ("n_threads", "budget", "longest", "n_lanes"),
    [
        (1, 1000, 10, 1),
        (2, 1000, 10, 2),
        (2, 1000, 501, 1),  # two such rows at a time would be more than the budget
        (2, 1000, 5000, 1),
        (6, 1000, 10, 3),  # four lanes would leave two threads idle
        (7, 1000, 10, 3),
        (8, 1000, 10, 4),
        (8, 1000, 400, 2),
    ],
)
def test_it_runs_as_many_passes_as_threads_and_memory_allow(
    n_threads: int, budget: int, longest: int, n_lanes: int, two_threads: None
) -> None:
    torch.set_num_threads(n_threads)
    assert lanes.count(CPU, budget, longest) == n_lanes
    assert lanes.count(torch.device("cuda"), budget, longest) == 1


@pytest.mark.usefixtures("two_threads")
def test_it_leaves_the_gradient_of_one_pass(base: Base, watch: Watch) -> None:
    def gradient(budget: int) -> tuple[list[torch.Tensor], float]:
        loop_metrics = loop.accumulate(learner, some_pairs(), watch)
        return [p.grad.clone() for p in learner.parameters if p.grad is not None], loop_metrics["loss"]

    learner, model = make_learner(base, some_pairs())
    shake(model)
    side_by_side, loss = gradient(512)
    torch.set_num_threads(1)
    alone, expected = gradient(512)
    assert len(alone) == len(learner.parameters)
    torch.testing.assert_close(side_by_side, alone, rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("two_threads")
def test_it_fills_a_trunk_from_all_lanes(base: Base, watch: Watch, tmp_path: Path) -> None:
    _, model = make_learner(base, some_pairs(), layers="top_half")
    shake(model)
    kept = Trunk(base.model, 1, tmp_path)
    scorer = Scorer(partial(response_logps, base.model, trunk=kept), CPU)
    found = score_by(scorer, some_pairs(), Memory(tmp_path, "a"), budget=64, watch=watch, progress=Progress())
    (batch,) = pack(some_pairs(), 4096)
    expected = response_logps(base.model, batch)
    for key, value in zip(batch.order, expected.tolist(), strict=True):
        assert found[key] == pytest.approx(value, rel=1e-9)
    torch.testing.assert_close(response_logps(base.model, batch, kept), expected)
