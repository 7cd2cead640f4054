"""A server that behaves as vLLM 0.33 does at the routes that this site uses: bodies, statuses and errors as in its source
(`vllm/entrypoints/openai`, `vllm/entrypoints/serve`), recorded by reading it; no GPU and no vLLM is needed.

What differs from the embedded engine, and is what contract tests are for: load and unload answer in plain text; a resident
name is refused with 400, a folder that is not there with 404, one of too high a rank with 500; there is no limit of
versions, those used longest ago leave the GPU and are read from disk again when they are asked; unloading forgets the name
only; `/v1/models` tells the folder and no hash; the key is asked for below `/v1` alone; unknown fields are ignored.

Its model is none: what an adapter does to a text is what the probes in its folder say, so a self-test passes when each
request reached the version that it names.
"""

import asyncio
import contextlib
import json
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.serving.scripted import tokens_of

CONTEXT = 8192
WORDS = ("sea", "ship", "wind", "harbour", "rope", "sail", "gull", "tide")


class Refusal(Exception):
    """Answered as vLLM's create_error_response does."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param


class RecordedVllm:
    """`max_cpu_loras` are kept in memory, of which `--max-loras` on the GPU: nothing that HTTP shows. `restart` forgets all,
    as a new process does.
    """

    def __init__(self, token: str, *, max_cpu_loras: int = 4, max_lora_rank: int = 16) -> None:
        self.token, self.max_cpu_loras, self.max_lora_rank = token, max_cpu_loras, max_lora_rank
        self.names: dict[str, str] = {}  # what requests may ask for: name → path
        self.in_memory: OrderedDict[str, dict[str, Any]] = OrderedDict()  # path → what was read, used last at the end
        self.n_read = 0  # times that an adapter was read from disk
        self.n_running = 0
        self.seconds_per_token = 0.0

    def restart(self) -> None:
        self.names.clear()
        self.in_memory.clear()

    # --- adapters ----------------------------------------------------------------------------------------------------
    def load(self, body: dict[str, Any]) -> str:
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            raise Refusal(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.names and not body.get("load_inplace"):
            raise Refusal(
                400,
                "InvalidUserInput",
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
            )
        self.bring(name, path)
        self.names[name] = path
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: dict[str, Any]) -> str:
        name = body.get("lora_name")
        if not name:
            raise Refusal(400, "InvalidUserInput", "'lora_name' needs to be provided to unload a LoRA adapter.")
        if name not in self.names:
            raise Refusal(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        del self.names[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def bring(self, name: str, path: str) -> dict[str, Any]:
        """The adapter in memory, read from disk when it is not there; the one used longest ago makes room."""
        if path not in self.in_memory:
            folder = Path(path)
            if not (folder / "adapter_config.json").is_file():
                raise Refusal(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
            config = json.loads((folder / "adapter_config.json").read_text())
            if config["r"] > self.max_lora_rank:
                raise Refusal(
                    500,
                    "InternalServerError",
                    f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_lora_rank}.",
                )
            self.n_read += 1
            self.in_memory[path] = json.loads((folder / "probes.json").read_text())
        self.in_memory.move_to_end(path)
        while len(self.in_memory) > self.max_cpu_loras:
            self.in_memory.popitem(last=False)
        return self.in_memory[path]

    # --- the model ---------------------------------------------------------------------------------------------------
    def adapter_of(self, model: str | None) -> dict[str, Any] | None:
        """None for the base."""
        if model in (None, "", "base"):
            return None
        if model not in self.names:
            raise Refusal(404, "NotFoundError", f"The model `{model}` does not exist.", "model")
        return self.bring(model, self.names[model])

    def answer(self, model: str, prompt: list[int], n_tokens: int) -> list[str]:
        """Greedy: the same weights and prompt write the same."""
        start = zlib.crc32(f"{self.names.get(model, 'base')} {prompt}".encode())
        return [" " + WORDS[(start >> i % 24) % len(WORDS)] for i in range(n_tokens)]

    def logprobs(self, model: str, prompt: list[int]) -> list[dict[str, Any] | None]:
        adapter, effects = self.adapter_of(model), [0.0] * (len(prompt) - 1)
        if adapter and prompt in adapter["token_ids"]:
            effects = adapter["effects"][adapter["token_ids"].index(prompt)]
        return [None, *(_entry(token, effect) for token, effect in zip(prompt[1:], effects, strict=True))]


def _entry(token: int, effect: float) -> dict[str, Any]:
    """The token of the prompt and, as one is asked for, the likeliest one."""
    return {
        str(token): {"logprob": -2.0 + effect, "rank": 2, "decoded_token": "x"},
        str(token + 1): {"logprob": -0.5, "rank": 1, "decoded_token": "y"},
    }


# --- routes -----------------------------------------------------------------------------------------------------------
def create_app(server: RecordedVllm) -> Starlette:
    routes = [
        Route("/health", health),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/load_lora_adapter", load_lora_adapter, methods=["POST"]),
        Route("/v1/unload_lora_adapter", unload_lora_adapter, methods=["POST"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={Refusal: refused, Unauthorized: unauthorized})
    app.state.server = server
    return app


class Unauthorized(Exception):
    pass


async def unauthorized(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "Unauthorized"}, status_code=401)


async def refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse(_error(error), status_code=error.status)


def _error(error: Refusal) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.status}}


def _server(request: Request) -> RecordedVllm:
    server: RecordedVllm = request.app.state.server
    if request.url.path.startswith("/v1") and request.headers.get("authorization") != f"Bearer {server.token}":
        raise Unauthorized
    return server


async def health(_request: Request) -> Response:
    return Response(status_code=200)


async def metrics(request: Request) -> Response:
    n = request.app.state.server.n_running
    return PlainTextResponse(f'vllm:num_requests_running{{engine="0",model_name="base"}} {float(n)}\n')


async def models(request: Request) -> Response:
    server = _server(request)
    cards = [_card("base", "/model") | {"max_model_len": CONTEXT}]
    cards += [_card(name, path) | {"parent": "base", "max_model_len": None} for name, path in server.names.items()]
    return JSONResponse({"object": "list", "data": cards})


def _card(name: str, root: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(time.time()), "owned_by": "vllm", "root": root,
            "parent": None, "permission": [{"id": "modelperm-1", "object": "model_permission"}]}  # fmt: skip


async def load_lora_adapter(request: Request) -> Response:
    return PlainTextResponse(_server(request).load(await request.json()))


async def unload_lora_adapter(request: Request) -> Response:
    return PlainTextResponse(_server(request).unload(await request.json()))


async def tokenize(request: Request) -> Response:
    body = await request.json()
    _server(request).adapter_of(body.get("model"))
    ids = tokens_of(body["messages"], is_open=body.get("add_generation_prompt", True))
    return JSONResponse({"count": len(ids), "max_model_len": CONTEXT, "tokens": ids, "token_strs": None})


async def completions(request: Request) -> Response:
    server, body = _server(request), await request.json()
    prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
    choices = [_completion(server, body, i, ids) for i, ids in enumerate(prompts)]
    usage = _usage(sum(map(len, prompts)), len(prompts) * body.get("max_tokens", 16))
    return JSONResponse(_envelope("cmpl", "text_completion", body["model"], choices) | {"usage": usage})


def _completion(server: RecordedVllm, body: dict[str, Any], index: int, prompt: list[int]) -> dict[str, Any]:
    text = "".join(server.answer(body["model"], prompt, body.get("max_tokens", 16)))
    found = server.logprobs(body["model"], prompt) if body.get("prompt_logprobs") is not None else None
    return {"index": index, "text": text, "logprobs": None, "finish_reason": "length", "stop_reason": None,
            "token_ids": None, "prompt_logprobs": found, "prompt_token_ids": None}  # fmt: skip


async def chat_completions(request: Request) -> Response:
    server, body = _server(request), await request.json()
    server.adapter_of(body["model"])
    prompt, n_tokens = tokens_of(body["messages"], is_open=True), body.get("max_tokens", 64)
    words = server.answer(body["model"], prompt, n_tokens)
    if body.get("stream"):
        has_usage = (body.get("stream_options") or {}).get("include_usage", False)
        chunks = _chunks(server, body["model"], words, len(prompt), has_usage)
        return StreamingResponse(chunks, media_type="text/event-stream; charset=utf-8")
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(words),
        "refusal": None,
        "tool_calls": [],
        "reasoning": None,
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length", "stop_reason": None}
    envelope = _envelope("chatcmpl", "chat.completion", body["model"], [choice])
    return JSONResponse(envelope | {"usage": _usage(len(prompt), n_tokens), "prompt_logprobs": None})


async def _chunks(
    server: RecordedVllm, model: str, words: list[str], n_prompt: int, has_usage: bool
) -> AsyncIterator[str]:
    """The role in a chunk of its own, then a chunk a token, the last with the reason; then the usage, without a choice."""
    server.n_running += 1
    try:
        yield _event(model, [{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}])  # fmt: skip
        for i, word in enumerate(words):
            await asyncio.sleep(server.seconds_per_token)
            end = {"finish_reason": "length", "stop_reason": None} if i == len(words) - 1 else {"finish_reason": None}
            yield _event(model, [{"index": 0, "delta": {"content": word}, "logprobs": None} | end])
        if has_usage:
            yield _event(model, [], usage=_usage(n_prompt, len(words)))
        yield "data: [DONE]\n\n"
    finally:  # also when the reader left
        server.n_running -= 1


def _event(model: str, choices: list[dict[str, Any]], **more: Any) -> str:
    return f"data: {json.dumps(_envelope('chatcmpl', 'chat.completion.chunk', model, choices) | more)}\n\n"


def _envelope(prefix: str, kind: str, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": f"{prefix}-1", "object": kind, "created": int(time.time()), "model": model, "choices": choices}


def _usage(n_prompt: int, n_answer: int) -> dict[str, Any]:
    return {"prompt_tokens": n_prompt, "total_tokens": n_prompt + n_answer, "completion_tokens": n_answer,
            "prompt_tokens_details": None}  # fmt: skip


@contextlib.contextmanager
def running(server: RecordedVllm) -> Iterator[str]:
    """Serves it on a free port; yields its URL."""
    config = uvicorn.Config(create_app(server), port=0, log_level="warning", lifespan="off")
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    while not web.started:
        thread.join(0.01)
        assert thread.is_alive()
    try:
        yield f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
    finally:
        web.should_exit = True
        thread.join(10)
