"""The way into the database for asynchronous code: a synchronous function, awaited, that runs in a thread.

`run` is for queries, that is, for almost everything. It has a few threads that stay, so that neither a request nor an
open stream costs one. SQLite's connections stay open in them, since opening one costs three times what a query does;
PostgreSQL's go back to their pool, where nothing is lost by it.

On SQLite a long write of another process can hold them all up, and with them who only reads, for up to the 20 s that a
writer waits. More threads would put that off by as many answers, since each ends with a write, and contend for the one
lock at all other times: 400 writes took 0.06 s in 4 threads, 0.1 s in 16. Where it counts, PostgreSQL is the answer.

`run_long` is for a function that asks engines, which may take minutes: with `run` it would hold up every request of the
process, and in `asyncio.to_thread` what all streams render. It has threads of its own, and keeps no connection in them.

What needs neither belongs into `asyncio.to_thread`, where the caller's language is lost (serving/threads.py). Django's
own ways (`sync_to_async`, `aget`) are for none of this: under ASGI they make a thread for each request, which with its
connection stays as long as the response, for a stream perhaps for hours; elsewhere they have one thread for all. The one
exception is a download (labeling/exports_files.py): it reads from one cursor, hence in one thread, to its end.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from django.db import connections

from serving.threads import carried

N_THREADS = 4
# As many versions as engines hold by default may be loading at once. Each may keep a connection to PostgreSQL meanwhile,
# so DATABASE_POOL covers both of these and WEB_THREADS.
N_LONG_THREADS = 4

Given = ParamSpec("Given")
Result = TypeVar("Result")
_threads = ThreadPoolExecutor(N_THREADS, thread_name_prefix="database")
_long_threads = ThreadPoolExecutor(N_LONG_THREADS, thread_name_prefix="engines")


def run(function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> "asyncio.Future[Result]":
    """To be awaited. It goes on when whoever awaits it shielded is cancelled. It speaks the caller's language."""
    call = partial(_kept, carried(partial(function, *args, **kwargs)))
    return asyncio.get_running_loop().run_in_executor(_threads, call)


async def run_long(function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
    """The same, for a function that asks engines."""
    call = partial(_closed, carried(partial(function, *args, **kwargs)))
    return await asyncio.get_running_loop().run_in_executor(_long_threads, call)


def _kept(call: Callable[[], Result]) -> Result:
    try:
        return call()
    finally:
        for connection in connections.all(initialized_only=True):
            if connection.vendor != "sqlite" or connection.errors_occurred:
                connection.close_if_unusable_or_obsolete()


def _closed(call: Callable[[], Result]) -> Result:
    try:
        return call()
    finally:
        connections.close_all()
