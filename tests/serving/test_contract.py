"""One client and one way to deploy, for two engines: the embedded one, a process on a tiny model, and a server that behaves
as vLLM does. Each test runs with both.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone
from pytest_django import Settings

from serving import adapters, gateway
from serving.client import Delta, Engine, EngineError, Usage
from serving.models import Adapter, DeploymentEvent
from tests.serving import folders, real, vllm
from tests.serving.real import RealEngine
from tests.serving.vllm import RecordedVllm

pytestmark = pytest.mark.django_db(transaction=True)
TOKEN = real.TOKEN
LATER = timedelta(hours=1)
TALK = [{"role": "user", "content": "Tell me about the sea."}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24}
N_MADE = 6


@dataclass
class Site:
    """A site with one engine. `make` registers the adapter of a number, which does on it what it did in training."""

    engine: Engine
    make: Callable[[int], Adapter]
    restart: Callable[[], object]
    slow_down: Callable[[], object]  # so that a request can be caught at work
    tells_hash: bool


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters for the tiny model, with their true probes."""
    return real.trained(tiny_model_dir, tmp_path_factory.mktemp("trained"), N_MADE)


@pytest.fixture(scope="module")
def process(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    with real.running(tiny_model_dir, tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture(params=["vllm", pytest.param("embedded", marks=[pytest.mark.slow, pytest.mark.ml])])
def site(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Site]:
    settings.ENGINE_TOKEN = TOKEN
    yield from _like_vllm(request, settings) if request.param == "vllm" else _embedded(request, settings)


def _like_vllm(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Site]:
    request.getfixturevalue("base_model")
    trained = request.getfixturevalue("tmp_path") / "trained"
    server = RecordedVllm(TOKEN)

    def slow_down() -> None:
        server.seconds_per_token = 0.05

    with vllm.running(server) as url:
        settings.ENGINE_URLS = [url]
        yield Site(
            Engine(url, TOKEN),
            lambda n: adapters.register(folders.write(trained / str(n), seed=n)),
            server.restart,
            slow_down,
            tells_hash=False,
        )


def _embedded(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Site]:
    process: RealEngine = request.getfixturevalue("process")
    trained: list[Path] = request.getfixturevalue("trained")

    def restart() -> None:
        process.kill()
        process.start()

    with real.on(process, settings, request.getfixturevalue("tiny_model_dir")):
        yield Site(
            Engine(process.url, TOKEN), lambda n: adapters.register(trained[n]), restart, lambda: None, tells_hash=True
        )


# --- the client -------------------------------------------------------------------------------------------------------
def test_it_loads_and_unloads_under_a_name(site: Site) -> None:
    row = site.make(0)
    assert site.engine.models() == ["base"]
    site.engine.load(row.name, str(row.folder))
    assert site.engine.models() == ["base", row.name]
    assert site.engine.resident()[row.name].sha256 == (row.sha256 if site.tells_hash else "")
    assert site.engine.resident()[row.name].path == str(row.folder)
    site.engine.unload(row.name)
    assert site.engine.models() == ["base"]


def test_it_is_told_what_is_not_there(site: Site) -> None:
    with pytest.raises(EngineError) as refused:
        site.engine.load("adapter-1-000000", "/nowhere/adapter-1-000000")
    assert 400 <= refused.value.status < 500
    for act in (
        lambda: site.engine.unload("adapter-1-000000"),
        lambda: site.engine.chat("adapter-1-000000", TALK, **GREEDY),
        lambda: site.engine.prompt_logprobs("adapter-1-000000", [[1, 2, 3]]),
    ):
        with pytest.raises(EngineError, match="adapter-1-000000") as refused:
            act()
        assert refused.value.status == 404
    assert site.engine.models() == ["base"]


def test_it_is_refused_without_the_token(site: Site) -> None:
    with pytest.raises(EngineError) as refused:
        Engine(site.engine.url, "another").models()
    assert refused.value.status == 401


def test_it_answers_each_version_in_its_own_way(site: Site) -> None:
    row = site.make(0)
    adapters.ensure_loaded(row)
    [base] = site.engine.chat("base", TALK, **GREEDY)
    [other] = site.engine.chat(row.name, TALK, **GREEDY)
    assert base.n_tokens == other.n_tokens == 24
    assert base.finish_reason == "length"
    assert base.text != other.text
    assert site.engine.chat(row.name, TALK, **GREEDY) == [other]


def test_it_scores_the_tokens_of_a_text(site: Site) -> None:
    ids = site.engine.tokenize("base", TALK, is_open=True)
    assert len(ids) > len(site.engine.tokenize("base", TALK, is_open=False))
    texts = [ids[:n] for n in range(2, 22)]  # more than one request takes
    scores = site.engine.prompt_logprobs("base", [*texts, ids])
    assert [len(of_text) for of_text in scores] == [*range(1, 21), len(ids) - 1]
    assert all(np.isfinite(of_text).all() and max(of_text) <= 0 for of_text in scores)
    assert scores[3] == pytest.approx(scores[-1][:4], abs=1e-4)  # each text in its place


def test_it_says_that_it_is_well_to_everybody(site: Site) -> None:
    assert httpx.get(f"{site.engine.url}/health").status_code == 200
    assert n_running(site) == 0


def n_running(site: Site) -> float:
    found = re.search(
        r"^vllm:num_requests_running(?:\{.*\})? (.+)$", httpx.get(f"{site.engine.url}/metrics").text, re.M
    )
    assert found is not None
    return float(found[1])


def wait_until_idle(site: Site) -> None:
    while n_running(site):
        time.sleep(0.02)


@pytest.mark.usefixtures("closed_connections")
async def test_it_streams_what_it_answers_whole(site: Site) -> None:
    row = await sync_to_async(site.make)(0)
    await sync_to_async(adapters.ensure_loaded)(row)
    [whole] = await sync_to_async(site.engine.chat)(row.name, TALK, **GREEDY)
    read = [piece async for piece in gateway.deltas(row, TALK, **GREEDY)]
    assert "".join(piece.text for piece in read if isinstance(piece, Delta)) == whole.text
    assert [piece.finish_reason for piece in read if isinstance(piece, Delta) and piece.finish_reason] == ["length"]
    assert isinstance(read[-1], Usage)
    assert read[-1].completion_tokens == 24
    assert read[-1].prompt_tokens > 0


@pytest.mark.usefixtures("closed_connections")
async def test_it_ends_the_answer_of_a_reader_who_leaves(site: Site) -> None:
    site.slow_down()
    base = await sync_to_async(adapters.base)()
    async with aclosing(gateway.deltas(base, TALK, temperature=0.0, max_tokens=2000, ignore_eos=True)) as pieces:
        await anext(pieces)
        assert await sync_to_async(n_running)(site) == 1
    await sync_to_async(wait_until_idle)(site)


# --- deployments ------------------------------------------------------------------------------------------------------
def test_it_publishes_rolls_back_and_leads_a_trial(site: Site) -> None:
    first, second = site.make(0), site.make(1)
    adapters.publish(first)
    adapters.publish(second)
    for row in (first, second):
        row.refresh_from_db()
        assert row.self_test["slope"] == pytest.approx(1, abs=0.1)
        assert row.self_test["rms_expected"] > 0.1  # there was something to test
    assert adapters.rollback().adapter == first
    adapters.start_canary(second, 0.5)
    assert {adapters.resolve("current", str(i)).adapter for i in range(64)} == {first, second}
    assert adapters.promote_canary().adapter == second
    kinds = DeploymentEvent.objects.exclude(alias="").order_by("generation").values_list("kind", flat=True)
    assert list(kinds) == ["published", "published", "published", "rolled back", "canary started", "canary promoted"]


def test_it_brings_an_engine_that_was_restarted_to_what_is_wanted(site: Site) -> None:
    first, second, canary = (site.make(n) for n in range(3))
    adapters.publish(first)
    adapters.publish(second)
    adapters.start_canary(canary, 0.1)
    answers = {row: site.engine.chat(row.name, TALK, **GREEDY) for row in (first, second, canary)}
    site.restart()
    assert site.engine.models() == ["base"]
    adapters.reconcile(timezone.now() + LATER)
    assert set(site.engine.models()) == {"base", first.name, second.name, canary.name}
    assert {row: site.engine.chat(row.name, TALK, **GREEDY) for row in answers} == answers
    assert len({tuple(answer) for answer in answers.values()}) == 3


def test_it_notices_other_weights_under_a_versions_name(site: Site) -> None:
    """One engine tells their hash, the other their folder."""
    row, other = site.make(0), site.make(1)
    adapters.publish(row)
    right = site.engine.chat(row.name, TALK, **GREEDY)
    site.restart()
    site.engine.load(row.name, str(other.folder))
    adapters.reconcile()
    assert site.engine.chat(row.name, TALK, **GREEDY) == right


def test_it_serves_more_versions_than_have_room(site: Site) -> None:
    """One engine refuses the fifth until another leaves; the other takes all, and reads again what it put aside."""
    rows = [site.make(n) for n in range(N_MADE)]
    for row in rows:
        adapters.publish(row)
    assert {rows[-1].name, rows[-2].name} <= set(site.engine.models())
    adapters.publish(rows[0])
    assert site.engine.chat(rows[0].name, TALK, **GREEDY)
    adapters.reconcile(timezone.now() + LATER)
    assert set(site.engine.models()) == {"base", rows[0].name, rows[-1].name}


def test_it_loads_what_another_process_has_just_loaded(site: Site) -> None:
    row = site.make(0)
    site.engine.load(row.name, str(row.folder))
    assert adapters.publish(row).adapter == row
    assert adapters.ensure_loaded(row) == [site.engine]
