"""What the gateway adds to a direct call to an engine, and how many silent streams one web process holds.

    python -m benchmarks.gateway [--requests 300] [--streams 1000] [--seconds 25] [--postgresql] [--litellm PATH]
        [--engine URL --engine-token TOKEN --model base]

A real web process (`python -m alignapp.processes web`) on a database of its own, in front of an engine that answers at once
(benchmarks/gateway_engine.py), each in a process of its own. The same request goes to the engine and through the gateway in
turn over kept connections, so that whatever else the machine does befalls both; overhead is the difference of the medians
(of the 99th percentiles). "stream" is the time to the first part. Then so many streams are opened whose engine says
nothing; while they are held, requests are measured as before; then the engine answers, and every stream is read to its end.
--litellm measures LiteLLM's proxy in front of the same engine in the same turn: PATH is its command, in an environment made
with `pip install "litellm[proxy]"`; it has a key and one worker, and neither database nor log.
--engine measures with a real engine instead; no silent streams then. Prints tables and one JSON line last.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from benchmarks import machine
from benchmarks.gateway_engine import TEXT
from benchmarks.labeling import Bench, cpu_seconds
from benchmarks.site import free_port
from benchmarks.voters import percentile
from tests.services import postgresql

TOKEN = "token-of-the-benchmark"  # noqa: S105
PEER_KEY = "sk-key-of-the-peer"
PROMPT = "Tell me in one sentence what is well. " * 12  # about 128 tokens
PREPARE = """
from datetime import timedelta
from django.contrib.auth.models import User
from django.utils import timezone
from serving import keys
key, text = keys.create(User.objects.create_user("ada"), "benchmark", ["chat"], timezone.now())
keys.set_limits(key, requests=0, tokens=0, concurrent=0)
print("key", text)
"""
PATH = "/v1/chat/completions"
Figures = dict[str, float]


@dataclass
class Target:
    """One way to the engine: a kept connection, and what each request took in milliseconds."""

    name: str
    url: str
    key: str
    model: str
    took: dict[str, list[float]] = field(default_factory=lambda: {"whole": [], "stream": []})

    def __post_init__(self) -> None:
        self.prefix = urlsplit(self.url).path.removesuffix("/v1")
        self.connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=120)

    def ask(self, *, is_stream: bool) -> None:
        began = time.perf_counter()
        self.connection.request("POST", self.prefix + PATH, body(self.model, PROMPT, is_stream), headers(self.key))
        answer = self.connection.getresponse()
        first = answer.read1(1 << 16) if is_stream else b""
        at_first = time.perf_counter()
        text = first + answer.read()
        if answer.status != 200 or (is_stream and b"[DONE]" not in text):
            raise SystemExit(f"{self.name} answered {answer.status}: {text[:500]!r}")
        took = (at_first if is_stream else time.perf_counter()) - began
        self.took["stream" if is_stream else "whole"].append(1000 * took)


def body(model: str, text: str, is_stream: bool) -> bytes:
    asked = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 16, "stream": is_stream}
    return json.dumps(asked).encode()


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


def at(bench: Bench) -> str:
    return f"http://127.0.0.1:{bench.port}"


# --- processes --------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[str]:
    """A server that lists models, and its URL."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        request = urllib.request.Request(f"{url}/v1/models", headers=headers(PEER_KEY))  # noqa: S310
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(request, timeout=1).close()  # noqa: S310
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} does not start.")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def stand_in() -> contextlib.AbstractContextManager[str]:
    port = free_port()
    return running([sys.executable, "-m", "benchmarks.gateway_engine", str(port)], port)


def litellm(path: str, folder: Path, engine: str, token: str, model: str) -> contextlib.AbstractContextManager[str]:
    route = {"model": f"openai/{model}", "api_base": f"{engine}/v1", "api_key": token}
    config = {
        "model_list": [{"model_name": model, "litellm_params": route}],
        "general_settings": {"master_key": PEER_KEY},
    }
    file, port = folder / "litellm.yaml", free_port()
    file.write_text(json.dumps(config))  # JSON is YAML
    return running([path, "--config", str(file), "--host", "127.0.0.1", "--port", str(port)], port)


