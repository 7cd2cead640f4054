"""POST /v1/chat/completions, POST /v1/completions, GET /v1/models and /v1/models/<name>, for keys with the scope `chat`.

A request for an answer goes through one hop to the database, which admits it; then to an engine; and when it has ended,
whatever the end, through another, which settles its limits and writes its row of the log.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from functools import wraps
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_exempt

from serving import adapters, database, gateway, requests
from serving.client import EngineDown, EngineError
from serving.openai import admission, bodies, problems
from serving.openai.admission import Admitted
from serving.openai.answers import DONE, Renaming
from serving.openai.bodies import Kind
from serving.openai.problems import Problem

log = logging.getLogger(__name__)

PING = b": ping\n\n"
PING_SECONDS = 10.0  # well below the idle time-out of any proxy
View = Callable[..., Coroutine[Any, Any, HttpResponseBase]]


# --- endpoints --------------------------------------------------------------------------------------------------------
def endpoint(method: str) -> Callable[[View], View]:
    """What all have in common: one method, a request id, how long it took, and errors as OpenAI's clients know them."""

    def decorate(view: View) -> View:
        @csrf_exempt
        @wraps(view)
        async def wrapped(request: HttpRequest, **named: str) -> HttpResponseBase:
            began, request_id = time.monotonic(), _request_id(request)
            try:
                request.get_host()
                if request.method != method:
                    raise Problem(405, _("Use %s here.") % method, "method_not_allowed", headers={"Allow": method})
                response = await view(request, request_id, **named)
            except Exception as error:  # logged, and told in this format too
                response = _problem_of(error, request_id).response()
            took = round((time.monotonic() - began) * 1000)
            return _with(
                response, {"Cache-Control": "no-store", "X-Request-Id": request_id, "OpenAI-Processing-Ms": str(took)}
            )

        return wrapped

    return decorate


@endpoint("POST")
async def chat_completions(request: HttpRequest, request_id: str) -> HttpResponseBase:
    return await _answer(request, request_id, bodies.CHAT)


@endpoint("POST")
async def completions(request: HttpRequest, request_id: str) -> HttpResponseBase:
    return await _answer(request, request_id, bodies.TEXT)


@endpoint("GET")
async def models(request: HttpRequest, request_id: str) -> HttpResponseBase:
    return await _listing(request)


@endpoint("GET")
async def model(request: HttpRequest, request_id: str, name: str) -> HttpResponseBase:
    return await _listing(request, name)


async def _listing(request: HttpRequest, name: str = "") -> HttpResponse:
    body, headers = await database.run(admission.listing, _shown_key(request), name)
    return HttpResponse(body, content_type="application/json", headers=headers)


@csrf_exempt
async def nothing_here(request: HttpRequest) -> HttpResponseBase:
    """Whatever else is asked for below /v1/."""
    words = _("There is nothing at %(method)s %(path)s.") % {"method": request.method, "path": request.path[:200]}
    return _with(Problem(404, words, "unknown_url").response(), {"X-Request-Id": _request_id(request)})


