"""Events of a run: what a viewer is told, when it ends, and what many viewers cost; on a real web process."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import psutil
import pytest
from django.contrib.auth.models import User
from django.urls import reverse

from serving import database
from tests.training.rows import add_campaign
from tests.training.web import serving, session
from training import attempts, live, runs
from training.models import Metric, Run

pytestmark = pytest.mark.django_db(transaction=True)
N_VIEWERS = 60


@pytest.fixture
def run() -> Run:
    run = runs.create(add_campaign(), "dpo", {})
    Run.objects.filter(pk=run.pk).update(phase="Training", n_steps=9, system={"rss_mb": 812.0})
    add_steps(run, 1, 2, 3)
    return run


@pytest.fixture
def web(run: Run) -> Iterator[tuple[str, int]]:
    with serving() as web:
        yield web


@pytest.fixture
def cookies(admin_user: User) -> dict[str, Any]:
    return session(admin_user)


def add_steps(run: Run, *steps: int) -> None:
    Metric.objects.bulk_create(Metric(run=run, step=step, values={"step": step, "loss": 0.5}) for step in steps)
    Run.objects.filter(pk=run.pk).update(step=steps[-1])


def events_of(run: Run) -> str:
    return reverse("admin:training_run_events", args=[run.pk])


async def told(answer: httpx.Response) -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
    """Event, id and data of each event."""
    event, at = "", ""
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        event = value if name == "event" else event
        at = value if name == "id" else at
        if name == "data":
            yield event, at, json.loads(value)


def test_it_tells_what_happens_until_the_run_ends(web: tuple[str, int], cookies: dict[str, Any], run: Run) -> None:
    folder = attempts.folder(run.pk, 0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text("hello")

    async def follow() -> list[tuple[str, str, dict[str, Any]]]:
        seen = []
        async with (
            httpx.AsyncClient(base_url=web[0], cookies=cookies, timeout=20) as client,
            client.stream("GET", events_of(run), params={"after": 1}) as answer,
        ):
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert answer.headers["X-Accel-Buffering"] == "no"
            async for event in told(answer):
                seen.append(event)
                if len(seen) == 1:
                    await database.run(add_steps, run, 4)
                elif len(seen) == 2:
                    await database.run(runs.request_cancel, run, run.created_at)
        return seen

    first, second, third, last = asyncio.run(follow())
    assert first[:2] == ("state", "3")
    assert [line["step"] for line in first[2]["metrics"]] == [2, 3]
    assert (first[2]["phase"], first[2]["log"], first[2]["system"]) == ("Training", "hello", {"rss_mb": 812.0})
    assert ([line["step"] for line in second[2]["metrics"]], second[1]) == ([4], "4")
    assert "log" not in second[2], "what did not change is not sent again"
    assert (third[2]["status"], third[2]["is_active"]) == ("cancelled", False)
    assert last[0] == "end"


def test_it_goes_on_from_where_a_browser_had_got(web: tuple[str, int], cookies: dict[str, Any], run: Run) -> None:
    runs.request_cancel(run, run.created_at)
    answer = httpx.get(web[0] + events_of(run), cookies=cookies, headers={"Last-Event-ID": "2"}, params={"after": 0})
    assert answer.text.startswith("retry: ")
    assert [line["step"] for line in json.loads(answer.text.split("data: ")[1].split("\n")[0])["metrics"]] == [3]
    assert answer.text.endswith("event: end\ndata: {}\n\n")


def test_it_shows_nothing_to_who_may_not_look(web: tuple[str, int], run: Run) -> None:
    stan = User.objects.create_user("stan", is_staff=True)
    assert httpx.get(web[0] + events_of(run), cookies=session(stan)).status_code == 403
    otto = User.objects.create_user("otto")
    for cookies in ({}, session(otto)):
        answer = httpx.get(web[0] + events_of(run), cookies=cookies)
        assert (answer.status_code, "/login/" in answer.headers["Location"]) == (302, True)


def test_it_holds_no_thread_and_no_connection_for_a_viewer(
    web: tuple[str, int], cookies: dict[str, Any], run: Run
) -> None:
    process = psutil.Process(web[1])

    def held() -> tuple[int, int]:
        """Threads; open files of the database, or connections to it."""
        files = sum("sqlite3" in file.path for file in process.open_files())
        return process.num_threads(), files + sum(at.status == "ESTABLISHED" for at in process.net_connections())

    async def watch() -> tuple[list[tuple[int, int]], int]:
        async with httpx.AsyncClient(base_url=web[0], cookies=cookies, timeout=60) as client:
            counted: list[tuple[int, int]] = []
            streams: list[tuple[Any, AsyncIterator[tuple[str, str, dict[str, Any]]]]] = []
            for n in (N_VIEWERS // 2, N_VIEWERS):
                while len(streams) < n:
                    stream = client.stream("GET", events_of(run))
                    streams.append((stream, told(await stream.__aenter__())))
                    assert (await anext(streams[-1][1]))[2]["step"] == 3
                await asyncio.sleep(live.LOOK_SECONDS)
                counted.append(held())
            await database.run(add_steps, run, 4)
            arrived = [await anext(seen) for _stream, seen in streams]
            for stream, _seen in streams:
                await stream.__aexit__(None, None, None)
            return counted, sum(at == "4" for _event, at, _data in arrived)

    counted, n_arrived = asyncio.run(watch())
    (threads, files), (more_threads, more_files) = counted
    assert n_arrived == N_VIEWERS
    # What is counted twice is the viewers' own sockets; the pools of the process are full before.
    assert more_threads - threads < 8
    assert more_files - files <= N_VIEWERS // 2 + 8


def test_it_comes_to_an_end_so_that_rights_are_asked_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STREAM_SECONDS", 0.2)
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(live, "PING_SECONDS", 0.05)

    async def read() -> list[str]:
        return [text async for text in live.events(run.pk, 0)]

    said = asyncio.run(read())
    assert said[0] == live.RETRY
    assert sum(text.startswith("id: 3\nevent: state") for text in said) == 1
    assert live.PING in said, "a quiet run keeps its connection"
    assert not any("event: end" in text for text in said), "the browser is to come back"


def test_it_keeps_no_lines_of_an_attempt_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.01)

    async def read() -> list[dict[str, Any]]:
        first = live.events(run.pk, 0)
        assert "id: 3" in [await anext(first), await anext(first)][1]
        await database.run(Metric.objects.all().delete)
        await database.run(Run.objects.filter(pk=run.pk).update, attempt=2)
        await database.run(add_steps, run, 1, 2)
        await anext(first)  # stays, so that what it shares with the next stays
        second = live.events(run.pk, 0)
        texts = [await anext(second), await anext(second)]
        await second.aclose()
        await first.aclose()
        return json.loads(texts[1].split("data: ")[1])["metrics"]

    assert [line["step"] for line in asyncio.run(read())] == [1, 2]


def test_it_sends_a_long_past_piece_by_piece(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_LINES", 40)
    monkeypatch.setattr(live, "SHARED_LINES", 10)
    monkeypatch.setattr(live, "LOOK_SECONDS", 0.01)
    add_steps(run, *range(4, 101))
    runs.request_cancel(run, run.created_at)

    async def read(after: int) -> list[int]:
        texts = [text async for text in live.events(run.pk, after)]
        data = [json.loads(text.split("data: ")[1]) for text in texts if "event: state" in text]
        return [line["step"] for each in data for line in each["metrics"]]

    async def both() -> tuple[list[int], list[int]]:
        return await asyncio.gather(read(90), read(0))

    late, early = asyncio.run(both())
    assert (late, early) == (list(range(91, 101)), list(range(1, 101)))
