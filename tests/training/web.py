"""A web process (uvicorn, as in use) on the tests' own database, and people's sessions in it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from benchmarks.site import OF_TESTS, REPOSITORY, free_port


def _database_url() -> str:
    """Of the database that the test uses now."""
    at = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{at['NAME']}"
    return f"postgres://{at['USER']}:{at['PASSWORD']}@{quote(at['HOST'], safe='')}:{at['PORT']}/{at['NAME']}"


@contextmanager
def serving() -> Iterator[tuple[str, int]]:
    """Address and process id of a web process that reads what the test writes (and commits)."""
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if key not in OF_TESTS}
    environment |= {"DATABASE_URL": _database_url(), "PORT": str(port), "ALLOWED_HOSTS": "127.0.0.1"}
    command = [sys.executable, "-m", "uvicorn", "alignapp.asgi:application", "--port", str(port), "--lifespan", "off"]
    command += ["--log-level", "warning", "--timeout-graceful-shutdown", "1"]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(f"{address}/healthz", process)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            httpx.get(url).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise RuntimeError("the web process ended")


def session(user: User) -> dict[str, Any]:
    """Cookies of somebody who is logged in."""
    client = Client()
    client.force_login(user)
    return {"sessionid": client.cookies["sessionid"].value}
