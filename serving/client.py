"""The one HTTP client of an engine. It speaks vLLM's API, which the embedded engine also implements.

Raises `EngineDown` when nobody answers (starting, restarting, unreachable), its subclass `EngineSlow` when somebody took
the request and does not answer in time, and `EngineError` when the engine says no.
The token goes into one header and nowhere else: not into messages, `repr` or logs.
"""

import functools
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from django.conf import settings
from django.utils.translation import gettext as _

CONNECT_SECONDS = 3.0
MAX_EVENT_BYTES = 1 << 20  # one event of a stream; far above any delta, so a runaway engine cannot fill the memory

QUICK = httpx.Timeout(10.0, connect=CONNECT_SECONDS)
LOADING = httpx.Timeout(300.0, connect=CONNECT_SECONDS)
# Between two events: an engine with a long queue is silent until the request's turn comes.
GENERATING = httpx.Timeout(120.0, connect=CONNECT_SECONDS)


class EngineDown(Exception):
    """No answer: the engine is starting, stopped, or cannot be reached."""


class EngineSlow(EngineDown):
    """It took the request, and did not answer in time: unlike one that is down, another try may end no better."""


class EngineError(Exception):
    """The engine refused. `status` is the HTTP status (500 for an error inside a stream), `message` its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status
        self.message = message

    @property
    def is_full(self) -> bool:
        """The embedded engine holds as many adapters as it may; vLLM never says so, it makes room by itself."""
        return self.status == httpx.codes.INSUFFICIENT_STORAGE


@dataclass(frozen=True)
class ChatResult:
    text: str
    finish_reason: str  # "stop", "length", …
    n_tokens: int | None  # of all choices of the request together when it asked for several; None: not reported


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. `finish_reason` is set on the last one."""

    text: str
    finish_reason: str | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts of one request, sent once at the end of its stream."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class EventParser:
    """Splits a byte stream of server-sent events into their data, whatever the borders of the chunks.

    As the HTML standard has it (section 9.2): lines end in LF, CR or CRLF, a blank line ends an event, data lines of
    one event are joined by LF; comments and other fields are left out. An event cut off by the end is dropped.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The data of every event completed by `chunk`. Raises EngineError when one is larger than MAX_EVENT_BYTES."""
        buffer = self._rest + chunk
        # A CR at the very end may be the first half of a CRLF: it waits for the next chunk.
        held = b"\r" if buffer.endswith(b"\r") else b""
        *lines, rest = buffer[: len(buffer) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + held
        self._size += len(chunk)
        for line in lines:
            if not line:
                if self._data:
                    yield "\n".join(self._data)
                self._data, self._size = [], len(self._rest)
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" ").decode("utf-8", errors="replace"))
        if self._size > MAX_EVENT_BYTES:
            raise EngineError(500, _("The model server sent an event of more than 1 MiB."))


