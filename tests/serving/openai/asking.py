"""Requests as programs send them, and what the log says of them."""

import time
from typing import Any

import httpx
import openai

from serving.models import ServedRequest

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def logged(n: int = 1) -> list[ServedRequest]:
    """The rows of the log, newest first, once there are `n`: an answer's last byte leaves before its row is written."""
    deadline = time.monotonic() + 10
    while ((rows := list(ServedRequest.objects.select_related("adapter"))) and len(rows) < n) or not rows:
        assert time.monotonic() < deadline, rows
        time.sleep(0.01)
    return rows


def ask(client: openai.OpenAI, model: str = "current", **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=MESSAGES, **more)


def raw(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.with_raw_response.create(model="current", messages=MESSAGES, **more)


def posted(address: str, shown_key: str, body: Any, **headers: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {shown_key}", **headers}
    return httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=30)
