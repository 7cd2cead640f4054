"""Who and what is let in: the token, the body in size and time, and how a refusal is put."""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from serving.engine.admission import Crowded, Overloaded, Oversized
from serving.engine.fields import BadRequest
from serving.engine.job import GenerationFailed
from serving.engine.lora import InvalidAdapter
from serving.engine.scheduler import Stopped
from serving.engine.text import BadConversation
from serving.engine.versions import Full, Refused, UnknownVersion

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_BODY_SECONDS = 20.0  # for the whole body to arrive
MAX_CALLER_CHARS = 256
CALLER_HEADER = "x-caller"
CODES = {503: "overloaded", 504: "timeout"}
# Status, parameter at fault, code.
REFUSALS: dict[type[Exception], tuple[int, str | None, str | None]] = {
    BadConversation: (400, None, None),
    InvalidAdapter: (400, None, None),
    Oversized: (400, "n", None),
    Refused: (400, None, None),
    UnknownVersion: (404, "model", "model_not_found"),
    Crowded: (429, None, "rate_limit_exceeded"),
    Overloaded: (503, None, "overloaded"),
    Stopped: (503, None, "overloaded"),
    Full: (507, None, "adapters_full"),
}
CLOSE, LATER = {"Connection": "close"}, {"Retry-After": "2"}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 408: CLOSE, 413: CLOSE, 429: LATER, 503: LATER, 504: LATER}
Handler = Callable[[Request], Awaitable[Response]]


def guarded(handler: Handler) -> Handler:
    """Only for callers that show the token; compared in constant time."""

    async def wrapped(request: Request) -> Response:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        is_known = hmac.compare_digest(shown.strip().encode(), request.app.state.token)
        if scheme.lower() != "bearer" or not is_known:
            raise BadRequest("Show the engine's token: Authorization: Bearer …", code="invalid_api_key", status=401)
        return await handler(request)

    return wrapped


def caller(request: Request) -> str:
    """For whom a gateway asks, if it says so: what fairness between callers goes by."""
    return request.headers.get(CALLER_HEADER, "")[:MAX_CALLER_CHARS]


async def read_json(request: Request) -> Any:
    """The JSON body, at most MAX_BODY_BYTES within MAX_BODY_SECONDS. Raises BadRequest."""
    try:
        async with asyncio.timeout(MAX_BODY_SECONDS):
            raw = await _read(request)
    except TimeoutError as error:
        raise BadRequest("The request did not arrive in time.", code="timeout", status=408) from error
    except ClientDisconnect as error:
        raise BadRequest("The client left before its request was complete.") from error
    try:
        return json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest("The request body is not valid JSON.") from error


async def _read(request: Request) -> bytearray:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise BadRequest(f"The request is larger than {MAX_BODY_BYTES // 2**20} MiB.", status=413)
    return raw


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def exception_handlers() -> dict[Any, Any]:
    """Every refusal in OpenAI's error format."""
    return dict.fromkeys((BadRequest, HTTPException, GenerationFailed, Exception, *REFUSALS), _refuse)


async def _refuse(_: Request, error: Exception) -> Response:
    answer = _in_words(error)
    own = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return JSONResponse(answer.to_dict(), answer.status, {**HEADERS.get(answer.status, {}), **own})


def _in_words(error: Exception) -> BadRequest:
    if isinstance(error, BadRequest):
        return error
    if isinstance(error, HTTPException):
        return BadRequest(error.detail, status=error.status_code)
    if isinstance(error, GenerationFailed):
        return BadRequest(str(error), code=CODES.get(error.status), status=error.status)
    if known := REFUSALS.get(type(error)):
        status, param, code = known
        return BadRequest(str(error), param, code, status)
    return BadRequest("The engine failed while it was working on this request.", status=500)  # it is in the log
