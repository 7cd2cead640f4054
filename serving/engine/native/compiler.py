"""Compiles the step for this machine when the engine starts; the result is kept, so that it happens once."""

import ctypes
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-std=c++20", "-march=native", "-shared", "-fPIC", "-pthread")
SECONDS = 600  # the compiler out of the ziglang wheel first compiles its own C++ library


class Unavailable(RuntimeError):
    """The step cannot run natively here; the message says why and what would help."""


def library(cache: Path) -> ctypes.CDLL:
    """The compiled step, from the folder `cache` if it was compiled before. Raises Unavailable."""
    command = compiler()
    path = cache / f"step-{_fingerprint(command)[:16]}.so"
    try:
        _check_folder(cache)
        return _loaded_before(path) or _compiled_now(command, path)
    except OSError as error:
        raise Unavailable(f"The compiled step cannot be kept in {cache} or loaded from there ({error}).") from error


def compiler() -> list[str]:
    """The C++ compiler's command: CXX, the system's, or the ziglang wheel's. Raises Unavailable."""
    try:
        if chosen := shlex.split(os.environ.get("CXX", "")):
            return chosen
    except ValueError as error:
        raise Unavailable(f"CXX is not a command: {error}.") from error
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++"]
    raise Unavailable("There is no C++ compiler: install one, or `pip install ziglang`.")


def _check_folder(cache: Path) -> None:
    """What lies there is loaded into this process. Raises Unavailable when others could have put it there."""
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = cache.stat()
    if status.st_uid != os.geteuid():
        raise Unavailable(f"{cache} belongs to another user: choose a folder of your own with --cache.")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unavailable(f"Others may write to {cache}: `chmod go-w {cache}`, or choose another with --cache.")


def _loaded_before(path: Path) -> ctypes.CDLL | None:
    """None when there is none, or none that loads: it may be for a C++ library that is here no longer."""
    try:
        return ctypes.CDLL(str(path)) if path.exists() else None
    except OSError:
        return None


def _compiled_now(command: list[str], path: Path) -> ctypes.CDLL:
    path.unlink(missing_ok=True)
    _compile(command, path)
    return ctypes.CDLL(str(path))


def _cpu() -> str:
    """What -march=native goes by."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _fingerprint(command: list[str]) -> str:
    """Of everything that the result depends on."""
    found = hashlib.sha256(repr((command, FLAGS, platform.machine(), _cpu())).encode())
    for path in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        found.update(path.read_bytes())
    return found.hexdigest()


def _compile(command: list[str], path: Path) -> None:
    """Appears under its name only when it is complete, so that two engines may start at once."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        arguments = [*command, *FLAGS, "-o", str(made), str(SOURCES / "step.cpp")]
        environment = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder, **os.environ}
        try:
            ended = subprocess.run(arguments, capture_output=True, text=True, timeout=SECONDS, env=environment)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{command[0]} did not finish within {SECONDS} s.") from error
        except OSError as error:
            raise Unavailable(f"The compiler {command[0]} does not run ({error.strerror}); see CXX.") from error
        if ended.returncode != 0 or not made.exists():
            raise Unavailable(f"{command[0]} could not compile the step: {ended.stderr.strip()[-500:]}")
        made.rename(path)
