"""Files that are either there in full or not there at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Replaces path by value as JSON. `durable=False` skips fsync: for progress, which may be lost."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")  # others may write the same file at the same time
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, allow_nan=False)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    part.replace(path)
    if durable:
        fsync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields path.tmp to be filled; on success everything in it is on the disk and it is renamed to path."""
    part = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    for file in part.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    fsync_folder(part)
    if path.exists():  # a folder cannot be renamed onto a full one
        shutil.rmtree(path)
    part.rename(path)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Puts the names in a folder on the disk: a rename is durable only after this."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
