"""The web process: `uvicorn alignapp.asgi:application`."""

import asyncio
import contextvars
import gc
import os
from concurrent.futures import ThreadPoolExecutor
from inspect import iscoroutinefunction

import django
from asgiref.sync import SyncToAsync
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.base import BaseHandler
from django.db import close_old_connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import Resolver404, resolve

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "alignapp.settings")


class Handler(ASGIHandler):
    """Django's, with one thread hop for a synchronous view.

    Django runs every middleware of an ASGI site as a coroutine that hops to a thread and back: two dozen hops around a
    view that is synchronous anyway. Here such a view goes through the same middleware in one of a few threads that are
    kept. What finds none free waits in a queue, where waiting costs neither a thread nor a database connection.
    Asynchronous views (streams, the gateway) go Django's way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._synchronous = BaseHandler()
        self._synchronous.load_middleware(is_async=False)
        self._threads = ThreadPoolExecutor(settings.WEB_THREADS, thread_name_prefix="web")

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        if _is_async(request.path_info):
            return await super().get_response_async(request)
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        response = await loop.run_in_executor(self._threads, context.run, self._respond, request)
        if response.streaming:
            _give_thread_back()
        return response

    def _respond(self, request: HttpRequest) -> HttpResponseBase:
        try:
            return self._synchronous.get_response(request)
        finally:
            close_old_connections()  # Django does so where a response ends, which is another thread


def _give_thread_back() -> None:
    """Ends the thread in which Django sent its signal that the request began, else kept until the response ends.

    A stream may last for hours, and the view had a thread of its own. Whoever needs one again, gets another.
    """
    request = SyncToAsync.thread_sensitive_context.get(None)
    executor = SyncToAsync.context_to_thread_executor.pop(request, None) if request else None
    if executor is not None:
        executor.shutdown(wait=False)


def _is_async(path: str) -> bool:
    try:
        return iscoroutinefunction(resolve(path).func)
    except Resolver404:
        return False


django.setup(set_prefix=False)
application = Handler()
# What is loaded by now stays. Without this the collector walks through all of it every few requests: a fifth of the
# processor time of a vote (benchmarks/labeling.py).
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 20, 20)
