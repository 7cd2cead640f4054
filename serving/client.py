"""The one HTTP client of an engine. It speaks vLLM's API, which the embedded engine also implements.

Raises `EngineDown` when nobody answers (starting, restarting, unreachable), its subclass `EngineSlow` when somebody took
the request and does not answer in time, and `EngineError` when the engine says no.
The token goes into one header and nowhere else: not into messages, `repr` or logs.
"""

import asyncio
import functools
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
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
WHOLE = httpx.Timeout(120.0, read=600.0, connect=CONNECT_SECONDS)  # of a whole answer nothing is sent before its end
N_SCORED = 16  # texts of one request, as many as the embedded engine takes
POOL_SIZE = 50  # requests at a time over the connections of one pool
# uvicorn, and so every engine, hangs up after 5 s of silence: a kept connection must not be used that late.
KEPT = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=4.0)


class EngineDown(Exception):
    """No answer: the engine is starting, stopped, or cannot be reached."""


class EngineSlow(EngineDown):
    """It took the request, and did not answer in time: unlike one that is down, another try may end no better."""


class EngineGone(EngineDown):
    """It hung up on the request: it was restarted, or ended a kept connection at that moment. It may well be back."""


class EngineError(Exception):
    """The engine refused. `status` is the HTTP status (500 for an error inside a stream), `message` its words; `param`
    and `code` are OpenAI's, where it sent them.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status
        self.message = message
        self.param = param
        self.code = code

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
class Resident:
    """The weights that an engine has under a name, as far as it tells; "" where it does not."""

    sha256: str  # of their file; vLLM does not tell
    path: str  # of their folder, as it was given to load


@contextmanager
def _failures() -> Iterator[None]:
    """Transport errors as EngineDown, of these a lack of answer as EngineSlow and a broken connection as EngineGone;
    malformed answers as EngineError.
    """
    try:
        yield
    except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
        raise EngineSlow(type(error).__name__) from error
    except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
        raise EngineGone(type(error).__name__) from error
    except httpx.RequestError as error:
        raise EngineDown(type(error).__name__) from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise EngineError(500, _("The model server's answer does not follow the protocol.")) from error


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
        return list(self.resident())

    @_failures()
    def resident(self) -> dict[str, "Resident"]:
        """What stands behind each of these names."""
        return {
            entry["id"]: Resident(entry.get("sha256") or "", entry.get("root") or "")
            for entry in self._get("/v1/models")["data"]
        }

    def load(self, name: str, path: str) -> None:
        """Make the PEFT folder at `path` available as `name`; returns when it is resident."""
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, LOADING)

    def unload(self, name: str) -> None:
        """Let requests in flight finish, then free the adapter."""
        self._post("/v1/unload_lora_adapter", {"lora_name": name}, LOADING)

    # --- inference ---------------------------------------------------------------------------------------------------
    @_failures()
    def chat(self, model: str, messages: Sequence[dict[str, str]], *, n: int = 1, **sampling: Any) -> list[ChatResult]:
        """`n` answers to one conversation; `sampling` as in the API (temperature, top_p, seed, max_tokens, stop, …)."""
        body = {"model": model, "messages": list(messages), "n": n, **sampling}
        answer = self._post("/v1/chat/completions", body, GENERATING)
        n_tokens = (answer.get("usage") or {}).get("completion_tokens")
        return [
            ChatResult(choice["message"]["content"] or "", choice["finish_reason"] or "", n_tokens)
            for choice in sorted(answer["choices"], key=lambda choice: choice["index"])
        ]

    @_failures()
    def tokenize(self, model: str, messages: Sequence[dict[str, str]], *, is_open: bool) -> list[int]:
        """The token ids of a conversation as the model reads it; with `is_open`, up to where the assistant's answer begins."""
        body = {"model": model, "messages": list(messages), "add_generation_prompt": is_open}
        return [int(token) for token in self._post("/tokenize", body, QUICK)["tokens"]]

    @_failures()
    def measure(self, model: str, messages: Sequence[dict[str, str]]) -> tuple[int, int | None]:
        """How many tokens a conversation has, and how many fit with its answer; None where the engine does not say."""
        body = {"model": model, "messages": list(messages)}
        answer = self._post("/tokenize", body, QUICK)
        return len(answer["tokens"]), answer.get("max_model_len")

    @_failures()
    def context(self) -> int | None:
        """How many tokens prompt and answer may have together; None where the engine does not say."""
        sizes = [entry.get("max_model_len") for entry in self._get("/v1/models")["data"]]
        return min((size for size in sizes if size), default=None)

    def prompt_logprobs(self, model: str, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each text's T token ids log p(token t | tokens before t), t = 1 … T−1, in nats; few requests for many texts."""
        found: list[list[float]] = []
        for start in range(0, len(texts), N_SCORED):
            found += self._prompt_logprobs(model, texts[start : start + N_SCORED])
        return found

    @_failures()
    def _prompt_logprobs(self, model: str, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        body = {
            "model": model,
            "prompt": [list(ids) for ids in texts],
            "max_tokens": 1,  # the API has no 0
            "temperature": 0.0,
            "prompt_logprobs": 1,
        }
        answer = self._post("/v1/completions", body, WHOLE)
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if [len(choice.get("prompt_logprobs") or ()) for choice in choices] != [len(ids) for ids in texts]:
            raise EngineError(500, _("The model server sent no prompt_logprobs."))
        return [
            [entry[str(token)]["logprob"] for entry, token in zip(choice["prompt_logprobs"][1:], ids[1:], strict=True)]
            for choice, ids in zip(choices, texts, strict=True)
        ]

    # --- inference, for many at once ---------------------------------------------------------------------------------
    # `caller` tells an engine for whom it works, so that nobody's flood of requests delays others (vLLM ignores it).

    async def ask(self, path: str, body: bytes, caller: str = "") -> bytes:
        """The whole answer, as it came. Cancelled, it closes the connection, which ends the request there."""
        with _failures():
            async with _kept_connections() as http:
                response = await http.post(self.url + path, content=body, headers=self._headers(caller), timeout=WHOLE)
            if response.is_error:
                raise _refusal(response)
            return response.content

    async def events(self, path: str, body: bytes, caller: str = "") -> AsyncGenerator[list[str], None]:
        """The data of a stream's events up to [DONE], as many at a time as came together.

        Closing the iterator closes the connection. Raises EngineDown when the stream ends early.
        """
        with _failures():
            async with (
                _kept_connections() as http,
                http.stream("POST", self.url + path, content=body, headers=self._headers(caller)) as response,
            ):
                if response.is_error:
                    await response.aread()
                    raise _refusal(response)
                async for batch in _batches(response):
                    yield batch

    # --- plumbing ----------------------------------------------------------------------------------------------------
    def _options(self) -> dict[str, Any]:
        # trust_env is off: a proxy from the environment must never see the token or the conversations.
        return {"base_url": self.url, "headers": self._headers(), "verify": _ssl_context(), "trust_env": False}

    def _headers(self, caller: str = "") -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        return headers | {"X-Caller": caller} if caller else headers

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


@dataclass
class _Pool:
    http: httpx.AsyncClient
    n_used: int = 0


_pools: dict[asyncio.AbstractEventLoop, list[_Pool]] = {}  # a connection belongs to the event loop that made it


@asynccontextmanager
async def _kept_connections() -> AsyncIterator[httpx.AsyncClient]:
    """For one request, over a connection that is kept: a handshake for each costs more than all that the gateway does.

    httpx looks through all connections of a client for each request, so a thousand streams must not share one.
    """
    pools = _pools_of(asyncio.get_running_loop())
    pool = next((pool for pool in pools if pool.n_used < POOL_SIZE), None)
    if pool is None:
        pool = _Pool(httpx.AsyncClient(timeout=GENERATING, limits=KEPT, verify=_ssl_context(), trust_env=False))
        pools.append(pool)
    pool.n_used += 1
    try:
        yield pool.http
    finally:
        pool.n_used -= 1
        if not pool.n_used and pool is not pools[0]:
            pools.remove(pool)
            await pool.http.aclose()


def _pools_of(loop: asyncio.AbstractEventLoop) -> list[_Pool]:
    if loop not in _pools:
        for ended in [loop for loop in _pools if loop.is_closed()]:
            del _pools[ended]
        _pools[loop] = []
    return _pools[loop]


async def close_shared() -> None:
    """Ends the kept connections of this event loop."""
    for pool in _pools.pop(asyncio.get_running_loop(), []):
        await pool.http.aclose()


def _parsed(response: httpx.Response) -> Any:
    if response.is_error:
        raise _refusal(response)
    # vLLM answers load and unload in plain text.
    return response.json() if "json" in response.headers.get("Content-Type", "") else None


def _refusal(response: httpx.Response) -> Exception:
    """503 means "not yet": the engine is up but its model is still loading."""
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return EngineDown("503")
    return error_of(response.text, response.status_code)


def error_of(text: str, status: int = 500) -> EngineError:
    """An error body in OpenAI's shape ({"error": {"message", "param", "code"}}), vLLM's older one, or none."""
    try:
        body = json.loads(text)
        body = body.get("error", body)
        message = str(body["message"] if isinstance(body, dict) else body)[:500]
    except (ValueError, KeyError, AttributeError):
        return EngineError(status, text[:500])
    found = body if isinstance(body, dict) else {}
    param, code = (value if isinstance(value, str) else None for value in (found.get("param"), found.get("code")))
    return EngineError(status, message, param, code)


async def _batches(response: httpx.Response) -> AsyncIterator[list[str]]:
    """The data of the events that each chunk completes, up to [DONE]. Raises EngineGone when the stream ends before."""
    parser, chunks = EventParser(), response.aiter_bytes()
    async for chunk in chunks:
        batch = list(parser.feed(chunk))
        is_last = "[DONE]" in batch
        if batch := batch[: batch.index("[DONE]")] if is_last else batch:
            yield batch
        if is_last:
            await _read_to_end(chunks)
            return
    raise EngineGone("stream cut off")


async def _read_to_end(chunks: AsyncIterator[bytes]) -> None:
    """So that the connection can be kept: what is left after [DONE] is the end of the encoding."""
    with suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            async for _chunk in chunks:
                pass


def pieces(data: str) -> Iterator[Delta | Usage]:
    """What one event of a chat's stream says. Raises EngineError when it is an error, or breaks the protocol."""
    with _failures():
        event = json.loads(data)
        if "error" in event:
            raise error_of(data)
        for choice in event.get("choices", []):
            text, reason = choice["delta"].get("content") or "", choice.get("finish_reason")
            if text or reason:
                yield Delta(text, reason)
        if usage := event.get("usage"):
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            yield Usage(usage["prompt_tokens"], usage["completion_tokens"], cached)