# --- answering --------------------------------------------------------------------------------------------------------
class Answer(StreamingHttpResponse):
    """An answer that has begun: its first part is there, and `rest` gives back at its end what the request holds. So
    whoever does not read to the end closes it. (If nobody does, the garbage collector has it closed: it has begun.)
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(self._joined(first), headers=headers)
        self._rest = rest

    async def _joined(self, first: bytes) -> AsyncGenerator[bytes, None]:
        yield first
        async for part in self._rest:
            yield part

    async def aclose(self) -> None:
        await self._rest.aclose()


async def _answer(request: HttpRequest, request_id: str, kind: Kind) -> Answer:
    """Waits for the answer's first part, so that a refusal can still have its status."""
    admitting = database.run(admission.admit, _shown_key(request), _raw(request), kind, request_id, timezone.now())
    try:
        admitted = await asyncio.shield(admitting)
    except asyncio.CancelledError:  # the reader left meanwhile
        await asyncio.shield(_end_admitted(admitting))
        raise
    headers = {**admitted.limit_headers(), "X-Alignapp-Version": admitted.served.adapter.name}
    if admitted.asked.is_stream:
        parts = _events(admitted)
        headers |= {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        return Answer(await anext(parts), parts, headers)
    parts = _whole(admitted)
    first = await anext(parts)
    headers |= {"Content-Type": "application/json", "Content-Length": str(len(first))}
    return Answer(first, parts, headers)


async def _whole(admitted: Admitted) -> AsyncGenerator[bytes, None]:
    """One part. Its reader has it before the request is settled and logged."""
    served, renaming = admitted.served, Renaming(admitted.asked, admitted.served)
    try:
        answer = await gateway.whole(served.adapter, admitted.kind.path, admitted.asked.parameters, served)
        part = renaming.whole(answer)
        served.note_done()
        yield part
    except (EngineDown, EngineError) as failure:
        served.note_failure(failure)
        raise
    finally:
        renaming.note_use()
        await _end(admitted)


async def _events(admitted: Admitted) -> AsyncGenerator[bytes, None]:
    """The stream, from the first token or the first PING to its end. Raises what the engine does as long as nothing was
    sent; later it is an event.
    """
    served, renaming, is_begun = admitted.served, Renaming(admitted.asked, admitted.served), False
    events = gateway.events(served.adapter, admitted.kind.path, admitted.asked.parameters, served)
    try:
        async with aclosing(kept_alive(events)) as batches:
            async for batch in batches:
                part = PING if batch is None else renaming.batch(batch)
                is_begun = True
                if part:
                    yield part
        served.note_done()
        yield DONE
    except (EngineDown, EngineError) as failure:
        served.note_failure(failure)
        if not is_begun:
            raise
        yield problems.of_engine(failure).event()
    finally:
        renaming.note_use()
        await _end(admitted)


async def kept_alive(batches: gateway.Batches) -> AsyncGenerator[list[str] | None, None]:
    """Each of `batches` as it comes, and None after each PING_SECONDS of silence."""
    next_one: asyncio.Task[list[str]] | None = None
    try:
        while True:
            next_one = next_one or asyncio.create_task(anext(batches))
            await asyncio.wait({next_one}, timeout=PING_SECONDS)
            if not next_one.done():
                yield None
                continue
            ended, next_one = next_one, None
            try:
                batch = ended.result()
            except StopAsyncIteration:
                return
            yield batch
    finally:
        if next_one:
            next_one.cancel()
            await asyncio.gather(next_one, return_exceptions=True)
        await batches.aclose()


async def _end(admitted: Admitted) -> None:
    """Shielded: a reader who leaves cancels this task, and may do so twice."""
    await asyncio.shield(database.run(admission.settle, admitted))


async def _end_admitted(admitting: Awaitable[Admitted]) -> None:
    await _end(await admitting)


# --- requests and errors ----------------------------------------------------------------------------------------------
def _with(response: HttpResponseBase, headers: Mapping[str, str]) -> HttpResponseBase:
    for name, value in headers.items():
        response.headers[name] = value
    return response


def _shown_key(request: HttpRequest) -> str:
    return request.headers.get("Authorization", "")


def _request_id(request: HttpRequest) -> str:
    """The sender's own where it is one, so that their log and ours can be read together."""
    given = request.headers.get("X-Request-Id", "")
    return given if requests.SANE_ID.fullmatch(given) else requests.new_id()


def _raw(request: HttpRequest) -> bytes:
    if len(request.body) > settings.MAX_PROMPT_BYTES:
        raise problems.too_large(settings.MAX_PROMPT_BYTES)
    return request.body


def _problem_of(error: Exception, request_id: str) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, EngineDown | EngineError):
        return problems.of_engine(error)
    if isinstance(error, RequestDataTooBig):
        return problems.too_large(settings.MAX_PROMPT_BYTES)
    if isinstance(error, SuspiciousOperation):
        return problems.bad(_("This site does not go by that name."))
    log.error("%s failed", request_id, exc_info=error)
    if isinstance(error, DatabaseError | adapters.InvalidAdapter):
        return Problem(503, _("The site is not ready. Try again in a moment."), "not_ready", headers=problems.RETRY)
    return Problem(500, _("This should not have happened. It is in the log as %s.") % request_id, "internal_error")
