"""What must be true before anything is started. Each check raises NotReady with one sentence that says what to do."""

import errno
import fcntl
import shutil
import socket
from pathlib import Path
from typing import IO

from serving.engine import model_folder

MIN_FREE_BYTES = 1024**3


class NotReady(Exception):
    """Alignapp cannot start; the message tells a person why, and what to do."""


def check_port(host: str, port: int, variable: str) -> None:
    """Nobody else listens on the port, and we may."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise NotReady(_why_no_port(host, port, variable, error)) from None


def _why_no_port(host: str, port: int, variable: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is taken by another program: stop it, or choose another port with {variable}=…"
    if error.errno == errno.EACCES:
        return f"Port {port} needs root: choose one above 1023 with {variable}=…"
    return f"This machine cannot listen on {host}:{port} ({error.strerror}): check HOST and {variable}."


def check_disk(folder: Path) -> None:
    """The folder can be written and has a gigabyte left: a run keeps two checkpoints, and logs grow."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("yes")
        probe.unlink()
    except OSError as error:
        raise NotReady(
            f"{folder} cannot be written ({error.strerror}): fix it, or set VAR_DIR to another folder."
        ) from None
    n_free = shutil.disk_usage(folder).free
    if n_free < MIN_FREE_BYTES:
        raise NotReady(
            f"Only {n_free // 2**20} MB are free in {folder}, and Alignapp needs 1 GB: make room, or set VAR_DIR to another disk."
        )


def check_model(folder: Path) -> None:
    """The folder holds a whole, converted model that the embedded engine can run."""
    if not folder.is_dir():
        raise NotReady(f"There is no model in {folder}: run `make model`, or set MODEL to a folder that has one.")
    try:
        model_folder.check(folder)
    except model_folder.BrokenModel as error:
        raise NotReady(f"The model is broken: {error}") from None


def lock(folder: Path) -> IO[str]:
    """Holds the folder for one `manage.py up` until the file is closed or its process ends."""
    file = (folder / "up.lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise NotReady(
            f"Alignapp is already running on {folder}: stop it (Ctrl-C there), or set VAR_DIR to another folder."
        ) from None
    return file
