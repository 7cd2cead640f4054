"""The load of `benchmarks.serving`: streamed text completions over plain sockets, and what their arrival times say.

One client for all servers, and a light one, since it shares the cores with what it measures: while answers come it notes
only which bytes came when. They are read afterwards. Times are seconds of `time.perf_counter`, which on Linux is one clock
for all processes.
"""

import asyncio
import bisect
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

HOST = "127.0.0.1"
TIMEOUT = 300.0


@dataclass(frozen=True)
class Prompt:
    """The same prompt as text and as tokens."""

    text: str
    ids: tuple[int, ...]


@dataclass
class Answer:
    """One stream. `pieces`: when which text came; `error` is empty when it came whole."""

    sent_at: float
    pieces: list[tuple[float, str]] = field(default_factory=list)
    n_prompt: int = 0
    n_tokens: int = 0
    error: str = ""

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces)

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """(from, to) of each wait between two pieces."""
        return list(pairwise(at for at, _ in self.pieces))


class Wire(asyncio.Protocol):
    """Sends a request, and keeps what comes back with its times until the answer's end."""

    def __init__(self, request: bytes, done: "asyncio.Future[None]") -> None:
        self._request, self._done = request, done
        self.arrivals: list[tuple[float, bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.arrivals.append((time.perf_counter(), data))
        if data.endswith(b"0\r\n\r\n"):  # the last chunk; some servers are slow to hang up
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


async def complete(port: int, body: dict[str, Any], token: str = "") -> Answer:
    """One answer of POST /v1/completions on this machine. What goes wrong stands in its `error`."""
    sent_at = time.perf_counter()
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    try:
        transport, wire = await loop.create_connection(lambda: Wire(request(body, token), done), HOST, port)
    except OSError as error:
        return Answer(sent_at, error=f"no connection: {error}")
    try:
        await asyncio.wait_for(done, TIMEOUT)
    except TimeoutError:
        transport.abort()
    return read(sent_at, wire.arrivals)


async def complete_together(port: int, bodies: list[dict[str, Any]], token: str = "") -> list[Answer]:
    return await asyncio.gather(*(complete(port, body, token) for body in bodies))


def request(body: dict[str, Any], token: str) -> bytes:
    payload = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {token}\r\nContent-Length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


# --- reading an answer -----------------------------------------------------------------------------------------------
def read(sent_at: float, arrivals: list[tuple[float, bytes]]) -> Answer:
    """The answer in a chunked HTTP response. A piece came when the last byte of its chunk did."""
    answer = Answer(sent_at)
    raw = b"".join(data for _, data in arrivals)
    head, _, body = raw.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        answer.error = (
            f"{head[:60].decode(errors='replace')} {body[:300].decode(errors='replace')}".strip() or "silence"
        )
        return answer
    ends = list(accumulate(len(data) for _, data in arrivals))
    is_whole, rest = False, b""
    for chunk, end in _chunks(raw, len(head) + 4):
        is_whole = not chunk
        at = arrivals[bisect.bisect_left(ends, end)][0]
        *events, rest = (rest + chunk.replace(b"\r\n", b"\n")).split(b"\n\n")
        for event in events:
            _note(answer, event, at)
    if not is_whole and not answer.error:
        answer.error = "cut off"
    return answer


def _chunks(raw: bytes, at: int) -> Iterator[tuple[bytes, int]]:
    """The chunks of a body from `at` on, each with where it ends in `raw`; the one that ends the body is empty."""
    while (line := raw.find(b"\r\n", at)) >= 0:
        start, size = line + 2, int(raw[at:line].partition(b";")[0], 16)
        if start + size > len(raw):
            return
        yield raw[start : start + size], start + size
        if size == 0:
            return
        at = start + size + 2


def _note(answer: Answer, event: bytes, at: float) -> None:
    data = event.removeprefix(b"data:").strip()
    if not event.startswith(b"data:") or data == b"[DONE]":
        return
    payload = json.loads(data)
    if error := payload.get("error"):
        answer.error = str(error)[:300]
    if text := "".join(choice.get("text") or "" for choice in payload.get("choices") or []):
        answer.pieces.append((at, text))
    if usage := payload.get("usage"):
        answer.n_prompt, answer.n_tokens = usage["prompt_tokens"], usage["completion_tokens"]


# --- what the times say ----------------------------------------------------------------------------------------------
def figures(answers: list[Answer], n_prompt: int, n_tokens: int) -> dict[str, float]:
    """Of streams that ran together: tokens/s from the first request to the last token, ms to first tokens and between."""
    whole = [answer for answer in answers if is_whole(answer, n_prompt, n_tokens)]
    if not whole:
        return {"failed": len(answers)}
    seconds = max(answer.pieces[-1][0] for answer in whole) - min(answer.sent_at for answer in answers)
    gaps = [to - since for answer in whole for since, to in answer.gaps]
    alone = [(a.pieces[-1][0] - a.pieces[0][0]) / max(a.n_tokens - 1, 1) for a in whole]
    return {
        "tok_s": sum(answer.n_tokens for answer in whole) / seconds,
        "ttft_ms": 1e3 * percentile([answer.pieces[0][0] - answer.sent_at for answer in whole], 50),
        "itl_ms": 1e3 * percentile(gaps, 50),
        "itl_p99_ms": 1e3 * percentile(gaps, 99),
        "ms_per_token": 1e3 * percentile(alone, 50),
        "decode_tok_s": writing_rate(whole),
        "failed": len(answers) - len(whole),
    }


def writing_rate(answers: list[Answer]) -> float:
    """Tokens/s while all of them are being written: from the last one's first piece to the first one's last. NaN if never."""
    since = max(answer.pieces[0][0] for answer in answers)
    until = min(answer.pieces[-1][0] for answer in answers)
    n = sum(a.n_tokens / len(a.pieces) * sum(since < at <= until for at, _ in a.pieces) for a in answers)
    return n / (until - since) if until > since else float("nan")


def is_whole(answer: Answer, n_prompt: int, n_tokens: int) -> bool:
    """Whether it is the answer that was asked for: no error, and both lengths as agreed."""
    return not answer.error and bool(answer.pieces) and (answer.n_prompt, answer.n_tokens) == (n_prompt, n_tokens)


def faults(answers: list[Answer], n_prompt: int, n_tokens: int) -> list[str]:
    """What was wrong with those that are not whole, each kind once."""
    wrong = [answer for answer in answers if not is_whole(answer, n_prompt, n_tokens)]
    return sorted({a.error or f"{a.n_prompt} tokens in, {a.n_tokens} out, {len(a.pieces)} pieces" for a in wrong})


def percentile(values: list[float], share: float) -> float:
    """NaN when there are no values."""
    return float(np.percentile(values, share)) if values else float("nan")
