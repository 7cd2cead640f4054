"""An answer as server-sent events, made and sent with as little work per token as can be.

While 32 answers are streamed, this code runs between the engine's steps on the same cores: a token of plain text costs
one JSON-encoded string between two prepared halves, and all that happened since the last look goes out at once.
"""

import asyncio
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.engine import answers
from serving.engine.answers import ENCODE, TextAnswer
from serving.engine.fields import error
from serving.engine.job import GenerationFailed, Job
from serving.engine.protocol import Generation
from serving.engine.sequence import Done, Piece

MARK = "\0text\0"  # stands where a piece's text will be; no name or number of an event can hold it
DONE = answers.event("[DONE]")


class Chunks:
    """The events of one streamed answer, as bytes."""

    def __init__(self, answer: TextAnswer, asked: Generation, job: Job) -> None:
        self._answer, self._asked, self._job = answer, asked, job
        self._is_plain = asked.sampling.options["logprobs"] is None and not asked.returns_ids
        self._is_plain &= not asked.has_running_usage
        self._frames: dict[int, tuple[bytes, bytes]] = {}  # what stands before and after a text, by choice
        self._dones: list[Done] = []
        self._n_tokens = 0

    def opening(self) -> bytes:
        """The roles of a chat's messages, and the prompts' ids if they were asked for."""
        found = b""
        for sequence in self._job.sequences:
            choice = self._answer.opening(sequence.index)
            if choice is None and self._asked.returns_ids:
                choice = self._answer.piece(Piece(sequence.index, "", (), ()))
            if choice and self._asked.returns_ids:
                found += self._event(choice | {"prompt_token_ids": sequence.prompt, "token_ids": []})
            elif choice:
                found += self._event(choice)
        return found

    def batch(self, events: list[Piece | Done]) -> bytes:
        return b"".join([self._done(e) if isinstance(e, Done) else self._piece(e) for e in events])

    def closing(self) -> bytes:
        if not self._asked.has_usage:
            return DONE
        found = answers.usage(self._dones, self._job.n_prompt)
        return answers.event(self._answer.chunk([], usage=found)) + DONE

    def _piece(self, piece: Piece) -> bytes:
        self._n_tokens += len(piece.tokens)
        if self._is_plain:
            head, tail = self._frames.get(piece.index) or self._frame(piece.index)
            return head + ENCODE(piece.text).encode() + tail if piece.text else b""
        choice = self._answer.piece(piece)
        return self._event(choice | {"token_ids": piece.tokens} if self._asked.returns_ids else choice)

    def _done(self, done: Done) -> bytes:
        self._dones.append(done)
        return self._event(self._answer.closing(done))

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        sample = self._event(self._answer.piece(Piece(index, MARK, (), ())))
        head, tail = sample.split(ENCODE(MARK).encode())
        self._frames[index] = head, tail
        return head, tail

    def _event(self, choice: dict[str, Any]) -> bytes:
        return answers.event(self._answer.chunk([choice], **self._usage()))

    def _usage(self) -> dict[str, Any]:
        if self._asked.has_running_usage:
            return {"usage": answers.counts(self._job.n_prompt, self._n_tokens)}
        return {"usage": None} if self._asked.has_usage else {}


class EventStream(Response):
    """Server-sent events of a job, which ends with the response, even if the client left before its first byte."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, chunks: Chunks) -> None:
        self.status_code, self.background = 200, None
        self._job, self._chunks = job, chunks
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.ensure_future(disconnected(receive))
        watch.add_done_callback(lambda _: self._job.close())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_all(send)
        finally:
            watch.cancel()
            self._job.close()

    async def _send_all(self, send: Send) -> None:
        async def more(body: bytes) -> None:
            if body:
                self._job.is_blocked = True  # nothing else runs before the next line unless the socket is full
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self._job.is_blocked = False

        await more(self._chunks.opening())
        try:
            async for events in self._job.batches():
                await more(self._chunks.batch(events))
            last = self._chunks.closing()
        except GenerationFailed as failure:
            last = answers.event(error(str(failure), failure.status)) + DONE
        await send({"type": "http.response.body", "body": last, "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
