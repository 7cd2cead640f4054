"""The web process: `uvicorn alignapp.asgi:application`."""

import asyncio
import gc
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from typing import Any

import django
from asgiref.sync import SyncToAsync
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.db import close_old_connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import translation

from serving.threads import carried

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "alignapp.settings")


class Handler(ASGIHandler):
    """Django's, with one thread hop for a view.

    Django runs every middleware of an ASGI site as a coroutine that hops to a thread and back: two dozen hops around a
    view that is synchronous anyway, as all are (tests/alignapp/test_asgi.py). Here it goes through the same middleware
    in one of a few threads that are kept. What finds none free waits in a queue, where waiting costs neither a thread
    nor a database connection. What a view streams is a coroutine's, in none of them; /v1/, for programs, has a way of
    its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._threads = ThreadPoolExecutor(settings.WEB_THREADS, thread_name_prefix="web")
        self._programs = import_module("serving.openai.asgi")  # not at the top: models want Django set up

    def load_middleware(self, is_async: bool = False) -> None:
        """The synchronous one, whichever Django asks for."""
        super().load_middleware(is_async=False)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and self._programs.is_for_programs(scope):
            await self._programs.serve(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        call = carried(partial(self._respond, request))
        response = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        if response.streaming:
            _give_thread_back()
            translation.activate(getattr(request, "LANGUAGE_CODE", settings.LANGUAGE_CODE))  # of what is yet to come
        return response

    def _respond(self, request: HttpRequest) -> HttpResponseBase:
        try:
            return self.get_response(request)
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


django.setup()
application = Handler()
# A stream that waits for its engine has two sockets; 1024, the usual soft limit, would end at 500 of them.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, _hard))
# What is loaded by now stays. Without this the collector walks through all of it every few requests: a fifth of the
# processor time of a vote (benchmarks/labeling.py).
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 20, 20)
