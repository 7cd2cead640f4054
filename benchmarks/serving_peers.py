"""What `benchmarks.serving` compares: each in a process of its own, stopped (SIGSTOP) while another has its turn."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.serving_load import HOST, Answer, Prompt, complete_together
from benchmarks.site import free_port

TOKEN = "a-token-of-the-benchmark"  # noqa: S105  of an engine that lives for minutes on loopback
START_SECONDS = 180
MAX_STREAMS = 32


class Missing(Exception):
    """This peer cannot run here; the message says why."""


def exit_on_sigterm() -> None:
    """As Ctrl-C does: through every `finally`, so that no contender stays behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class Process:
    """A process group that runs only within `awake`."""

    _started: subprocess.Popen[bytes] | None = None

    def open(self, command: list[str], log: Path, environment: dict[str, str], *, has_pipes: bool = False) -> None:
        pipe = subprocess.PIPE if has_pipes else None
        self.log = log
        with log.open("wb") as errors:
            self._started = subprocess.Popen(
                command, env={**os.environ, **environment}, start_new_session=True,
                stdin=pipe or subprocess.DEVNULL, stdout=pipe or errors, stderr=errors,
            )  # fmt: skip

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._started is not None, "not started"
        return self._started

    def signal(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        """Returns when it has stopped, or ended by itself."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    @contextmanager
    def awake(self) -> Iterator[None]:
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.stop()

    def end(self) -> None:
        if self._started is not None and self._started.returncode is None:
            self.signal(signal.SIGKILL)  # one that is stopped takes no other signal
            self.process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace").strip()[-600:]


class Server(Process):
    """A server of /v1/completions. `command` gets the port; `body` makes a request of a prompt and a length."""

    def __init__(
        self, command: Callable[[int], list[str]], body: Callable[[Prompt, int], dict[str, Any]], **environment: str
    ) -> None:
        self.port, self.body = free_port(), body
        self._command, self._environment = command, environment

    def start(self, log: Path) -> None:
        """Returns when it is healthy. Raises Missing."""
        self.open(self._command(self.port), log, self._environment)
        deadline = time.monotonic() + START_SECONDS
        while not self._is_healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                raise Missing(f"did not start: {self.said()}")
            time.sleep(0.2)
        self.stop()

    def ask(self, prompts: list[Prompt], n_tokens: int) -> list[Answer]:
        with self.awake():
            return asyncio.run(complete_together(self.port, [self.body(p, n_tokens) for p in prompts], TOKEN))

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


class Batches(Process):
    """`benchmarks.serving_generate`: all prompts as one static batch."""

    def __init__(self, kind: str, model: Path, threads: int) -> None:
        self._command = [sys.executable, "-m", "benchmarks.serving_generate", kind]
        self._command += ["--model", str(model), "--threads", str(threads)]

    def start(self, log: Path) -> None:
        self.open(self._command, log, {}, has_pipes=True)
        self._line()  # it is ready
        self.stop()

    def ask(self, prompts: list[Prompt], n_tokens: int) -> list[Answer]:
        jobs = self.process.stdin
        assert jobs is not None
        with self.awake():
            jobs.write(json.dumps({"prompts": [p.text for p in prompts], "n_tokens": n_tokens}).encode() + b"\n")
            jobs.flush()
            done = self._line()
        pieces = [(at, "") for at in done["times"]]
        return [Answer(done["sent_at"], pieces, done["n_prompt"], len(pieces)) for _ in prompts]

    def _line(self) -> dict[str, Any]:
        answers = self.process.stdout
        assert answers is not None
        if not (line := answers.readline()):
            self.process.wait()
            raise Missing(f"ended: {self.said()}")
        return json.loads(line)


Peer = Server | Batches


# --- who they are ----------------------------------------------------------------------------------------------------
def ours(model: Path, adapters: Path) -> Server:
    """As `manage.py up` starts it (alignapp/processes.py)."""

    def command(port: int) -> list[str]:
        start = [sys.executable, "-m", "serving.engine", "--model", str(model), "--name", "base"]
        return [*start, "--adapters", str(adapters), "--host", HOST, "--port", str(port)]

    return Server(command, body_of_ours, ENGINE_TOKEN=TOKEN)


def body_of_ours(prompt: Prompt, n_tokens: int, model: str = "base") -> dict[str, Any]:
    asked = {"model": model, "prompt": prompt.text, "max_tokens": n_tokens, "temperature": 0.0, "ignore_eos": True}
    return {**asked, "stream": True, "stream_options": {"include_usage": True}}


def llama_server(program: Path | None, weights: Path | None, threads: int) -> Server:
    if program is None or weights is None:
        raise Missing("it needs --llama-server and its weights (--gguf-bf16, --gguf-q8)")
    if not (program.is_file() and weights.is_file()):
        raise Missing(f"there is no {program if weights.is_file() else weights}")

    def command(port: int) -> list[str]:
        # 320 tokens a slot; its caches of prompts are off, as no prompt comes twice. Tried, in CPU time at 8 and 32 streams:
        # one cache for all slots (-kvu) takes 1.3 to 1.8 times as much, -fa off and -ub 128 1.05 to 1.15, -nr and -np 8 as much.
        flags = f"-t {threads} -tb {threads} -np {MAX_STREAMS} -c {320 * MAX_STREAMS} -cb -fa on --no-cache-prompt --cache-ram 0"
        return [str(program), "-m", str(weights), "--host", HOST, "--port", str(port), *flags.split(), "--no-webui"]

    def body(prompt: Prompt, n_tokens: int) -> dict[str, Any]:
        # Token ids: its own tokenizer splits some texts otherwise.
        return body_of_ours(prompt, n_tokens) | {"prompt": list(prompt.ids), "cache_prompt": False}

    return Server(command, body)


def transformers_serve(model: Path, packages: Path | None, threads: int, *, is_continuous: bool) -> Server:
    """`packages`: a folder with fastapi and what it needs, when they are not installed."""

    def command(port: int) -> list[str]:
        start = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
        start += ["--dtype", "bfloat16", "--host", HOST, "--port", str(port)]
        # Its default would take 60 % of the machine's memory for keys and values.
        return [*start, "--continuous-batching", "--cb-max-memory-percent", "0.1"] if is_continuous else start

    def body(prompt: Prompt, n_tokens: int) -> dict[str, Any]:
        how = {"max_new_tokens": n_tokens, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
        return {"model": str(model), "prompt": prompt.text, "stream": True, "generation_config": json.dumps(how)}

    paths = [str(packages)] if packages else []
    if inherited := os.environ.get("PYTHONPATH"):
        paths.append(inherited)
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}
    return Server(command, body, **offline)
