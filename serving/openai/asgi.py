"""/v1/ under ASGI, straight to its view.

Sessions, forms, languages and pages are nothing to a program with a key, and each middleware costs a coroutine or a hop to
a thread: together more than all that the gateway does. What a request may take of this process before its key was looked
at is bounded here: the size of its body, and the time that sending it takes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.urls import resolve
from django.utils.translation import gettext as _

from serving.openai import problems
from serving.openai.problems import Problem
from serving.openai.views import Answer

URLS = "serving.openai.urls"
BODY_SECONDS = 60.0
UNREAD_SECONDS = 60.0  # that a part of an answer may wait for its reader, with all buffers full
# What the site's middleware says elsewhere; nothing here is a page, so the policy allows nothing.
SECURITY = [
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def is_for_programs(scope: Scope) -> bool:
    path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
    return path == "/v1" or path.startswith("/v1/")


async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    """One request. When its sender leaves, whatever was going on for it is cancelled."""
    body = await _body(receive)
    if body is None:
        return
    work = asyncio.create_task(_respond(scope, body, send))
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
    if not work.cancelled():
        work.result()  # what went wrong in there is the server's to log


async def _body(receive: Receive) -> bytes | Problem | None:
    """The body, cut off one byte above the limit; None when its sender left."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while len(body) <= settings.MAX_PROMPT_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        return Problem(408, _("The request took too long to arrive."), "request_timeout")
    return bytes(body[: settings.MAX_PROMPT_BYTES + 1])


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # the rest of a body that is too large


class _Unread(Exception):
    """Whoever asked reads nothing of what is sent."""


async def _respond(scope: Scope, body: bytes | Problem, send: Send) -> None:
    response = await _response(scope, body)
    headers = [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in response.items()]
    headers += SECURITY
    if isinstance(response, HttpResponse):
        headers.append((b"content-length", str(len(response.content)).encode()))

    async def tell(message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(UNREAD_SECONDS):
                await send(message)
        except TimeoutError as error:
            raise _Unread from error

    try:
        await tell({"type": "http.response.start", "status": response.status_code, "headers": headers})
        if isinstance(response, Answer):
            async for part in response:
                await tell({"type": "http.response.body", "body": part, "more_body": True})
        content = response.content if isinstance(response, HttpResponse) else b""
        await tell({"type": "http.response.body", "body": content})
    except _Unread:
        pass  # as if its sender had left: what it held goes to others
    finally:
        if isinstance(response, Answer):
            await response.aclose()


async def _response(scope: Scope, body: bytes | Problem) -> HttpResponseBase:
    if isinstance(body, Problem):
        return body.response()
    try:
        request = ASGIRequest(scope, BytesIO(body))
    except UnicodeDecodeError:
        return problems.bad(_("The address is not valid.")).response()
    match = resolve(request.path_info, URLS)
    response: HttpResponseBase = await match.func(request, *match.args, **match.kwargs)
    return response
