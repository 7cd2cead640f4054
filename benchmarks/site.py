"""A whole site of its own in a temporary folder: `manage.py up` on free ports, and a logged-in HTTP client."""

import os
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
PASSWORD = "correct-horse-battery"  # noqa: S105  of a site that lives for minutes on loopback
OF_TESTS = {"DJANGO_SETTINGS_MODULE", "DJANGO_ALLOW_ASYNC_UNSAFE"}  # a site runs as people's sites do


def free_port() -> int:
    """Of loopback, below those that Linux gives to connections (from 32768 on): none can take it before it is bound."""
    for port in random.sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("a thousand ports of loopback are taken")


class Site:
    """`with Site(folder) as site:` migrated, `prepare`d, started and healthy; stopped and waited for at the end."""

    def __init__(self, var: Path, *, model: Path | None = None, prepare: str = "", **environment: str) -> None:
        self.var, self.prepare, self.port = var, prepare, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **{key: value for key, value in os.environ.items() if key not in OF_TESTS},
            "VAR_DIR": str(var),
            "PORT": str(self.port),
            "ENGINE_PORT": str(free_port()),
            "MODEL": str(model or REPOSITORY / "var" / "models" / "smollm2-135m-instruct"),
            "ADMIN_PASSWORD": PASSWORD,
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.log = var / "up.log"

    def manage(self, *arguments: str) -> None:
        subprocess.run([sys.executable, "manage.py", *arguments], cwd=REPOSITORY, env=self.environment, check=True)

    def __enter__(self) -> Self:
        self.var.mkdir(parents=True, exist_ok=True)
        if self.prepare:
            self.manage("migrate", "--verbosity", "0")
            self.manage("shell", "--verbosity", "0", "-c", self.prepare)
        self.start()
        return self

    def start(self, timeout: float = 120) -> None:
        """Raises RuntimeError with the log when `up` ends or is not ready in time (seconds)."""
        with self.log.open("ab") as log:
            position = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-u", "manage.py", "up"],
                cwd=REPOSITORY, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + timeout
        while "is ready" not in (said := self.log.read_bytes()[position:].decode()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"`manage.py up` is not ready:\n{said}")
            time.sleep(0.1)

    def stop(self) -> int:
        """Ends `up` as Ctrl-C would, and returns its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def __exit__(self, *error: object) -> None:
        self.stop()

    def client(self, username: str = "admin", password: str = PASSWORD) -> "Client":
        return Client(self.address, username, password)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Reads the database beside the running site."""
        connection = sqlite3.connect(f"file:{self.var / 'db.sqlite3'}?mode=ro", uri=True)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()


class Client:
    """A browser without a screen: session, CSRF token, JSON."""

    def __init__(self, address: str, username: str, password: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=60, follow_redirects=True)
        self.http.get("/login/").raise_for_status()
        self.post("/login/", data={"username": username, "password": password})
        if "sessionid" not in self.http.cookies:
            raise RuntimeError(f"Cannot log in as {username}.")

    def post(self, path: str, json: Any = None, data: dict[str, Any] | None = None) -> httpx.Response:
        headers = {"X-CSRFToken": self.http.cookies["csrftoken"], "Referer": str(self.http.base_url)}
        answer = self.http.post(path, json=json, data=data, headers=headers)
        if answer.is_error:
            raise RuntimeError(f"POST {path} answered {answer.status_code}: {answer.text[:500]}")
        return answer

    def ask(self, question: str) -> tuple[str, float]:
        """Starts a conversation; the stream's address, and the time (monotonic) of the answer's first text."""
        html = self.post("/chat/start/", json={"content": question}).json()["html"]
        path = re.search(r"/chat/messages/[0-9a-f-]+/stream/", html)
        assert path is not None, html
        first = None
        with self.http.stream("GET", path[0]) as stream:
            for line in stream.iter_lines():
                if first is None and line.startswith("event: text"):
                    first = time.monotonic()
        if first is None:
            raise RuntimeError("The answer had no text.")
        return path[0].split("/")[3], first


ROLES = {  # the first that matches a command line names the process
    "trainer": ("training.ml.train",),
    "engine": ("serving.engine",),
    "web": ("uvicorn",),
    "beat": ("celery", "beat"),
    "train_worker": ("celery", "worker", "train"),
    "worker": ("celery", "worker"),
    "up": ("manage.py", "up"),
}


class MemoryWatch(threading.Thread):
    """Samples the resident memory of a process tree; `peaks` in MB by role, `peak_total` of all at one moment."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peaks, self.peak_total = psutil.Process(root), defaultdict[str, float](float), 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.2):
            sizes = defaultdict[str, float](float)
            for process in [self.root, *self.root.children(recursive=True)]:
                try:
                    sizes[_role(process.cmdline())] += process.memory_info().rss / 2**20
                except psutil.Error:
                    continue
            for role, size in sizes.items():
                self.peaks[role] = max(self.peaks[role], size)
            self.peak_total = max(self.peak_total, sum(sizes.values()))

    def end(self) -> None:
        self._ended.set()
        self.join()


def _role(command: list[str]) -> str:
    text = " ".join(command)
    return next((role for role, words in ROLES.items() if all(word in text for word in words)), "other")
