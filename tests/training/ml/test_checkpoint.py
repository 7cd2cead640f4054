import copy
import shutil
from pathlib import Path

import pytest
import torch

from tests.training.ml.cases import make_learner, some_pairs, write_lease
from training.ml import checkpoint, loop, optim, policy
from training.ml.data import Order
from training.ml.loop import Learner
from training.ml.watch import Watch

IDENTITY = {"method": "dpo", "params": {"seed": 0}}


def order() -> Order:
    return Order(some_pairs(), epochs=3, batch_pairs=4, seed=3)


def steps(learner: Learner, n: int, folder: Path, watch: Watch) -> list[float]:
    return [loop.take_step(learner, order(), folder, watch)["loss"] for _ in range(n)]


@pytest.fixture
def learner(base32: policy.Base) -> Learner:
    return make_learner(base32, some_pairs())[0]


def test_it_goes_on_from_a_checkpoint_bit_for_bit(
    tiny_model_dir: Path, learner: Learner, tmp_path: Path, watch: Watch
) -> None:
    steps(learner, 3, tmp_path, watch)
    checkpoint.save(tmp_path, learner, IDENTITY, watch)
    before = copy.deepcopy(learner.monitor)
    n_skipped = learner.n_skipped
    torch.rand(5)  # somebody else used the random numbers meanwhile
    expected = steps(learner, 3, tmp_path, watch)
    again, _ = make_learner(policy.load_base(tiny_model_dir, dtype=torch.float32), some_pairs(), seed=9)
    assert checkpoint.load(tmp_path / "checkpoint-3", again, IDENTITY)
    assert (again.step, again.n_skipped) == (3, n_skipped)
    assert again.monitor.state == before.state
    assert again.good is not None
    assert steps(again, 3, tmp_path, watch) == expected
    assert all(map(torch.equal, again.parameters, learner.parameters))
    assert again.monitor.state == learner.monitor.state


def test_it_goes_on_exactly_when_stopped_while_the_parameters_hold_the_result(
    base32: policy.Base, tmp_path: Path, watch: Watch
) -> None:
    """In an exam, on the way into it, or after the last step: where a signal finds no shield."""
    learner, _ = make_learner(base32, some_pairs(), optimizer="schedule_free")
    steps(learner, 2, tmp_path, watch)
    kept = [parameter.detach().clone() for parameter in learner.parameters]
    with optim.result_of(learner.optimizer):
        assert not all(map(torch.equal, learner.parameters, kept))
        checkpoint.save(tmp_path, learner, IDENTITY, watch)
    assert checkpoint.load(tmp_path / "checkpoint-2", learner, IDENTITY)
    assert all(map(torch.equal, learner.parameters, kept))


def test_it_restores_the_random_numbers(learner: Learner, tmp_path: Path, watch: Watch) -> None:
    checkpoint.save(tmp_path, learner, IDENTITY, watch)
    expected = torch.rand(3)
    assert checkpoint.load(tmp_path / "checkpoint-0", learner, IDENTITY)
    assert torch.equal(torch.rand(3), expected)


def test_it_keeps_the_last_two(learner: Learner, tmp_path: Path, watch: Watch) -> None:
    for learner.step in (2, 9, 10):
        checkpoint.save(tmp_path, learner, IDENTITY, watch)
    assert [path.name for path in checkpoint.kept(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert not list(tmp_path.glob("*.tmp"))


def test_it_removes_nothing_once_another_attempt_can_have_begun(learner: Learner, tmp_path: Path) -> None:
    write_lease(tmp_path)
    watch = Watch(tmp_path, token=1)
    for learner.step in (2, 9, 10):
        checkpoint.save(tmp_path, learner, IDENTITY, watch)
    write_lease(tmp_path, seconds=-1)  # stale, and not yet lost
    for learner.step in (11, 12):
        checkpoint.save(tmp_path, learner, IDENTITY, watch)
    assert [path.name for path in checkpoint.kept(tmp_path)] == [f"checkpoint-{step}" for step in (9, 10, 11, 12)]


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_it_resumes_from_an_older_one_when_the_newest_is_damaged(
    learner: Learner, tmp_path: Path, watch: Watch, damage: str
) -> None:
    for learner.step in (2, 9, 10):
        checkpoint.save(tmp_path, learner, IDENTITY, watch)
    newest = tmp_path / "checkpoint-10"
    if damage == "missing":
        shutil.rmtree(newest)
    else:
        (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:-1000])
    learner.step = 0
    assert checkpoint.resume(newest, learner, IDENTITY)
    assert learner.step == 9


def test_it_resumes_from_the_one_it_is_told(learner: Learner, tmp_path: Path, watch: Watch) -> None:
    for learner.step in (9, 10):
        checkpoint.save(tmp_path, learner, IDENTITY, watch)
    assert checkpoint.resume(tmp_path / "checkpoint-9", learner, IDENTITY)
    assert learner.step == 9


def test_it_does_not_take_half_a_checkpoint_for_one(learner: Learner, tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "checkpoint-4.tmp").mkdir()
    assert checkpoint.kept(tmp_path) == []
    learner.step = 4
    checkpoint.save(tmp_path, learner, IDENTITY, watch)
    assert checkpoint.load(tmp_path / "checkpoint-4", learner, IDENTITY)


def test_it_does_not_resume_from_other_work(
    learner: Learner, tmp_path: Path, watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path, learner, IDENTITY, watch)
    learner.step = 1
    assert not checkpoint.load(tmp_path / "checkpoint-0", learner, IDENTITY | {"method": "ipo"})
    assert learner.step == 1
    assert "belongs to other data, parameters or model" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_it_begins_again_rather_than_fail_on_a_damaged_one(
    learner: Learner, tmp_path: Path, watch: Watch, damage: str
) -> None:
    checkpoint.save(tmp_path, learner, IDENTITY, watch)
    file = tmp_path / "checkpoint-0" / "state.pt"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1000])
    assert not checkpoint.load(tmp_path / "checkpoint-0", learner, IDENTITY)
