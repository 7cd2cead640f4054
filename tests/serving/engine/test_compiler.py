"""Compiling the step: what is wrong with the compiler or the folder is said, and a broken result is made again."""

import os
import sys
from pathlib import Path

import pytest

from serving.engine.native import compiler
from serving.engine.native.compiler import Unavailable

EMPTY = "void nothing() {}"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A step that compiles at once."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "step.cpp").write_text(EMPTY)
    monkeypatch.setattr(compiler, "SOURCES", folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("command", "words"),
    [("nonesuch", "nonesuch does not run"), ('"', "CXX is not a command"), (os.devnull, "does not run")],
)
def test_it_names_a_compiler_that_does_not_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: str
) -> None:
    monkeypatch.setenv("CXX", command)
    with pytest.raises(Unavailable, match=words):
        compiler.library(cache)


def test_it_takes_an_empty_choice_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", " ")
    assert compiler.compiler()[0]


@pytest.mark.usefixtures("sources")
def test_it_compiles_again_what_does_not_load(cache: Path) -> None:
    cache.mkdir(mode=0o700)
    made = cache / f"step-{compiler._fingerprint(compiler.compiler())[:16]}.so"
    made.write_text("for another machine")
    compiler.library(cache)
    assert made.read_bytes().startswith(b"\x7fELF")


@pytest.mark.usefixtures("sources")
def test_it_tries_only_once_more(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "compiler.py"
    script.write_text("import sys; open(sys.argv[sys.argv.index('-o') + 1], 'w').write('rubbish')")
    monkeypatch.setenv("CXX", f"{sys.executable} {script}")
    with pytest.raises(Unavailable, match="loaded from there"):
        compiler.library(cache)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_it_loads_nothing_from_where_others_may_write(cache: Path, mode: int) -> None:
    cache.mkdir()
    cache.chmod(mode)
    with pytest.raises(Unavailable, match="chmod go-w"):
        compiler.library(cache)


def test_it_loads_nothing_from_another_users_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    with pytest.raises(Unavailable, match="another user"):
        compiler.library(cache)
