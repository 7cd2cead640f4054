"""The swap load: many streams while versions are published, and what a check of every text finds.

`python -m tests.serving.swaps MODEL` does it with a real model in an engine process of its own, and prints one JSON line.
`--invariance` also compares greedy tokens alone and in company, over at least 10,000 tokens.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.site import free_port
from tests.serving.engine.conftest import TOKEN, make_adapter

QUESTIONS = ("Why is the sky blue?", "Write a poem about a lighthouse.", "What is in bread?", "Tell me about Rome.")
LONG_START = "You are a patient teacher who answers in simple words. " * 12  # several blocks that prompts share


@dataclass
class Alias:
    """The stable name, as a gateway keeps it: read once when a request is admitted."""

    version: str


@dataclass
class Stream:
    """One streamed answer: the version that it was admitted on and what came of it."""

    version: str
    question: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    models: set[str] = field(default_factory=set)  # named in its events
    error: str = ""
    is_complete: bool = False


@dataclass(frozen=True)
class Load:
    """What is asked; every other prompt begins with the same blocks."""

    n_streams: int = 64
    n_publications: int = 100
    n_tokens: int = 24

    def body(self, model: str, question: int) -> dict[str, Any]:
        start = LONG_START if question % 2 else f"({question}) "
        text = start + QUESTIONS[question % len(QUESTIONS)]
        return {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.n_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }


class Site:
    """A client of one engine, with `n_adapters` folders that can be published in turn."""

    def __init__(self, url: str, n_adapters: int) -> None:
        self.url, self.n_adapters = url, n_adapters
        self.alias = Alias("base")
        self.n_published = self.n_readmitted = 0
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    def folder_of(self, version: str) -> str:
        """Names are never used twice; the weights come from one of the folders."""
        return f"folder-{int(version.removeprefix('v')) % self.n_adapters}"

    async def publish(self) -> None:
        """Load a new version under a new name, move the alias, unload the old one."""
        self.n_published += 1
        new, old = f"v{self.n_published}", self.alias.version
        await self.load(new)
        self.alias.version = new
        if old != "base":
            (await self._http.post("/v1/unload_lora_adapter", json={"lora_name": old})).raise_for_status()

    async def load(self, version: str) -> None:
        body = {"lora_name": version, "lora_path": self.folder_of(version)}
        for _ in range(6000):  # while versions that are leaving have streams yet
            answer = await self._http.post("/v1/load_lora_adapter", json=body)
            if answer.status_code != httpx.codes.INSUFFICIENT_STORAGE:
                break
            await asyncio.sleep(0.01)
        answer.raise_for_status()

    async def admitted(self, load: Load, question: int) -> Stream:
        """As a gateway does: a version that has gone between the look at the alias and the engine's door is no failure,
        nothing has begun; the alias is looked at again.
        """
        while "is not loaded" in (found := await self.stream(load, question)).error:
            self.n_readmitted += 1
        return found

    async def stream(self, load: Load, question: int) -> Stream:
        found = Stream(self.alias.version, question)
        body = {**load.body(found.version, question), "stream": True}
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    found.error = (await answer.aread()).decode()
                    return found
                async for line in answer.aiter_lines():
                    _read(found, line)
        except httpx.HTTPError as error:
            found.error = f"{type(error).__name__}: {error}"
        return found

    async def answer(self, load: Load, version: str, question: int) -> tuple[list[int], str]:
        """The same question, not streamed."""
        answer = await self._http.post("/v1/chat/completions", json=load.body(version, question))
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        return choice["token_ids"], choice["message"]["content"]


def _read(stream: Stream, line: str) -> None:
    if line == "data: [DONE]":
        stream.is_complete = not stream.error
    elif line:
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            stream.error = event["error"]["message"]
            return
        stream.models.add(event["model"])
        for choice in event["choices"]:
            stream.tokens += choice.get("token_ids") or []
            stream.text += choice["delta"].get("content") or ""


async def run(site: Site, load: Load) -> list[Stream]:
    """`n_streams` at any time, each begun anew when it has ended, until the last publication; -> all of them."""
    streams: list[Stream] = []
    is_over = asyncio.Event()

    async def ask(i: int) -> None:
        while not is_over.is_set():
            streams.append(await site.admitted(load, i))

    async def publish() -> None:
        for _ in range(load.n_publications):
            await site.publish()
        is_over.set()

    await asyncio.gather(publish(), *(ask(i) for i in range(load.n_streams)))
    return streams


async def reference(site: Site, load: Load) -> dict[tuple[str, int], tuple[list[int], str]]:
    """Greedy tokens and text of every question on every folder's version and the base, each computed alone."""
    found = {}
    for i in range(site.n_adapters):
        name = f"v{10_000 * site.n_adapters + i}"
        await site.load(name)
        for question in range(load.n_streams):
            found[site.folder_of(name), question] = await site.answer(load, name, question)
        (await site._http.post("/v1/unload_lora_adapter", json={"lora_name": name})).raise_for_status()
    for question in range(load.n_streams):
        found["base", question] = await site.answer(load, "base", question)
    return found


