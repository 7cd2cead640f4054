"""A model server that answers at once, or only when it is told to: what the gateway adds is then all that takes time.

    python -m benchmarks.gateway_engine PORT

A conversation whose last message is "wait" is silent until POST /release; all others are answered with TEXT.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

TEXT = ["All", " is", " well", " that", " ends", " well", "."]
USAGE = {"prompt_tokens": 128, "completion_tokens": len(TEXT), "total_tokens": 128 + len(TEXT)}
released = asyncio.Event()


async def chat(request: Request) -> Response:
    asked = json.loads(await request.body())
    if asked.get("stream"):
        return StreamingResponse(_stream(asked), media_type="text/event-stream")
    choice = {"index": 0, "message": {"role": "assistant", "content": "".join(TEXT)}, "finish_reason": "stop"}
    return JSONResponse({**_head(asked), "object": "chat.completion", "choices": [choice], "usage": USAGE})


def _head(asked: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-0", "created": 0, "model": asked["model"], "system_fingerprint": "0123456789ab"}


async def _stream(asked: dict[str, Any]) -> AsyncIterator[bytes]:
    if asked["messages"][-1]["content"] == "wait":
        await released.wait()
    head = {**_head(asked), "object": "chat.completion.chunk"}
    for piece in TEXT:
        choice = {"index": 0, "delta": {"content": piece}, "logprobs": None, "finish_reason": None}
        yield _event({**head, "choices": [choice], "usage": None})
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    yield _event({**head, "choices": [last], "usage": None})
    yield _event({**head, "choices": [], "usage": USAGE})
    yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


async def release(request: Request) -> Response:
    released.set()
    return JSONResponse({})


async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": "base"}]})


if __name__ == "__main__":
    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
        Route("/release", release, methods=["POST"]),
    ]
    uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), log_level="warning", access_log=False)
