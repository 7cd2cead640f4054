"""Eight streams that never pause, while a version is published every few seconds; and the same without, to compare.

A publication asks of the engine what the site does (`serving.adapters`): load under a new name beside the others, the
self-test (`serving.selftest`), one token to warm it, then the name that new requests ask for changes, and the version
before is unloaded. The site's own rows and its gateway are not in it. Two adapters take turns. What each of them
writes was recorded alone beforehand, so a stream that did not stay on its version shows in its text.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_load import Answer, Prompt, complete, faults, is_whole, percentile
from benchmarks.serving_peers import HOST, TOKEN, Server, body_of_ours
from serving import selftest
from serving.artifacts import Probes
from serving.client import Engine

STREAMS = 8
EVERY = 5.0  # seconds
N_KNOWN = 40  # prompts of the load with swaps; a version is seldom asked more before the next, so no cache helps
WARM_MESSAGES = [{"role": "user", "content": "Hello"}]
GONE = "model_not_found"
AFTER = 1.0  # seconds after a flip that still count as during the swap


@dataclass
class Told:
    """A stream, and what it asked of whom."""

    version: str
    adapter: str
    prompt: Prompt
    answer: Answer


@dataclass
class Publication:
    version: str
    began_at: float
    loaded_at: float
    tested_at: float  # the self-test has passed
    flipped_at: float  # new requests go here
    first: Answer  # asked at the flip
    unloaded_at: float = 0.0


@dataclass
class Load:
    """Eight streams on whatever `version` is at the moment they ask."""

    server: Server
    prompts: list[Prompt]
    n_tokens: int
    version: str
    adapter: str
    told: list[Told] = field(default_factory=list)
    publications: list[Publication] = field(default_factory=list)
    n_late: int = 0  # requests that met a version which had just left

    def __post_init__(self) -> None:
        self._turns = itertools.cycle(self.prompts)

    async def ask(self) -> Answer:
        """As the gateway does, a request that comes too late for its version asks again, for the one that took its place."""
        prompt, sent_at = next(self._turns), time.perf_counter()
        while True:
            version, adapter = self.version, self.adapter
            answer = await complete(self.server.port, body_of_ours(prompt, self.n_tokens, version), TOKEN)
            if version == self.version or GONE not in answer.error:
                break
            self.n_late += 1
        answer.sent_at = sent_at
        self.told.append(Told(version, adapter, prompt, answer))
        return answer

    async def run(self, seconds: float, beside: Coroutine[Any, Any, None] | None = None) -> None:
        """Until `seconds` are over and the last streams have ended."""
        until = time.perf_counter() + seconds

        async def keep_asking() -> None:
            while time.perf_counter() < until:
                await self.ask()

        await asyncio.gather(*(keep_asking() for _ in range(STREAMS)), *([beside] if beside else []))


def run(
    server: Server, folder: Path, prompts: list[Prompt], n_prompt: int, n_tokens: int, seconds: float
) -> dict[str, Any]:
    """Figures of both loads. `folder` holds the two adapters, adapter-0 and adapter-1; the engine must be awake."""
    engine = Engine(f"http://{HOST}:{server.port}", TOKEN)
    n_known = min(N_KNOWN, len(prompts) // 2)
    alone = record_alone(server, engine, prompts[:n_known], n_tokens)
    known = [p for p in prompts[:n_known] if alone["adapter-0", p] != alone["adapter-1", p]]
    assert known, "the two adapters write the same, so nothing could be seen"
    engine.load("v0", "adapter-0")
    steady = Load(server, prompts[n_known:], n_tokens, "v0", "adapter-0")
    asyncio.run(steady.run(seconds))
    swapped = Load(server, known, n_tokens, "v0", "adapter-0")
    asyncio.run(swapped.run(seconds, publish_repeatedly(swapped, engine, folder, seconds)))
    engine.unload(swapped.version)
    streams = [t.answer for t in (*steady.told, *swapped.told)]
    return {
        "swaps": len(swapped.publications),
        "failed": sum(not is_whole(answer, n_prompt, n_tokens) for answer in streams),
        "failures": faults(streams, n_prompt, n_tokens)[:3],
        "torn": count_torn(swapped.told, alone),
        "swap_streams": len(swapped.told),
        "late": swapped.n_late,
        **timing(steady, swapped),
    }


def record_alone(server: Server, engine: Engine, prompts: list[Prompt], n_tokens: int) -> dict[tuple[str, Prompt], str]:
    """(adapter, prompt) → its greedy text, with nothing else running."""
    texts = {}
    for adapter in ("adapter-0", "adapter-1"):
        engine.load(f"alone-{adapter}", adapter)
        for prompt in prompts:
            body = body_of_ours(prompt, n_tokens, f"alone-{adapter}")
            texts[adapter, prompt] = asyncio.run(complete(server.port, body, TOKEN)).text
        engine.unload(f"alone-{adapter}")
    return texts


async def publish_repeatedly(load: Load, engine: Engine, folder: Path, seconds: float) -> None:
    """A publication every EVERY seconds, the last one early enough to be seen."""
    since = time.perf_counter()
    for number in itertools.count(1):
        due = since + EVERY * number
        if due + AFTER > since + seconds:
            return
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        load.publications.append(await publish(load, engine, folder, f"v{number}", f"adapter-{number % 2}"))


async def publish(load: Load, engine: Engine, folder: Path, version: str, adapter: str) -> Publication:
    """Raises AssertionError when the self-test fails."""
    began_at, before = time.perf_counter(), load.version
    await asyncio.to_thread(engine.load, version, adapter)
    loaded_at = time.perf_counter()
    probes = json.loads((folder / adapter / "probes.json").read_text())
    asked = Probes(probes["token_ids"], probes["effects"])
    tested = await asyncio.to_thread(selftest.measure, engine, "base", version, asked)
    assert tested.is_passed, tested
    tested_at = time.perf_counter()
    await asyncio.to_thread(engine.chat, version, WARM_MESSAGES, max_tokens=1, temperature=0.0)
    load.version, load.adapter, flipped_at = version, adapter, time.perf_counter()
    first = asyncio.create_task(load.ask())
    await asyncio.to_thread(engine.unload, before)
    unloaded_at = time.perf_counter()
    return Publication(version, began_at, loaded_at, tested_at, flipped_at, await first, unloaded_at)


# --- what it says ----------------------------------------------------------------------------------------------------
def count_torn(told: list[Told], alone: dict[tuple[str, Prompt], str]) -> int:
    """Streams that came whole and are not, to the letter, what the version they began on writes when alone."""
    return sum(not t.answer.error and t.answer.text != alone[t.adapter, t.prompt] for t in told)


def timing(steady: Load, swapped: Load) -> dict[str, float]:
    """ms, but for the ratio.

    A stall is what the longest of three waits, at the load's end, the flip and the unload, has beyond the usual one at any
    moment of the steady load. During a swap: from the start of the load to AFTER seconds behind the flip.
    """
    calm = [gap for told in steady.told for gap in told.answer.gaps]
    gaps = [gap for told in swapped.told for gap in told.answer.gaps]
    published = swapped.publications
    busy = [(p.began_at, p.flipped_at + AFTER) for p in published]
    during = [gap for gap in gaps if any(gap[1] > since and gap[0] < to for since, to in busy)]
    usual = percentile([held(calm, float(at)) for at in instants(calm)], 50)
    waits = [max(held(gaps, at) for at in (p.loaded_at, p.flipped_at, p.unloaded_at)) for p in published]
    stalls = [max(wait - usual, 0.0) for wait in waits]
    p99, p99_steady = percentile(lengths(during), 99), percentile(lengths(calm), 99)
    first = [p.first.pieces[0][0] - p.tested_at for p in published if p.first.pieces]
    return {
        "swap_stall_ms": 1e3 * percentile(stalls, 50),
        "swap_stall_max_ms": 1e3 * max(stalls, default=float("nan")),
        "held_ms": 1e3 * percentile(waits, 50),
        "held_steady_ms": 1e3 * usual,
        "publish_to_token_ms": 1e3 * percentile(first, 50),
        "ttft_steady_ms": 1e3 * percentile([t.answer.pieces[0][0] - t.answer.sent_at for t in steady.told if t.answer.pieces], 50),
        "load_ms": 1e3 * percentile([p.loaded_at - p.began_at for p in published], 50),
        "self_test_ms": 1e3 * percentile([p.tested_at - p.loaded_at for p in published], 50),
        "itl_p99_steady_ms": 1e3 * p99_steady,
        "itl_p99_swap_ms": 1e3 * p99,
        "itl_p99_swap_ratio": p99 / p99_steady,
    }  # fmt: skip


def held(gaps: list[tuple[float, float]], at: float) -> float:
    """Seconds that the streams waited around `at`: the median of their gaps that contain it, 0 when none does.

    When the engine's loop is held, all its streams wait in the same gap.
    """
    found = [to - since for since, to in gaps if since <= at < to]
    return float(np.median(found)) if found else 0.0


def instants(gaps: list[tuple[float, float]], n: int = 200) -> np.ndarray:
    """Evenly spread between the first gap and the last, for what is usual."""
    return (
        np.linspace(min(since for since, _ in gaps), max(to for _, to in gaps), n + 2)[1:-1] if gaps else np.array([])
    )


def lengths(gaps: list[tuple[float, float]]) -> list[float]:
    return [to - since for since, to in gaps]