def prepared(folder: Path, database: str, engine: str, token: str) -> tuple[Bench, str]:
    """A migrated site in front of this engine, and a key."""
    model = folder / "model"
    model.mkdir()
    (model / "alignapp-model.json").write_text(json.dumps({"sha256": "5" * 64, "chat_template_sha256": "6" * 64}))
    bench = Bench(database, folder, 1)
    bench.environment |= {"ENGINE_URLS": engine, "ENGINE_TOKEN": token, "MODEL": str(model), "LOG_LEVEL": "WARNING"}
    bench.manage("migrate", "--verbosity", "0")
    command = [sys.executable, "manage.py", "shell", "--no-imports", "--verbosity", "0", "-c", PREPARE]
    said = subprocess.run(command, env=bench.environment, check=True, capture_output=True, text=True).stdout
    return bench, said.split("key ", 1)[1].strip()


# --- overhead ---------------------------------------------------------------------------------------------------------
def in_turn(targets: list[Target], n: int) -> None:
    for i in range(n):
        for target in targets if i % 2 else targets[::-1]:
            target.ask(is_stream=False)
            target.ask(is_stream=True)


def warm(targets: list[Target]) -> None:
    """Connections, caches and code; what it took is forgotten."""
    in_turn(targets, 20)
    for target in targets:
        target.took = {"whole": [], "stream": []}


def compared(targets: list[Target], suffix: str = "") -> Figures:
    """Each target beside the first, which is the engine itself."""
    figures: Figures = {}
    print(f"\n{'ms':<10} {'whole p50':>10} {'p99':>8} {'stream p50':>11} {'p99':>8}")
    for target in targets:
        shown = [percentile(target.took[kind], share) for kind in ("whole", "stream") for share in (0.5, 0.99)]
        print(f"{target.name:<10} {shown[0]:>10.2f} {shown[1]:>8.2f} {shown[2]:>11.2f} {shown[3]:>8.2f}")
        for kind, share, value in zip(("whole",) * 2 + ("stream",) * 2, ("p50", "p99") * 2, shown, strict=True):
            direct = percentile(targets[0].took[kind], {"p50": 0.5, "p99": 0.99}[share])
            middle = "" if kind == "whole" else "stream_"
            if target is not targets[0]:
                figures[f"{target.name}_{middle}overhead_ms_{share}{suffix}"] = value - direct
    return figures