@dataclass(frozen=True)
class Engine:
    """One model server at `url`. Stateless: safe to share between threads and event loops."""

    url: str
    token: str

    def __repr__(self) -> str:
        return f"Engine({self.url!r})"

    # --- questions about the engine itself ---------------------------------------------------------------------------
    def models(self) -> list[str]:
        """The names that requests may use now: the base and every loaded adapter."""
        return [entry["id"] for entry in self._get("/v1/models")["data"]]

    def load(self, name: str, path: str) -> None:
        """Make the PEFT folder at `path` available as `name`; returns when it is resident."""
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, LOADING)

    def unload(self, name: str) -> None:
        """Let requests in flight finish, then free the adapter."""
        self._post("/v1/unload_lora_adapter", {"lora_name": name}, LOADING)

    # --- inference ---------------------------------------------------------------------------------------------------
    def chat(self, model: str, messages: Sequence[dict[str, str]], *, n: int = 1, **sampling: Any) -> list[ChatResult]:
        """`n` answers to one conversation; `sampling` as in the API (temperature, top_p, seed, max_tokens, stop, …)."""
        body = {"model": model, "messages": list(messages), "n": n, **sampling}
        answer = self._post("/v1/chat/completions", body, GENERATING)
        n_tokens = (answer.get("usage") or {}).get("completion_tokens")
        return [
            ChatResult(choice["message"]["content"] or "", choice["finish_reason"] or "", n_tokens)
            for choice in sorted(answer["choices"], key=lambda choice: choice["index"])
        ]

    def tokenize(self, model: str, messages: Sequence[dict[str, str]], *, is_open: bool) -> list[int]:
        """The token ids of a conversation as the model reads it; with `is_open`, up to where the assistant's answer begins."""
        body = {"model": model, "messages": list(messages), "add_generation_prompt": is_open}
        return [int(token) for token in self._post("/tokenize", body, QUICK)["tokens"]]

    def prompt_logprobs(self, model: str, token_ids: Sequence[int]) -> list[float]:
        """log p(token t | tokens before t) for t = 1 … T−1 of `token_ids` (T ids): T−1 numbers, in nats."""
        body = {
            "model": model,
            "prompt": list(token_ids),
            "max_tokens": 1,  # the API has no 0
            "temperature": 0.0,
            "prompt_logprobs": 1,
        }
        answer = self._post("/v1/completions", body, GENERATING)
        found = answer["choices"][0].get("prompt_logprobs") or answer.get("prompt_logprobs")
        if not found or len(found) != len(token_ids):
            raise EngineError(500, _("The model server sent no prompt_logprobs."))
        return [entry[str(token)]["logprob"] for entry, token in zip(found[1:], token_ids[1:], strict=True)]

    async def stream_chat(
        self, model: str, messages: Sequence[dict[str, str]], **sampling: Any
    ) -> AsyncGenerator[Delta | Usage, None]:
        """One answer, piece by piece, then its Usage. Closing the iterator closes the connection, which ends the
        request in the engine.
        """
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **sampling,
        }
        with _failures():
            async with (
                httpx.AsyncClient(timeout=GENERATING, **self._options()) as http,
                http.stream("POST", "/v1/chat/completions", json=body) as response,
            ):
                if response.is_error:
                    await response.aread()
                    raise _refusal(response)
                async for data in _events(response):
                    for item in _items(data):
                        yield item

    # --- plumbing ----------------------------------------------------------------------------------------------------
    def _options(self) -> dict[str, Any]:
        # trust_env is off: a proxy from the environment must never see the token or the conversations.
        headers = {"Authorization": f"Bearer {self.token}"}
        return {"base_url": self.url, "headers": headers, "verify": _ssl_context(), "trust_env": False}

    def _get(self, path: str) -> Any:
        with _failures(), httpx.Client(timeout=QUICK, **self._options()) as http:
            return _parsed(http.get(path))

    def _post(self, path: str, body: dict[str, Any], timeout: httpx.Timeout) -> Any:
        with _failures(), httpx.Client(timeout=timeout, **self._options()) as http:
            return _parsed(http.post(path, json=body))


def engines() -> list[Engine]:
    """Every engine of this site, in the order of ENGINE_URLS."""
    return [Engine(url.rstrip("/"), settings.ENGINE_TOKEN) for url in settings.ENGINE_URLS]


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Made once: reading the certificates takes longer than a request to a local engine."""
    return httpx.create_ssl_context(trust_env=False)


@contextmanager
def _failures() -> Iterator[None]:
    """Transport errors as EngineDown, of these a lack of answer as EngineSlow, malformed answers as EngineError."""
    try:
        yield
    except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
        raise EngineSlow(type(error).__name__) from error
    except httpx.RequestError as error:
        raise EngineDown(type(error).__name__) from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise EngineError(500, _("The model server's answer does not follow the protocol.")) from error


def _parsed(response: httpx.Response) -> Any:
    if response.is_error:
        raise _refusal(response)
    # vLLM answers load and unload in plain text.
    return response.json() if "json" in response.headers.get("Content-Type", "") else None


def _refusal(response: httpx.Response) -> Exception:
    """503 means "not yet": the engine is up but its model is still loading."""
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return EngineDown("503")
    return EngineError(response.status_code, _message_of(response.text))


def _message_of(text: str) -> str:
    """The sentence inside an error body, in OpenAI's shape ({"error": {"message"}}), vLLM's older one, or none."""
    try:
        body = json.loads(text)
        body = body.get("error", body)
        return str(body["message"] if isinstance(body, dict) else body)[:500]
    except (ValueError, KeyError, AttributeError):
        return text[:500]


async def _events(response: httpx.Response) -> AsyncIterator[str]:
    """The data of each event up to [DONE]. Raises EngineDown when the stream ends before that."""
    parser = EventParser()
    async for chunk in response.aiter_bytes():
        for data in parser.feed(chunk):
            if data == "[DONE]":
                return
            yield data
    raise EngineDown("stream cut off")


def _items(data: str) -> Iterator[Delta | Usage]:
    event = json.loads(data)
    if "error" in event:
        raise EngineError(500, _message_of(data))
    for choice in event.get("choices", []):
        text, reason = choice["delta"].get("content") or "", choice.get("finish_reason")
        if text or reason:
            yield Delta(text, reason)
    if usage := event.get("usage"):
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        yield Usage(usage["prompt_tokens"], usage["completion_tokens"], cached)
