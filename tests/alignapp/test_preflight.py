import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignapp import preflight
from alignapp.preflight import NotReady


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_it_names_the_taken_port_and_its_variable(taken_port: int) -> None:
    with pytest.raises(NotReady, match=f"Port {taken_port} is taken .* with PORT="):
        preflight.check_port("127.0.0.1", taken_port, "PORT")


def test_it_takes_a_free_port(taken_port: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    preflight.check_port("127.0.0.1", port, "PORT")


def test_it_says_that_an_address_is_not_ours() -> None:
    with pytest.raises(NotReady, match=r"cannot listen on 192\.0\.2\.1:8000 .*check HOST and PORT"):
        preflight.check_port("192.0.2.1", 8000, "PORT")


def test_it_says_that_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=300 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    with pytest.raises(NotReady, match=r"Only 300 MB are free .* needs 1 GB"):
        preflight.check_disk(tmp_path)


def test_it_says_that_the_folder_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotReady, match=r"cannot be written .*VAR_DIR"):
        preflight.check_disk(tmp_path / "file" / "var")


def test_it_says_that_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match=r"no model in .*make model"):
        preflight.check_model(tmp_path / "missing")


def test_it_says_that_the_model_is_broken(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="The model is broken"):
        preflight.check_model(tmp_path)


def test_it_lets_one_start_at_a_time(tmp_path: Path) -> None:
    with preflight.lock(tmp_path), pytest.raises(NotReady, match="already running on"):
        preflight.lock(tmp_path)
    preflight.lock(tmp_path).close()