def judge(site: Site, streams: list[Stream], expected: dict[tuple[str, int], tuple[list[int], str]]) -> dict[str, Any]:
    """failed: no complete answer; torn: not the text of the version that it began on, or another version's name."""
    torn = 0
    for stream in streams:
        source = stream.version if stream.version == "base" else site.folder_of(stream.version)
        is_right = (stream.tokens, stream.text) == expected[source, stream.question]
        torn += stream.is_complete and not (is_right and stream.models == {stream.version})
    return {
        "streams": len(streams),
        "versions": len({stream.version for stream in streams}),
        "failed": sum(not stream.is_complete for stream in streams),
        "torn": torn,
        "errors": sorted({stream.error for stream in streams if stream.error}),
    }


# --- an engine process -----------------------------------------------------------------------------------------------
def start(model: Path, adapters: Path, port: int, *options: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "serving.engine",
        "--model",
        str(model),
        "--adapters",
        str(adapters),
        "--port",
        str(port),
    ]
    return subprocess.Popen([*command, *options], env={**os.environ, "ENGINE_TOKEN": TOKEN})


async def wait_until_ready(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        for _ in range(1200):
            try:
                if (await http.get(f"{url}/health")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.1)
    raise AssertionError("the engine does not start")


@asynccontextmanager
async def site_of(url: str, n_adapters: int) -> AsyncIterator[Site]:
    site = Site(url, n_adapters)
    try:
        yield site
    finally:
        await site.close()


# --- the real model --------------------------------------------------------------------------------------------------
async def measure_invariance(site: Site, n_tokens: int) -> dict[str, Any]:
    """Greedy tokens of 32 requests alone and all at once: in how many places they differ."""
    load = Load(n_streams=32, n_tokens=-(-n_tokens // 32))
    alone = [await site.answer(load, "base", question) for question in range(load.n_streams)]
    together = await asyncio.gather(*(site.answer(load, "base", question) for question in range(load.n_streams)))
    pairs = [pair for (a, _), (b, _) in zip(alone, together, strict=True) for pair in zip(a, b, strict=True)]
    return {"compared_tokens": len(pairs), "differing_tokens": sum(a != b for a, b in pairs)}


async def main(options: argparse.Namespace) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        adapters = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for i in range(options.adapters):
            make_adapter(adapters / f"folder-{i}", options.model, seed=i, rank=8, size=0.02)
        port = free_port()
        process = stack.enter_context(start(options.model, adapters, port, "--max-adapters", "3"))
        stack.callback(process.kill)
        url = f"http://127.0.0.1:{port}"
        await wait_until_ready(url)
        site = await stack.enter_async_context(site_of(url, options.adapters))
        load = Load(options.streams, options.publications, options.tokens)
        started_at = time.monotonic()
        streams = await run(site, load)
        found: dict[str, Any] = {"seconds": round(time.monotonic() - started_at, 1)}
        found |= {"published": site.n_published, "readmitted": site.n_readmitted}
        found |= judge(site, streams, await reference(site, load))
        return found | (await measure_invariance(site, options.invariance) if options.invariance else {})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.serving.swaps", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--publications", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--adapters", type=int, default=3)
    parser.add_argument(
        "--invariance", type=int, default=0, help="compare this many greedy tokens alone and in company"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(_options()))) + "\n")
