"""Functions of coroutines in the database's threads: what they keep, what they give back, and what ends them."""

import asyncio
import threading

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import translation
from pytest_django import Settings

from serving import database

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("closed_connections")]


@pytest.fixture(autouse=True)
def _no_other_connection() -> None:
    """The thread of the test itself holds none, so that those of a pool can be counted."""
    connections.close_all()


def used() -> object:
    """The connection that a query has just gone through."""
    User.objects.count()
    return connection.connection


def n_taken() -> int:
    """Connections of the pool that somebody holds outside of any query."""
    stats = connection.pool.get_stats()  # type: ignore[attr-defined]
    return int(stats["pool_size"] - stats["pool_available"])


async def test_it_opens_no_connection_for_each_function() -> None:
    limit = database.N_THREADS
    if connection.vendor != "sqlite":
        limit = connection.pool.max_size  # type: ignore[attr-defined]
    assert len(set(await asyncio.gather(*(database.run(used) for _ in range(40))))) <= limit < 40


async def test_it_keeps_connections_only_where_they_have_no_pool() -> None:
    await asyncio.gather(*(database.run(used) for _ in range(40)))
    if connection.vendor == "sqlite":
        assert set(await asyncio.gather(*(database.run(lambda: connection.connection) for _ in range(40)))) != {None}
    else:
        assert n_taken() == 0


async def test_it_closes_a_connection_that_waited_for_others() -> None:
    def used_here() -> tuple[BaseDatabaseWrapper, bool]:
        User.objects.count()
        wrapper = connections["default"]
        return wrapper, wrapper.is_usable()

    found = await asyncio.gather(*(database.run_long(used_here) for _ in range(2 * database.N_LONG_THREADS)))
    assert [(wrapper.connection, was_usable) for wrapper, was_usable in found] == [(None, True)] * len(found)
    if connection.vendor != "sqlite":
        assert n_taken() == 0


async def test_it_holds_up_nobody_while_engines_are_asked() -> None:
    """More of them than asyncio's own threads, in which answers are rendered and names are looked up."""
    others_end = threading.Event()
    asking = [asyncio.create_task(database.run_long(others_end.wait, 30)) for _ in range(40)]
    try:
        await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.to_thread(abs, -1), 10) == 1
        assert await asyncio.wait_for(database.run(User.objects.count), 10) == 0
    finally:
        others_end.set()
        await asyncio.gather(*asking)


def test_it_has_a_connection_for_each_thread_that_may_hold_one(settings: Settings) -> None:
    assert settings.DATABASE_POOL >= settings.WEB_THREADS + database.N_THREADS + database.N_LONG_THREADS


async def test_it_raises_what_goes_wrong_and_goes_on(ada: User) -> None:
    for _ in range(2 * database.N_THREADS):
        with pytest.raises(IntegrityError):
            await database.run(User.objects.create, username="ada")
    assert await database.run(User.objects.count) == 1


async def test_it_begins_before_anybody_waits_for_it() -> None:
    """So that whoever is cancelled first can still see it end."""
    has_begun = threading.Event()
    begun = database.run(has_begun.set)
    assert await asyncio.to_thread(has_begun.wait, 10)
    await begun


async def test_it_speaks_the_language_of_its_caller() -> None:
    with translation.override("de"):
        assert await database.run(translation.get_language) == "de"
        assert await database.run_long(translation.get_language) == "de"
    assert await database.run(translation.get_language) == "en"
