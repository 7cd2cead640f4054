"""Versions are published while programs are answered, and the engine is killed: all of the site between an official client
and an engine's process.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial

import openai
import pytest

from serving import adapters, database, tasks
from serving.client import engines
from serving.models import Adapter, ServedRequest
from tests.serving.openai.asking import logged
from tests.serving.openai.live.traffic import LONG, N_QUESTIONS, Stream, Traffic
from tests.serving.real import RealEngine

pytestmark = [pytest.mark.slow, pytest.mark.ml, pytest.mark.django_db(transaction=True)]
N_STREAMS = 32
N_PUBLICATIONS = 12  # half of them before the engine is killed
Expected = dict[tuple[str, int], str]


@dataclass(frozen=True)
class Publication:
    """Somewhere between these two times `current` began to stand for the version."""

    version: str
    began: float
    ended: float


@dataclass(frozen=True)
class Outage:
    began: float
    ended: float


async def publish(row: Adapter) -> Publication:
    began = time.monotonic()
    await database.run_long(adapters.publish, row)
    return Publication(row.name, began, time.monotonic())


async def publish_each(rows: list[Adapter], traffic: Traffic) -> AsyncIterator[Publication]:
    """Under all streams, and as fast as these end: each has at most one move of the name behind it when the next begins."""
    for row in rows:
        yield await publish(row)
        await until(partial(have_ended, list(traffic.running)))


def have_ended(streams: list[Stream]) -> bool:
    return all(stream.ended for stream in streams)


async def recorded_alone(traffic: Traffic, rows: list[Adapter]) -> Expected:
    """By version and question, what each version says when it is asked by its name and nobody else asks."""
    texts: Expected = {}
    for row in rows:
        await publish(row)
        for question in (*range(N_QUESTIONS), LONG):
            answer = await traffic.ask(row.name, question)
            assert (answer.is_whole, answer.versions) == (True, {row.name})
            texts[row.name, question] = answer.text
    for question in range(N_QUESTIONS):  # else a mixture could not be told
        assert len({texts[row.name, question] for row in rows}) == len(rows)
    return texts


async def reconcile_again_and_again(traffic: Traffic) -> None:
    """As beat does, only more often."""
    while not traffic.is_over:
        await database.run_long(tasks.reconcile)
        await asyncio.sleep(0.5)


async def kill_and_start(site: RealEngine, traffic: Traffic) -> Outage:
    """Killed in the middle of a long answer, and down until everybody has been told so."""
    long = asyncio.create_task(traffic.ask("current", LONG))
    await until(lambda: any(stream.question == LONG and stream.text for stream in traffic.running))
    began, n_before = time.monotonic(), len(traffic.streams)
    await asyncio.to_thread(site.kill)
    assert (await long).is_told_clearly
    await until(lambda: sum(not stream.versions for stream in traffic.streams[n_before:]) >= N_STREAMS)
    await asyncio.to_thread(site.start)
    return Outage(began, time.monotonic())


async def until(is_so: Callable[[], bool]) -> None:
    """Asked in a thread: some of these conditions ask the engine."""
    async with asyncio.timeout(100):
        while True:
            if await asyncio.to_thread(is_so):
                return
            await asyncio.sleep(0.05)


def was_current(stream: Stream, publications: list[Publication]) -> bool:
    """Whether its version may have been what `current` stood for when it was admitted."""
    ends = [publication.ended for publication in publications[1:]] + [float("inf")]
    return any(
        {publication.version} == stream.versions and publication.began <= stream.ended and stream.began <= ended
        for publication, ended in zip(publications, ends, strict=True)
    )


def check_whole(streams: list[Stream], expected: Expected, publications: list[Publication]) -> None:
    for stream in streams:
        [version] = stream.versions
        assert stream.text == expected[version, stream.question], stream
        assert (stream.models, stream.finish_reason) == ({"current"}, "length")
        assert was_current(stream, publications), (stream, publications)


def check_broken(streams: list[Stream], expected: Expected, outage: Outage) -> None:
    """Each was under way during the outage, and was told so; what had come before was right."""
    for stream in streams:
        assert stream.is_told_clearly, stream
        assert stream.began <= outage.ended, stream
        assert stream.ended >= outage.began, stream
        for version in stream.versions:
            assert expected[version, stream.question].startswith(stream.text)
        assert len(stream.versions) <= 1
    assert {bool(stream.versions) for stream in streams} == {True, False}  # in the middle, and at the door


async def test_it_answers_with_one_version_each_while_they_are_published_and_the_engine_is_killed(
    site: RealEngine, rows: list[Adapter], async_client: openai.AsyncOpenAI
) -> None:
    expected = await recorded_alone(Traffic(async_client), rows)
    traffic = Traffic(async_client)
    turns = [rows[i % len(rows)] for i in range(N_PUBLICATIONS)]
    before, after = turns[: N_PUBLICATIONS // 2], turns[N_PUBLICATIONS // 2 :]
    publications = [Publication(rows[-1].name, 0.0, time.monotonic())]
    async with asyncio.TaskGroup() as group:
        for i in range(N_STREAMS):
            group.create_task(traffic.ask_again_and_again(i % N_QUESTIONS))
        group.create_task(reconcile_again_and_again(traffic))
        publications += [made async for made in publish_each(before, traffic)]
        outage = await kill_and_start(site, traffic)
        await until(lambda: {row.name for row in before[-2:]} <= set(engines()[0].models()))
        again = await traffic.ask("current", LONG)
        publications += [made async for made in publish_each(after, traffic)]
        traffic.is_over = True
    whole = [stream for stream in traffic.streams if stream.is_whole]
    check_whole(whole, expected, publications)
    check_broken([stream for stream in traffic.streams if not stream.is_whole], expected, outage)
    assert (again.is_whole, again.versions) == (True, {before[-1].name})
    assert {version for stream in whole for version in stream.versions} == {row.name for row in rows}
    await check_log(traffic.streams, n_alone=len(expected))


async def check_log(streams: list[Stream], n_alone: int) -> None:
    """The log has each of them, whole ones under the version that answered."""
    log = [row for row in await database.run(logged, len(streams) + n_alone) if row.alias]
    assert len(log) == len(streams)
    done = Counter(row.adapter.name for row in log if row.outcome == ServedRequest.Outcome.DONE)
    assert done == Counter(version for stream in streams if stream.is_whole for version in stream.versions)
    assert {row.outcome for row in log} == {ServedRequest.Outcome.DONE, ServedRequest.Outcome.FAILED}
