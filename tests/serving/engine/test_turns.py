"""Whose turn it is: no part of the background beside a step, a share of the time at most, and nobody waits for ever."""

import threading
import time
from pathlib import Path

import pytest

from serving.engine import turns
from serving.engine.engine import Engine
from serving.engine.turns import MAX_STEP, SHARE, Turns
from tests.serving.engine.conftest import make_adapter, submit

PATIENCE = 20.0


class Clock:
    """Seconds that pass only where work is done."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)
    monkeypatch.setattr(turns, "PATIENCE", PATIENCE)  # of real seconds, so that a busy machine changes nothing
    return clock


class Background:
    """Parts of some seconds each."""

    def __init__(self, clock: Clock, turns: Turns, n_parts: int, seconds: float) -> None:
        self._clock, self._turns, self._n_parts, self._seconds = clock, turns, n_parts, seconds
        self.n_done = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        for _ in range(self._n_parts):
            self._turns.wait()
            self._clock.now += self._seconds
            self.n_done += 1
        self._turns.end()


def busy() -> Turns:
    turns = Turns()
    turns.begin()
    return turns


def wait_until_it_asks(turns: Turns) -> None:
    until = time.monotonic() + PATIENCE
    while not turns._is_asking:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_it_works_at_once_where_no_step_runs(clock: Clock) -> None:
    background = Background(clock, Turns(), 5, 1.0)
    background.thread.join(PATIENCE)
    assert background.n_done == 5


def test_it_has_its_share_between_two_steps(clock: Clock) -> None:
    turns = busy()
    background = Background(clock, turns, 30, 0.005)
    for n_steps in range(4):
        wait_until_it_asks(turns)
        assert background.n_done == 4 * n_steps  # none beside a step
        turns.after_step(0.0199 / SHARE)
        assert background.n_done == 4 * (n_steps + 1)  # and none is under way when the next begins
    turns.idle()
    background.thread.join(PATIENCE)
    assert background.n_done == 30  # what was left went on when there were no more steps


def test_it_pays_back_what_it_took_beyond_its_share(clock: Clock) -> None:
    turns = busy()
    background = Background(clock, turns, 3, 0.05)
    found = []
    for share in (0.04, 0.001, 0.008, 0.002):  # 10 ms too many; 9, 1; 1 left
        wait_until_it_asks(turns)
        turns.after_step(share / SHARE)
        found.append(background.n_done)
    assert found == [1, 1, 1, 2]
    turns.idle()
    background.thread.join(PATIENCE)


def test_it_saves_no_time_up_for_later(clock: Clock) -> None:
    turns = busy()
    for _ in range(50):
        turns.after_step(100.0)
    background = Background(clock, turns, 30, 0.005)
    wait_until_it_asks(turns)
    turns.after_step(0.0099 / SHARE)
    assert background.n_done == 2
    turns.idle()
    background.thread.join(PATIENCE)


def test_it_goes_on_beside_work_that_does_not_come_back() -> None:
    turns, stuck, began_at = busy(), threading.Event(), time.monotonic()

    def work() -> None:
        turns.wait()
        stuck.wait(PATIENCE)
        turns.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    wait_until_it_asks(turns)
    for _ in range(3):
        turns.after_step(0.03)
    assert time.monotonic() - began_at < PATIENCE
    time.sleep(0.1)
    stuck.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert turns._credit < -0.08  # all of it is owed, also what was done beside steps


def test_it_begins_nothing_when_its_turn_is_over(clock: Clock) -> None:
    """The thread was told, and had no core until the next step was under way."""
    turns = busy()
    background = Background(clock, turns, 1, 0.001)
    wait_until_it_asks(turns)
    with turns._changed:
        turns._is_asking, turns._is_working, clock.now = False, True, 1.0  # and its turn ended at 0
        turns._changed.notify_all()
    wait_until_it_asks(turns)
    assert background.n_done == 0
    turns.after_step(MAX_STEP)
    background.thread.join(PATIENCE)
    assert background.n_done == 1
    turns.idle()
    background.thread.join(PATIENCE)


def test_it_waits_as_soon_as_steps_begin(clock: Clock) -> None:
    turns = Turns()
    turns.begin()
    background = Background(clock, turns, 1, 1.0)
    wait_until_it_asks(turns)
    turns.idle()
    background.thread.join(PATIENCE)
    assert background.n_done == 1


def test_it_lets_a_version_load_beside_a_stream_and_after_the_end(
    tiny: Engine, tiny_model_dir: Path, adapters_dir: Path
) -> None:
    """The engine's own thread gives the turns; when it stops, whoever waits is not left behind."""
    make_adapter(adapters_dir / "one", tiny_model_dir)
    _, listener = submit(tiny, [5, 6, 7], max_tokens=900, ignore_eos=True)
    tiny.start()
    tiny.versions.load("beside", "one", 0)
    assert not listener.has_ended
    assert [version.name for version in tiny.versions.names()] == ["base", "beside"]
    tiny.scheduler.stop()
    tiny.join(PATIENCE)
    assert listener.has_ended
    tiny.versions.load("after", "one", 0)
