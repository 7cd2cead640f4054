import os
import signal
from pathlib import Path

import pytest

from tests.training.ml.cases import read_json, write_lease
from training.ml.errors import LeaseLost, Stopped
from training.ml.watch import Watch


def test_it_goes_on_while_it_holds_the_lease(tmp_path: Path) -> None:
    write_lease(tmp_path)
    Watch(tmp_path, token=1).check()


@pytest.mark.parametrize("seconds", [-61.0, -1000.0])
def test_it_loses_a_lease_stale_for_a_minute(tmp_path: Path, seconds: float) -> None:
    write_lease(tmp_path, seconds=seconds)
    with pytest.raises(LeaseLost):
        Watch(tmp_path, token=1).check()


def test_it_holds_a_lease_just_past_its_time(tmp_path: Path) -> None:
    write_lease(tmp_path, seconds=-30)
    Watch(tmp_path, token=1).check()


@pytest.mark.parametrize("text", ['{"token": 2, "until": 99999999999}', "{", "[]", '{"token": 1}'])
def test_it_loses_a_lease_that_is_anothers_or_unreadable(tmp_path: Path, text: str) -> None:
    (tmp_path / "lease.json").write_text(text)
    with pytest.raises(LeaseLost):
        Watch(tmp_path, token=1).check()


def test_it_loses_a_lease_that_vanishes(tmp_path: Path) -> None:
    write_lease(tmp_path)
    watch = Watch(tmp_path, token=1)
    (tmp_path / "lease.json").unlink()
    with pytest.raises(LeaseLost):
        watch.check()


def test_it_needs_no_lease_without_a_supervisor(tmp_path: Path) -> None:
    Watch(tmp_path, token=1).check()


def test_it_stops_at_once_on_a_signal(tmp_path: Path) -> None:
    with Watch(tmp_path, token=1) as watch, pytest.raises(Stopped) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 3
    with pytest.raises(Stopped):
        watch.check()


def test_it_obeys_a_signal_at_the_end_of_a_shield(tmp_path: Path) -> None:
    done = []

    def work(watch: Watch) -> None:
        with watch.shielded():
            with watch.shielded():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("never")

    with Watch(tmp_path, token=1) as watch, pytest.raises(Stopped):
        work(watch)
    assert done == ["inner", "outer"]


def test_it_gives_the_signal_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Watch(tmp_path, token=1):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_it_reports_phase_step_and_time_left(tmp_path: Path) -> None:
    watch = Watch(tmp_path, token=1)
    watch.phase("Training")
    watch.report(is_due=True, step=3, n_steps=8, seconds_left=12.5)
    status = read_json(tmp_path / "status.json")
    figures = {name: status.pop(name) for name in ("rss_mb", "rss_peak_mb", "cpu_percent", "n_threads")}
    assert 0 < figures["rss_mb"] <= figures["rss_peak_mb"] + 1
    assert status == {"phase": "Training", "step": 3, "n_steps": 8, "seconds_left": 12.5}


def test_it_does_not_write_for_every_pack(tmp_path: Path) -> None:
    watch = Watch(tmp_path, token=1)
    watch.phase("Training")
    watch.report(step=5)
    assert read_json(tmp_path / "status.json")["step"] == 0