# --- silent streams ---------------------------------------------------------------------------------------------------
@dataclass
class Held:
    """A stream that is read in the background."""

    received: bytearray = field(default_factory=bytearray)
    failure: str = ""

    @property
    def n_pings(self) -> int:
        return self.received.count(b": ping\n")

    @property
    def is_right(self) -> bool:
        found = [json.loads(line[6:]) for line in bytes(self.received).split(b"\n") if line.startswith(b"data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found)
        return text == "".join(TEXT) and b"data: [DONE]" in self.received


async def hold(port: int, key: str, stream: Held) -> None:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = body("current", "wait", is_stream=True)
        lines = [
            f"POST {PATH} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Connection: close",
            f"Content-Length: {len(sent)}",
        ]
        lines += [f"{name}: {value}" for name, value in headers(key).items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + sent)
        while chunk := await reader.read(1 << 16):
            stream.received += chunk
        writer.close()
    except OSError as error:
        stream.failure = repr(error)


def _all_pinged(streams: list[Held], n: int) -> bool:
    return all(stream.n_pings >= n for stream in streams)


async def silent(bench: Bench, engine: str, key: str, n: int, seconds: float, web: psutil.Process) -> Figures:
    before, n_threads, began = web.memory_info().rss, web.num_threads(), time.monotonic()
    streams = [Held() for _ in range(n)]
    readers = [asyncio.create_task(hold(bench.port, key, stream)) for stream in streams]
    while not _all_pinged(streams, 1):
        await asyncio.sleep(0.2)
        if time.monotonic() - began > 120:
            silent_ones = sum(stream.n_pings == 0 for stream in streams)
            raise SystemExit(f"{silent_ones} of {n} streams had no sign of life in 120 s, such as {streams[-1]}")
    opened = time.monotonic() - began
    targets = [Target("direct", engine, TOKEN, "base"), Target("gateway", at(bench), key, "current")]
    ends_at = time.monotonic() + seconds
    await asyncio.to_thread(warm, targets)
    while time.monotonic() < ends_at:
        await asyncio.to_thread(in_turn, targets, 30)
    figures = compared(targets, suffix="_while_held")
    rss = web.memory_info().rss
    await asyncio.to_thread(urllib.request.urlopen, urllib.request.Request(f"{engine}/release", method="POST"))  # noqa: S310
    await asyncio.wait(readers, timeout=60)
    n_right = sum(stream.is_right for stream in streams)
    per_stream = (rss - before) / n / 1024
    print(
        f"\n{n} silent streams, all with comments after {opened:.1f} s; held {seconds:.0f} s longer; {n_right} ended well"
    )
    print(f"web process: {before / 2**20:.0f} → {rss / 2**20:.0f} MiB, {per_stream:.1f} KiB a stream, ", end="")
    print(f"{n_threads} → {web.num_threads()} threads; comments each: {min(s.n_pings for s in streams)} or more")
    return {**figures, "idle_streams_held": n_right, "rss_kib_per_stream": per_stream, "rss_mib": rss / 2**20}


# --- all of it --------------------------------------------------------------------------------------------------------
def measure(options: argparse.Namespace, folder: Path, database: str) -> Figures:
    with contextlib.ExitStack() as stack:
        engine = options.engine or stack.enter_context(stand_in())
        token = options.engine_token if options.engine else TOKEN
        bench, key = prepared(folder, database, engine, token)
        web = stack.enter_context(bench.web())
        targets = [Target("direct", engine, token, options.model), Target("gateway", at(bench), key, "current")]
        if options.litellm:
            url = stack.enter_context(litellm(options.litellm, folder, engine, token, options.model))
            targets.append(Target("litellm", url, PEER_KEY, options.model))
        warm(targets)
        before = cpu_seconds(web)
        in_turn(targets, options.requests)
        figures = {"gateway_cpu_ms": 1000 * (cpu_seconds(web) - before) / (2 * options.requests)}
        figures |= compared(targets)
        print(f"{figures['gateway_cpu_ms']:.2f} ms of processor time a request in the web process")
        if options.streams and not options.engine:
            figures |= asyncio.run(silent(bench, engine, key, options.streams, options.seconds, web))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__.split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=300, help="of each kind, to each")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=25, help="to hold them, once all had a comment")
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite")
    parser.add_argument("--litellm", default="", help="LiteLLM's command")
    parser.add_argument("--engine", default="")
    parser.add_argument("--engine-token", default=os.environ.get("ENGINE_TOKEN", ""))
    parser.add_argument("--model", default="base", help="the engine's name for it")
    options = parser.parse_args()
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(machine.describe())
    with tempfile.TemporaryDirectory(prefix="alignapp-gateway-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # as root, PostgreSQL's user must be able to enter
        sqlite = f"sqlite:///{folder / 'db.sqlite3'}"
        database = stack.enter_context(postgresql(folder)) if options.postgresql else sqlite
        figures = measure(options, folder, database)
    kind = "postgresql" if options.postgresql else "sqlite"
    print(json.dumps({"benchmark": "gateway", "database": kind, **{k: round(v, 3) for k, v in figures.items()}}))


if __name__ == "__main__":
    main()
