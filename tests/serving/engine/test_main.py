"""The engine as a process: it starts, says why it cannot, and stops when told to."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.site import free_port
from serving.engine.__main__ import main
from tests.serving.engine.conftest import TOKEN


@pytest.fixture
def port() -> int:
    return free_port()


def start(model: Path, port: int, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "serving.engine", "--model", str(model), "--port", str(port)]
    return subprocess.Popen(
        command, env={**os.environ, "ENGINE_TOKEN": TOKEN, **environment}, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def process(tiny_model_dir: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    with start(tiny_model_dir, port) as running:
        yield running
        running.kill()


def wait_until_ready(process: subprocess.Popen[str], url: str) -> None:
    while True:
        try:
            assert httpx.get(f"{url}/health").status_code == 200
            return
        except httpx.ConnectError:
            assert process.poll() is None
            time.sleep(0.1)


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_stops_with_a_stream_open(
    process: subprocess.Popen[str], port: int, told: signal.Signals
) -> None:
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(process, url)
    body: dict[str, Any] = {"model": "base", "prompt": [5], "max_tokens": 8000, "ignore_eos": True, "stream": True}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(told)
        rest = [line for line in lines if line]
    assert "shutting down" in rest[-2]
    assert rest[-1] == "data: [DONE]"
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_it_says_why_it_cannot_start(tiny_model_dir: Path, tmp_path: Path, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        cases = [
            (start(tmp_path, port + 1), "alignapp-model.json"),
            (start(tiny_model_dir, port), f"cannot listen on 127.0.0.1:{port}"),
            (start(tiny_model_dir, port + 1, ENGINE_TOKEN=""), "ENGINE_TOKEN"),
        ]
        for process, words in cases:
            with process:
                _, error = process.communicate(timeout=120)
                assert process.returncode == 1
                assert words in error
                assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--context", "-1", "whole number of at least 0"),
        ("--threads", "-2", "whole number of at least 0"),
        ("--max-running", "0", "whole number of at least 1"),
        ("--max-waiting", "15", "whole number of at least 16"),
        ("--max-tokens", "0", "whole number of at least 2"),
        ("--max-adapters", "many", "whole number of at least 0"),
        ("--prefix-cache-mib", "1.5", "whole number of at least 0"),
        ("--port", "70000", "between 0 and 65535"),
        ("--max-wait", "0", "more than 0"),
        ("--max-seconds", "nan", "more than 0"),
    ],
)
def test_it_checks_what_it_is_told(capsys: pytest.CaptureFixture[str], option: str, value: str, words: str) -> None:
    with pytest.raises(SystemExit) as refusal:
        main(["--model", "somewhere", f"{option}={value}"])
    assert refusal.value.code == 2
    assert words in capsys.readouterr().err


def test_it_imports_neither_transformers_nor_django() -> None:
    code = (
        "import sys, serving.engine.__main__; "
        "print([m for m in ('transformers', 'django', 'celery', 'peft') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
