"""The same limits, counted in the process and in a real Redis."""

import contextlib
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from pytest_django import Settings

from serving import limits
from serving.limits import Asked, InProcess, InRedis, Limited, Limits, Store, Ticket
from serving.models import ApiKey
from tests.services import redis_server

NOW = 1_800_000_000.25
NO_LIMIT = Limits(0, 0, 0)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url.replace("redis+socket://", "unix://")


@pytest.fixture(params=["process", "redis"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "process":
        yield InProcess()
    else:
        with emptied(request.getfixturevalue("redis_url")) as store:
            yield store


@contextlib.contextmanager
def emptied(redis_url: str) -> Iterator[InRedis]:
    """Closed at the end: what a test leaves held would be renewed, and complained of, for as long as the tests run."""
    with contextlib.closing(InRedis(redis_url)) as store:
        store._redis.flushall()
        yield store


def asked(n_tokens: int = 0, *, key: int = 1, lease: str = "a", **of: int) -> Asked:
    return Asked(key, lease, n_tokens, Limits(**{"requests": 0, "tokens": 0, "concurrent": 0, **of}))


def refused(store: Store, asked: Asked, now: float) -> Limited:
    with pytest.raises(Limited) as caught:
        store.take(asked, now)
    return caught.value


def test_it_admits_exactly_as_many_as_the_limit_says(store: Store) -> None:
    def ask(i: int) -> bool:
        try:
            store.take(asked(10, lease=str(i), requests=50, tokens=5_000, concurrent=0), NOW)
        except Limited:
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        admitted = list(threads.map(ask, range(200)))
    assert sum(admitted) == 50


def test_it_counts_tokens_exactly_under_concurrency(store: Store) -> None:
    def ask(i: int) -> int:
        try:
            ticket = store.take(asked(10, lease=str(i), tokens=1_000), NOW)
        except Limited:
            return 0
        store.give_back(ticket, 7, NOW)  # so that there is room for more than a hundred
        return 7

    with ThreadPoolExecutor(16) as threads:
        used = sum(threads.map(ask, range(300)))
    assert 990 < used <= 1_000
    assert store.take(asked(0), NOW).tokens.n == used


def test_it_has_so_many_at_once_and_no_more(store: Store) -> None:
    tickets = [store.take(asked(lease=str(i), concurrent=3), NOW) for i in range(3)]
    assert refused(store, asked(lease="x", concurrent=3), NOW).kind == "concurrent"
    store.take(asked(lease="x", key=2, concurrent=3), NOW)  # another key's are its own
    store.give_back(tickets[1], 0, NOW)
    store.take(asked(lease="x", concurrent=3), NOW)
    assert refused(store, asked(lease="y", concurrent=3), NOW).kind == "concurrent"


def test_it_says_when_there_is_room_again(store: Store) -> None:
    store.take(asked(60, lease="a", tokens=100), NOW)
    store.take(asked(30, lease="b", tokens=100), NOW + 20)
    error = refused(store, asked(50, lease="c", tokens=100), NOW + 30)
    assert (error.kind, error.tokens.n) == ("tokens", 90)
    assert error.seconds is not None
    assert error.seconds == pytest.approx(int(NOW) + 61 - (NOW + 30))
    with pytest.raises(Limited):
        store.take(asked(50, lease="c", tokens=100), NOW + 30 + error.seconds - 0.01)
    store.take(asked(50, lease="c", tokens=100), NOW + 30 + error.seconds)


def test_it_says_that_a_request_is_too_large_for_ever(store: Store) -> None:
    assert refused(store, asked(101, tokens=100), NOW).seconds is None


def test_it_tells_what_is_left_and_when_all_is_forgotten(store: Store) -> None:
    store.take(asked(10, lease="a", requests=9), NOW)
    ticket = store.take(asked(5, lease="b", requests=9), NOW + 10)
    assert (ticket.requests.n, ticket.tokens.n) == (2, 15)
    assert ticket.requests.reset == pytest.approx(int(NOW) + 10 + 61 - (NOW + 10))


def test_it_corrects_the_estimate_in_both_directions(store: Store) -> None:
    ticket = store.take(asked(100, lease="a"), NOW)
    store.give_back(ticket, 40, NOW + 3)
    ticket = store.take(asked(10, lease="b"), NOW + 4)
    assert ticket.tokens.n == 50
    store.give_back(ticket, 70, NOW + 5)
    assert store.take(asked(0, lease="c"), NOW + 6).tokens.n == 110


def test_it_takes_nothing_back_from_another_minute(store: Store) -> None:
    """A stream may take longer than the minute that its estimate was counted in."""
    long = store.take(asked(100, lease="a"), NOW)
    store.take(asked(50, lease="b"), NOW + 90)
    store.give_back(long, 10, NOW + 100)
    assert store.take(asked(0, lease="c"), NOW + 101).tokens.n == 50


@profile(max_examples=150)
@given(st.lists(st.tuples(st.floats(0, 15), st.integers(0, 40)), min_size=1, max_size=60))
def test_it_never_lets_more_than_the_limit_pass_in_a_minute(redis_url: str, steps: list[tuple[float, int]]) -> None:
    """And it decides the same in the process and in Redis, whatever comes when."""
    with emptied(redis_url) as in_redis:
        _check_a_minute([InProcess(), in_redis], steps)


def _check_a_minute(stores: list[Store], steps: list[tuple[float, int]]) -> None:
    now, passed = NOW, list[tuple[float, int]]()
    for i, (wait, n_tokens) in enumerate(steps):
        now += wait
        told = [_told(store, asked(n_tokens, lease=str(i), requests=8, tokens=100), now) for store in stores]
        assert told[0] == told[1]
        if told[0][0] == "":
            passed.append((now, n_tokens))
        recent = [n for at, n in passed if at > now - 60]
        assert len(recent) <= 8
        assert sum(recent) <= 100


def _told(store: Store, asked: Asked, now: float) -> tuple[object, ...]:
    try:
        ticket = store.take(asked, now)
    except Limited as error:
        seconds = None if error.seconds is None else round(error.seconds, 3)
        return error.kind, seconds, error.requests.n, error.tokens.n
    return "", ticket.second, ticket.requests.n, ticket.tokens.n, round(ticket.tokens.reset, 3)


# --- processes that die, and Redis ------------------------------------------------------------------------------------
def test_it_forgets_the_leases_of_a_process_that_was_killed(redis_url: str) -> None:
    program = f"""
        import os, signal, time
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        import django
        django.setup()
        from serving.limits import Asked, InRedis, Limits
        for i in range(2):
            InRedis({redis_url!r}).take(Asked(1, f"dead-{{i}}", 0, Limits(0, 0, 2)), {NOW})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    root = Path(__file__).resolve().parent.parent.parent
    with emptied(redis_url) as store:
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=root, check=False)
        assert refused(store, asked(lease="x", concurrent=2), NOW + limits.LEASE_SECONDS - 1).kind == "concurrent"
        store.take(asked(lease="x", concurrent=2), NOW + limits.LEASE_SECONDS + 1)


def test_it_renews_the_leases_of_long_requests(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RENEWED_EVERY", 0.02)
    with emptied(redis_url) as store:
        began = time.time()
        ticket = store.take(asked(lease="long", concurrent=1), began - limits.LEASE_SECONDS + 0.5)  # about to run out
        while store._redis.zscore("limits:{1}:leases", "long") < began + limits.LEASE_SECONDS:  # type: ignore[operator]
            time.sleep(0.01)
        store.give_back(ticket, 0, time.time())
        store.renew({"long": 1}, time.time())
        assert store._redis.zcard("limits:{1}:leases") == 0


def test_it_goes_on_renewing_after_whatever_went_wrong(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RENEWED_EVERY", 0.02)
    with emptied(redis_url) as store:
        renew, faults = store.renew, [ValueError("a bug")]

        def renew_at_last(held: dict[str, int], now: float) -> None:
            if faults:
                raise faults.pop()
            renew(held, now)

        monkeypatch.setattr(store, "renew", renew_at_last)
        began = time.time()
        store.take(asked(lease="long", concurrent=1), began - limits.LEASE_SECONDS + 5)
        for _ in range(1000):
            if store._redis.zscore("limits:{1}:leases", "long") >= began + limits.LEASE_SECONDS:  # type: ignore[operator]
                return
            time.sleep(0.01)
        raise AssertionError("it is not renewed")


def test_it_renews_nothing_once_it_is_closed(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RENEWED_EVERY", 0.02)
    before = set(threading.enumerate())
    with emptied(redis_url) as store:
        store.take(asked(lease="long"), time.time())
        (renewing,) = {thread for thread in threading.enumerate() if thread.name == "leases"} - before
    renewing.join(5)
    assert not renewing.is_alive()


@pytest.fixture
def key() -> ApiKey:
    return ApiKey(pk=4_000_000 + time.monotonic_ns() % 1_000_000, requests_per_minute=2)


def test_it_counts_for_itself_while_redis_does_not_answer(
    settings: Settings, key: ApiKey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CACHE_URL = f"unix://{tmp_path / 'nobody.sock'}"
    tickets = [limits.take(key, 5), limits.take(key, 5)]
    with pytest.raises(Limited):
        limits.take(key, 5)
    assert caplog.text.count("Redis does not answer") == 1  # and is left alone for a while
    for ticket in tickets:
        limits.settle(ticket, 5)


def test_it_gives_up_leases_when_redis_is_gone_and_asks_it_once(
    settings: Settings, key: ApiKey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(tmp_path) as url:
        settings.CACHE_URL = url.replace("redis+socket://", "unix://")
        tickets = [limits.take(key, 5), limits.take(key, 5)]
    for ticket in tickets:
        assert isinstance(ticket.store, InRedis)
        limits.settle(ticket, 5)
        assert not ticket.store.is_tried
        assert ticket.lease not in ticket.store._held
    assert caplog.text.count("Redis does not answer") == 1


def test_it_takes_the_sites_limits_where_the_key_has_none(settings: Settings) -> None:
    settings.KEY_REQUESTS_PER_MINUTE, settings.KEY_TOKENS_PER_MINUTE, settings.KEY_MAX_CONCURRENT = 7, 8, 9
    assert limits.of(ApiKey()) == Limits(7, 8, 9)
    assert limits.of(ApiKey(requests_per_minute=0, max_concurrent=1)) == Limits(0, 8, 1)


def test_it_holds_nothing_of_what_has_ended(store: Store) -> None:
    tickets: list[Ticket] = [store.take(asked(1, lease=str(i)), NOW) for i in range(5)]
    assert store.n_running(1, NOW) == 5
    for ticket in tickets:
        store.give_back(ticket, 1, NOW)
    assert store.n_running(1, NOW) == 0
