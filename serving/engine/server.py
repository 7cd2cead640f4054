"""The HTTP routes: OpenAI's and vLLM's, over one engine."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from serving.engine import protocol
from serving.engine.answers import ChatAnswer, TextAnswer
from serving.engine.door import caller, exception_handlers, guarded, read_json
from serving.engine.engine import Engine
from serving.engine.fields import BadRequest, Fields
from serving.engine.job import Job
from serving.engine.protocol import Conversation, Generation, Prompt, Text
from serving.engine.streaming import Chunks, EventStream, disconnected
from serving.engine.versions import Refused, Version

log = logging.getLogger("engine")

VERSION = "0.1.0"  # pyproject.toml's; the engine also runs where the package is not installed
CLIENT_GONE = 499  # nobody sees it
Result = TypeVar("Result")


def create_app(engine: Engine, token: str) -> Starlette:
    """`token`: what callers of everything but /health, /version and /metrics must show."""
    routes = [
        Route("/v1/chat/completions", guarded(chat_completions), methods=["POST"]),
        Route("/v1/completions", guarded(completions), methods=["POST"]),
        Route("/v1/models", guarded(models), methods=["GET"]),
        Route("/v1/models/{name:path}", guarded(model), methods=["GET"]),
        Route("/v1/load_lora_adapter", guarded(load_lora_adapter), methods=["POST"]),
        Route("/v1/unload_lora_adapter", guarded(unload_lora_adapter), methods=["POST"]),
        Route("/tokenize", guarded(tokenize), methods=["POST"]),
        Route("/detokenize", guarded(detokenize), methods=["POST"]),
        Route("/health", health, methods=["GET"]),
        Route("/version", version, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers=exception_handlers())
    app.router.redirect_slashes = False  # a redirected POST would lose its body
    app.state.engine, app.state.token = engine, token.encode()
    return app


# --- routes ----------------------------------------------------------------------------------------------------------
async def chat_completions(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    asked = protocol.parse_chat(await read_json(request), engine.tokenizer.n_vocabulary)
    return await _answer(request, asked, [asked.conversation], ChatAnswer)


async def completions(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    asked = protocol.parse_completion(await read_json(request), engine.tokenizer.n_vocabulary)
    return await _answer(request, asked, asked.prompts, TextAnswer)


async def models(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    found = [_model(version, engine) for version in engine.versions.names()]
    return JSONResponse({"object": "list", "data": found})


async def model(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    name = request.path_params["name"]
    for version in engine.versions.names():
        if version.name == name:
            return JSONResponse(_model(version, engine))
    raise BadRequest(f"The model {name!r} is not loaded.", "model", "model_not_found", 404)


async def load_lora_adapter(request: Request) -> Response:
    """200 when the adapter is resident."""
    engine: Engine = request.app.state.engine
    fields = Fields(await read_json(request))
    name, path = fields.text("lora_name"), fields.text("lora_path")
    fields.refuse("load_inplace", (False,), "a version never changes; load the new weights under a new name.")
    fields.refuse("is_3d_lora_weight", (False,), "this engine serves no mixtures of experts.")
    fields.finish()
    if any(version.name == name for version in engine.versions.names()):
        raise Refused(f"The lora adapter '{name}' has already been loaded.")
    version = await _in_background(lambda: engine.versions.load(name, path, int(time.time())))
    log.info("loaded %s (%s)", name, version.sha256[:12])
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def unload_lora_adapter(request: Request) -> Response:
    """200 at once: the name is gone for new requests; those in flight finish, then the weights are freed."""
    engine: Engine = request.app.state.engine
    fields = Fields(await read_json(request))
    name = fields.text("lora_name")
    fields.take("lora_int_id")
    fields.finish()
    engine.versions.unload(name)
    log.info("unloaded %s", name)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


async def tokenize(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    asked = protocol.parse_tokenize(await read_json(request))
    ids = await run_in_threadpool(_encode, engine, asked.prompt)
    strings = engine.tokenizer.token_strings(ids) if asked.returns_strings else None
    return JSONResponse(
        {"count": len(ids), "max_model_len": engine.model.context, "tokens": ids, "token_strs": strings}
    )


async def detokenize(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    ids = protocol.parse_detokenize(await read_json(request), engine.tokenizer.n_vocabulary)
    return JSONResponse({"prompt": await run_in_threadpool(lambda: engine.tokenizer.decode(ids, has_special=True))})


async def health(request: Request) -> Response:
    is_alive = request.app.state.engine.scheduler.is_alive
    return JSONResponse({"status": "ok" if is_alive else "down"}, 200 if is_alive else 503)


async def version(request: Request) -> Response:
    return JSONResponse({"version": VERSION})


async def metrics(request: Request) -> Response:
    engine: Engine = request.app.state.engine
    n_running, n_waiting = engine.scheduler.counts()
    gauges = {
        "vllm:num_requests_running": n_running,
        "vllm:num_requests_waiting": n_waiting,
        "vllm:kv_cache_usage_perc": engine.scheduler.n_held / engine.scheduler.limits.max_tokens,
        "engine:prefix_cache_bytes": engine.prefixes.n_bytes,
        "engine:weights_bytes": engine.versions.n_bytes,
        "engine:versions_resident": len(engine.versions.names()),
    }
    text = engine.metrics.render(engine.versions.base.name, gauges)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


# --- answering -------------------------------------------------------------------------------------------------------
def _encode(engine: Engine, prompt: Prompt) -> list[int]:
    """Slow for a long text: not for the event loop. Raises BadConversation."""
    tokenizer = engine.tokenizer
    if isinstance(prompt, Conversation):
        text = tokenizer.render(prompt.messages, add_generation_prompt=prompt.is_open, is_continued=prompt.is_continued)
        return tokenizer.encode(text, add_special_tokens=prompt.add_special_tokens)
    if isinstance(prompt, Text):
        return tokenizer.encode(prompt.text, add_special_tokens=prompt.add_special_tokens)
    return prompt


async def _answer(request: Request, asked: Generation, prompts: Sequence[Prompt], kind: type[TextAnswer]) -> Response:
    engine: Engine = request.app.state.engine
    ids = await run_in_threadpool(lambda: [_encode(engine, prompt)[-asked.n_kept :] for prompt in prompts])
    job = Job(engine, asked, ids, caller(request) or asked.caller)
    answer = kind(engine.tokenizer, asked, job)
    if asked.is_stream:
        return await _stream(request, job, Chunks(answer, asked, job))
    return await _whole(request, job, answer)


async def _stream(request: Request, job: Job, chunks: Chunks) -> Response:
    """Begins when there is something to send: until then a failure can be told by the status."""
    has_begun: bool | None = None
    try:
        has_begun = await _unless_disconnected(request, job.begin())
    finally:
        if not has_begun:
            job.close()
    return EventStream(job, chunks) if has_begun else Response(status_code=CLIENT_GONE)


async def _whole(request: Request, job: Job, answer: TextAnswer) -> Response:
    try:
        choices = await _unless_disconnected(request, job.choices())
    finally:
        job.close()
    return JSONResponse(answer.whole(choices)) if choices else Response(status_code=CLIENT_GONE)


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The result, or None when the client has gone before it."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def _in_background(function: Callable[[], Any]) -> Any:
    """The result of `function`, run in a thread of its own, which no shutdown waits for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not future.cancelled():
            future.set_exception(error) if error else future.set_result(result)

    def work() -> None:
        result, error = None, None
        try:
            _use_one_core()
            result = function()
        except BaseException as caught:  # handed to the request that asked for it, which waits for nothing else
            error = caught
        loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="loader", daemon=True).start()
    return await future


def _use_one_core() -> None:
    """In this thread: what it computes is divided into parts that are too short to be shared (see `turns`)."""
    torch.set_num_threads(1)


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
