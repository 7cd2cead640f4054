"""The HTTP routes: OpenAI's and vLLM's, over one engine."""

import asyncio
import hmac
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serving.engine import answers, protocol
from serving.engine.answers import ChatAnswer, TextAnswer
from serving.engine.engine import Engine
from serving.engine.job import GenerationFailed, Job
from serving.engine.lora import InvalidAdapter
from serving.engine.protocol import BadRequest, Fields, Generation
from serving.engine.scheduler import Overloaded, Stopped
from serving.engine.sequence import Done
from serving.engine.text import BadConversation
from serving.engine.versions import Full, Refused, UnknownVersion, Version, be_gentle

log = logging.getLogger("engine")

MAX_BODY_BYTES = 8 * 1024 * 1024
RETRY_SECONDS = "2"
Handler = Callable[[Request], Awaitable[Response]]


def create_app(engine: Engine, token: str) -> Starlette:
    """`token`: what callers of everything but /health and /metrics must show."""
    routes = [
        Route("/v1/chat/completions", _guarded(chat_completions), methods=["POST"]),
        Route("/v1/completions", _guarded(completions), methods=["POST"]),
        Route("/v1/models", _guarded(models), methods=["GET"]),
        Route("/v1/load_lora_adapter", _guarded(load_lora_adapter), methods=["POST"]),
        Route("/v1/unload_lora_adapter", _guarded(unload_lora_adapter), methods=["POST"]),
        Route("/tokenize", _guarded(tokenize), methods=["POST"]),
        Route("/health", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers=_exception_handlers())
    app.state.engine, app.state.token = engine, token.encode()
    return app


# --- routes ----------------------------------------------------------------------------------------------------------
async def chat_completions(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    asked = protocol.parse_chat(await _body(request), engine.tokenizer.n_vocabulary)
    prompt = await run_in_threadpool(
        _encode_chat, engine, asked.messages, asked.add_generation_prompt, asked.is_continued
    )
    return await _answer(request, asked, [prompt], ChatAnswer)


async def completions(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    asked = protocol.parse_completion(await _body(request), engine.tokenizer.n_vocabulary)
    prompts = await run_in_threadpool(
        lambda: [
            engine.tokenizer.encode(p, add_special_tokens=True) if isinstance(p, str) else p for p in asked.prompts
        ]
    )
    return await _answer(request, asked, prompts, TextAnswer)


async def models(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    found = [_model(version, engine) for version in engine.versions.names()]
    return JSONResponse({"object": "list", "data": found})


async def load_lora_adapter(request: Request) -> Response:
    """200 when the adapter is resident."""
    engine: Engine = request.app.state.engine
    fields = Fields(await _body(request))
    name, path = fields.text("lora_name"), fields.text("lora_path")
    fields.finish()
    version = await _in_background(lambda: engine.versions.load(name, path, int(time.time())))
    log.info("loaded %s (%s)", name, version.sha256[:12])
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def unload_lora_adapter(request: Request) -> Response:
    """200 at once: the name is gone for new requests; those in flight finish, then the weights are freed."""
    engine: Engine = request.app.state.engine
    fields = Fields(await _body(request))
    name = fields.text("lora_name")
    fields.take("lora_int_id")
    fields.finish()
    engine.versions.unload(name)
    log.info("unloaded %s", name)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


async def tokenize(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    fields = Fields(await _body(request))
    fields.take("model")
    add_special_tokens = fields.take("add_special_tokens")
    add_generation_prompt = fields.flag("add_generation_prompt", default=True)
    messages, prompt = fields.take("messages"), fields.text("prompt", is_required=False)
    fields.finish()
    if messages is not None:
        messages = protocol.parse_messages(messages)
        ids = await run_in_threadpool(_encode_chat, engine, messages, add_generation_prompt, False)
    else:
        ids = await run_in_threadpool(
            lambda: engine.tokenizer.encode(prompt, add_special_tokens=add_special_tokens is not False)
        )
    return JSONResponse({"count": len(ids), "max_model_len": engine.model.context, "tokens": ids})


async def health(request: Request) -> Response:
    is_alive = request.app.state.engine.scheduler.is_alive
    return JSONResponse({"status": "ok" if is_alive else "down"}, 200 if is_alive else 503)


async def metrics(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    n_running, n_waiting = engine.scheduler.counts()
    text = engine.metrics.render(n_running, n_waiting, engine.prefixes.n_bytes, len(engine.versions.names()))
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


# --- answering -------------------------------------------------------------------------------------------------------
def _encode_chat(
    engine: Engine, messages: list[dict[str, Any]], add_generation_prompt: bool, is_continued: bool
) -> list[int]:
    text = engine.tokenizer.render(messages, add_generation_prompt=add_generation_prompt, is_continued=is_continued)
    return engine.tokenizer.encode(text, add_special_tokens=False)


async def _answer(request: Request, asked: Generation, prompts: list[list[int]], kind: type[TextAnswer]) -> Response:
    engine: Engine = request.app.state.engine
    params = [asked.sampling.params(len(prompt), engine.model.context) for prompt in prompts]
    job = Job(engine, asked.model, prompts, params, asked.n)
    answer = kind(engine.tokenizer, job.version)
    if asked.is_stream:
        return EventStream(job, _stream(job, answer, asked.has_usage))
    choices = await _unless_disconnected(request, job)
    return JSONResponse(answer.whole(choices, job.n_prompt)) if choices else Response(status_code=499)


class EventStream(StreamingResponse):
    """Server-sent events of a job, which ends with the response, even if the client left before its first byte."""

    def __init__(self, job: Job, content: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.close()


async def _stream(job: Job, answer: TextAnswer, has_usage: bool) -> AsyncIterator[bytes]:
    more = {"usage": None} if has_usage else {}
    dones: list[Done] = []
    openings = [opening for s in job.sequences if (opening := answer.opening(s.index))]
    for opening in openings:
        yield answers.event(answer.chunk([opening], **more))
    try:
        async for event in job.events():
            if isinstance(event, Done):
                dones.append(event)
                yield answers.event(answer.chunk([answer.closing(event)], **more))
            else:
                yield answers.event(answer.chunk([answer.piece(event)], **more))
    except GenerationFailed as failure:
        yield answers.event(protocol.error(str(failure), 500))
    else:
        if has_usage:
            yield answers.event(answer.chunk([], usage=answers.usage(dones, job.n_prompt)))
    yield answers.event("[DONE]")


async def _unless_disconnected(request: Request, job: Job) -> list[Any] | None:
    """The job's answers, or None when the client has gone; then the job is cancelled."""
    work = asyncio.ensure_future(job.choices())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else None
    finally:
        work.cancel()
        gone.cancel()
        job.close()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _in_background(function: Callable[[], Any]) -> Any:
    """The result of `function`, run in a thread of its own with low priority, which no shutdown waits for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not future.cancelled():
            future.set_exception(error) if error else future.set_result(result)

    def work() -> None:
        be_gentle()
        try:
            result, error = function(), None
        except Exception as caught:  # handed to the request that asked for it
            result, error = None, caught
        loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="loader", daemon=True).start()
    return await future


def _model(version: Version, engine: Engine) -> dict[str, Any]:
    base = engine.versions.base
    return {
        "id": version.name,
        "object": "model",
        "created": version.created_at,
        "owned_by": "alignapp",
        "root": str(version.path),
        "parent": None if version is base else base.name,
        "max_model_len": engine.model.context,
        "sha256": version.sha256,
    }


# --- the door --------------------------------------------------------------------------------------------------------
def _guarded(handler: Handler) -> Handler:
    """Only for callers that show the token; compared in constant time."""

    async def guarded(request: Request) -> Response:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        is_known = hmac.compare_digest(shown.strip().encode(), request.app.state.token)
        if scheme.lower() != "bearer" or not is_known:
            raise BadRequest("Show the engine's token: Authorization: Bearer …", code="invalid_api_key", status=401)
        return await handler(request)

    return guarded


async def _body(request: Request) -> Any:
    """The JSON body, at most MAX_BODY_BYTES. Raises BadRequest."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise BadRequest(f"The request is larger than {MAX_BODY_BYTES // 2**20} MiB.", status=413)
    try:
        return json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest("The request body is not valid JSON.") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _exception_handlers() -> dict[Any, Any]:
    def respond(error: BadRequest, headers: dict[str, str] | None = None) -> Response:
        return JSONResponse(error.to_dict(), error.status, headers)

    async def bad_request(_: Request, error: BadRequest) -> Response:
        return respond(error, {"WWW-Authenticate": "Bearer"} if error.status == 401 else None)

    async def refused(_: Request, error: Exception) -> Response:
        return respond(BadRequest(str(error)))

    async def full(_: Request, error: Exception) -> Response:
        return respond(BadRequest(str(error), code="adapters_full", status=507))

    async def unknown(_: Request, error: Exception) -> Response:
        return respond(BadRequest(str(error), "model", "model_not_found", 404))

    async def busy(_: Request, error: Exception) -> Response:
        return respond(BadRequest(str(error), code="overloaded", status=503), {"Retry-After": RETRY_SECONDS})

    async def http(_: Request, error: HTTPException) -> Response:
        return respond(BadRequest(error.detail, status=error.status_code), dict(error.headers or {}))

    async def failed(request: Request, error: Exception) -> Response:
        is_alive = request.app.state.engine.scheduler.is_alive
        return respond(BadRequest(str(error), status=500 if is_alive else 503))

    return {
        BadRequest: bad_request,
        BadConversation: refused,
        InvalidAdapter: refused,
        Refused: refused,
        Full: full,
        UnknownVersion: unknown,
        Overloaded: busy,
        Stopped: busy,
        HTTPException: http,
        GenerationFailed: failed,
    }
