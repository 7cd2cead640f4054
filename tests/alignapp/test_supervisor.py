import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import alignapp.supervisor
from alignapp.console import Console
from alignapp.supervisor import LAUNCH, Service, Supervisor, cause_of_death, pause_before_restart

pytestmark = pytest.mark.slow  # starts processes

FOREVER = "import time\nwhile True: time.sleep(1)"
STUBBORN = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('here', flush=True)\n{FOREVER}"
# Starts a grandchild in a session of its own (as a worker starts its trainer), then waits.
PARENT = (
    f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {FOREVER!r}], start_new_session=True)\n{FOREVER}"
)


STRANGERS: list[psutil.Process] = []


class Stage:
    """A supervisor over small scripts; `watch` runs until a condition holds."""

    def __init__(self, folder: Path) -> None:
        self.output = io.StringIO()
        self.console = Console(self.output, folder, ["up", "first", "second"])
        self.supervisor = Supervisor(self.console)
        self.n_ready = 0

    def add(self, name: str, script: str, is_healthy: Callable[[float], bool] = lambda since: True) -> None:
        self.supervisor.add(Service(name, [sys.executable, "-c", script], is_healthy))

    def pids(self) -> dict[str, int | None]:
        return {running.service.name: running.pid for running in self.supervisor._all}

    def watch_until(self, condition: Callable[[], bool]) -> None:
        """Watches; asks to stop as soon as `condition` holds (looked at when the supervisor looks at its services)."""

        def look(since: float) -> bool:
            if condition():
                os.kill(os.getpid(), signal.SIGTERM)
            return False

        self.supervisor.add(Service("up", [sys.executable, "-c", FOREVER], look))
        self.supervisor.watch(self._count_ready)

    def _count_ready(self) -> None:
        self.n_ready += 1


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "log")


@pytest.fixture(autouse=True)
def _only_our_family() -> None:
    """What other tests left running (multiprocessing's resource tracker, a browser) is not looked at."""
    STRANGERS[:] = psutil.Process().children(recursive=True)


def _family() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if process not in STRANGERS]


def test_it_waits_longer_after_each_death() -> None:
    assert [pause_before_restart(n) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]


def test_it_says_how_a_process_died() -> None:
    assert cause_of_death(-9) == "was killed by SIGKILL"
    assert cause_of_death(3) == "ended with exit code 3"


def test_it_says_when_all_are_healthy_and_only_once(stage: Stage) -> None:
    answers = iter([False, False, True])
    with stage.supervisor as supervisor:
        stage.add("first", FOREVER, lambda since: next(answers))
        stage.add("second", FOREVER)

        def stop() -> None:
            stage.n_ready += 1
            os.kill(os.getpid(), signal.SIGTERM)

        supervisor.watch(stop)
    assert stage.n_ready == 1
    assert next(answers, "used up") == "used up"


def test_it_restarts_what_was_killed(stage: Stage) -> None:
    with stage.supervisor:
        stage.add("first", FOREVER)
        first = stage.pids()["first"]
        assert first is not None
        os.kill(first, signal.SIGKILL)
        stage.watch_until(lambda: "first is back" in stage.output.getvalue())
        assert stage.pids()["first"] not in {first, None}
    assert "first was killed by SIGKILL; starting it again in 1 s" in stage.output.getvalue()


def test_it_stops_what_a_dead_process_left_behind(stage: Stage) -> None:
    with stage.supervisor:
        stage.add("first", PARENT)
        first = psutil.Process(stage.pids()["first"])
        while not first.children():
            time.sleep(0.01)
        orphan = first.children()[0]
        first.kill()
        stage.watch_until(lambda: not orphan.is_running())
    assert not orphan.is_running()
    assert _family() == []


def test_it_leaves_no_process_behind(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignapp.supervisor, "STOP_SECONDS", 1.0)  # nobody asks the grandchild to end: it is killed
    with stage.supervisor:
        stage.add("first", PARENT)
        stage.add("second", FOREVER)
        while len(_family()) < 3:
            time.sleep(0.01)
    assert _family() == []


def test_it_leaves_the_children_alone_that_were_there_before(stage: Stage) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", FOREVER])
    with stage.supervisor:
        stage.add("first", FOREVER)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_it_gives_signals_back(stage: Stage) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stage.supervisor:
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_it_kills_what_does_not_end_in_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignapp.supervisor, "STOP_SECONDS", 0.3)
    with stage.supervisor:
        stage.add("first", STUBBORN)
        stage.watch_until(lambda: "here" in stage.output.getvalue())
    assert _family() == []


def test_it_kills_at_once_on_a_second_signal(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignapp.supervisor, "STOP_SECONDS", 1e9)  # only the second signal ends this test
    with stage.supervisor:
        stage.add("first", STUBBORN)
        stage.watch_until(lambda: "here" in stage.output.getvalue())
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert _family() == []


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-IS', {str(LAUNCH)!r}, str(os.getpid()), sys.executable, '-c', {FOREVER!r}])\n"
        f"print(child.pid, flush=True)\n{FOREVER}"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_it_writes_each_process_to_the_terminal_and_to_its_file(stage: Stage, tmp_path: Path) -> None:
    with stage.supervisor:
        stage.add("first", "print('hello')\n" + FOREVER)
        stage.watch_until(lambda: "hello" in stage.output.getvalue())
    assert "first  │ hello\n" in stage.output.getvalue()
    assert (tmp_path / "log" / "first.log").read_text() == "hello\n"


def test_it_starts_a_new_log_file_each_time(tmp_path: Path) -> None:
    for text in ("one", "two"):
        Console(io.StringIO(), tmp_path, ["first"]).say("first", text)
    assert (tmp_path / "first.log").read_text() == "two\n"
    assert (tmp_path / "first.log.1").read_text() == "one\n"


def test_it_colours_names_on_a_terminal_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = Terminal()
    Console(coloured, tmp_path, ["first"]).say("first", "x")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    Console(plain, tmp_path, ["first"]).say("first", "x")
    assert "\033[36m" in coloured.getvalue()
    assert plain.getvalue() == "first │ x\n"


def test_it_goes_on_when_the_terminal_is_gone(tmp_path: Path) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    console = Console(Gone(), tmp_path, ["first"])
    console.say("first", "one")
    console.say("first", "two")
    assert (tmp_path / "first.log").read_text() == "one\ntwo\n"
