"""Versions come and go under running streams: every text is that of the version it began on, whatever else happens."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.site import free_port
from serving.engine.admission import Limits
from serving.engine.engine import Engine, Options, build
from tests.serving import swaps
from tests.serving.engine.conftest import make_adapter, submit
from tests.serving.swaps import Load, Site

N_ADAPTERS = 3
LIMITS = Limits(max_running=64, max_waiting=512)


@pytest.fixture
def folders(tiny_model_dir: Path, adapters_dir: Path) -> Path:
    for i in range(N_ADAPTERS):
        make_adapter(adapters_dir / f"folder-{i}", tiny_model_dir, seed=i, size=0.2)
    return adapters_dir


@pytest.fixture
def engine(tiny_model_dir: Path, folders: Path) -> Engine:
    return build(Options(model=tiny_model_dir, adapters=folders, max_adapters=6, limits=LIMITS))


async def swap(url: str, load: Load) -> dict[str, Any]:
    async with swaps.site_of(url, N_ADAPTERS) as site:
        streams = await swaps.run(site, load)
        expected = await swaps.reference(site, load)
        assert len({tuple(expected[f"folder-{i}", 0][0]) for i in range(N_ADAPTERS)}) == N_ADAPTERS
        return swaps.judge(site, streams, expected)


def test_it_swaps_a_hundred_versions_under_64_streams(engine: Engine, serve: Callable[[Engine], str]) -> None:
    found = asyncio.run(swap(serve(engine), Load(n_tokens=12)))
    assert (found["failed"], found["torn"]) == (0, 0), found
    assert found["streams"] >= 64
    assert found["versions"] > 10, found
    names = [version.name for version in engine.versions.names()]
    assert names == ["base", "v100"]
    assert {version.n_users for version in engine.versions.names()} == {0}
    assert engine.metrics.endings["failed"] == engine.metrics.endings["cancelled"] == 0
    assert engine.metrics.prompt_tokens_cached > engine.metrics.prompt_tokens / 10


def test_it_calls_a_stream_torn_that_is_another_versions() -> None:
    site = Site("http://nowhere", N_ADAPTERS)
    expected = {(f"folder-{i}", 0): ([i], str(i)) for i in range(N_ADAPTERS)}
    right = swaps.Stream("v1", 0, [1], "1", {"v1"}, is_complete=True)
    others = swaps.Stream("v1", 0, [2], "2", {"v1"}, is_complete=True)
    renamed = swaps.Stream("v1", 0, [1], "1", {"v1", "v2"}, is_complete=True)
    cut = swaps.Stream("v1", 0, [1], "1", {"v1"})
    found = swaps.judge(site, [right, others, renamed, cut], expected)
    assert found == {"streams": 4, "versions": 1, "failed": 1, "torn": 2, "errors": []}
    asyncio.run(site.close())


def test_it_never_answers_wrongly_after_it_was_killed(tiny_model_dir: Path, folders: Path) -> None:
    asyncio.run(kill_and_come_back(tiny_model_dir, folders))


async def kill_and_come_back(model: Path, folders: Path) -> None:
    port, load = free_port(), Load(n_streams=8, n_tokens=400)
    url = f"http://127.0.0.1:{port}"
    async with swaps.site_of(url, N_ADAPTERS) as site:
        with swaps.start(model, folders, port) as process:
            await swaps.wait_until_ready(url)
            await site.publish()
            streams = [asyncio.ensure_future(site.stream(load, i)) for i in range(load.n_streams)]
            await until_all_run(url, load.n_streams)
            process.kill()
            cut = await asyncio.gather(*streams)
        assert all(stream.error and not stream.is_complete for stream in cut)
        assert (await site.stream(load, 0)).error.startswith("ConnectError")
        with swaps.start(model, folders, port) as process:
            await swaps.wait_until_ready(url)
            forgotten = await site.stream(load, 0)  # the name is not another version's now
            assert "'v1' is not loaded" in forgotten.error
            await site.load("v1")
            again = [await site.stream(load, i) for i in range(load.n_streams)]
            expected = {("folder-1", i): await site.answer(load, "v1", i) for i in range(load.n_streams)}
            process.kill()
    found = swaps.judge(site, again, expected)
    assert found == {"streams": 8, "versions": 1, "failed": 0, "torn": 0, "errors": []}
    for stream in cut:  # what had come before was right
        ids, text = expected["folder-1", stream.question]
        assert stream.tokens == ids[: len(stream.tokens)]
        assert text.startswith(stream.text)
    assert any(stream.tokens for stream in cut)


async def until_all_run(url: str, n: int) -> None:
    line = f'vllm:num_requests_running{{model_name="base",engine="0"}} {n}'
    async with httpx.AsyncClient(trust_env=False) as http:
        for _ in range(6000):
            if line in (await http.get(f"{url}/metrics")).text.splitlines():
                return
            await asyncio.sleep(0.01)
    raise AssertionError("they do not run")


def test_it_answers_each_the_same_alone_and_among_31_others(tiny_model_dir: Path, folders: Path) -> None:
    engine = build(Options(model=tiny_model_dir, adapters=folders))
    engine.start()
    for i in range(2):
        engine.versions.load(f"v{i}", f"folder-{i}", 0)
    jobs = [([(37 * i + j) % 9000 for j in range(1 + 7 * i)], ("base", "v0", "v1")[i % 3]) for i in range(32)]
    how: dict[str, Any] = {"max_tokens": 40, "ignore_eos": True}
    alone = []
    for prompt, name in jobs:
        sequence, listener = submit(engine, prompt, name, **how)
        assert listener.wait().done
        alone.append(sequence.tokens)
    for version in engine.versions.names():
        engine.prefixes.drop(version.uid)
    barrier = threading.Barrier(len(jobs))
    together: dict[int, list[int]] = {}

    def ask(i: int) -> None:
        barrier.wait()
        sequence, listener = submit(engine, *jobs[i], **how)
        assert listener.wait().done
        together[i] = sequence.tokens

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.stop()
    engine.join(10)
    assert [together[i] for i in range(len(jobs))] == alone
    assert len({tuple(tokens) for tokens in alone}) > 16
