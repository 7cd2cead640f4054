"""One HTTP request's sequences, seen from the server's event loop."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from serving.engine.engine import Engine
from serving.engine.protocol import Generation
from serving.engine.sampler import TokenLogprob
from serving.engine.sequence import Done, Event, Failed, Piece, Sequence
from serving.engine.versions import Version

MAX_UNREAD = 4096  # events that wait for their reader; then the request ends


class GenerationFailed(RuntimeError):
    """The engine could not finish the request; the message is for people, the status HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Choice:
    """One finished answer."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    done: Done | None = None


class Job:
    """Submits sequences and hands out their events. Close it when nobody listens any more."""

    def __init__(self, engine: Engine, asked: Generation, prompts: list[list[int]], caller: str = "") -> None:
        """`asked.n` choices for each prompt, pinned to the version `asked.model`.

        Raises BadRequest, UnknownVersion, Overloaded or Stopped.
        """
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._unread: list[Event] = []
        self._has_news = asyncio.Event()
        self._is_closed = False
        self.is_blocked = False  # whoever passes the events on waits for the reader
        params = [asked.sampling.params(len(prompt), engine.model.context, asked.FIELD) for prompt in prompts]
        self.prompts, self.n_prompt = prompts, sum(len(prompt) for prompt in prompts)
        self.version: Version = engine.versions.acquire(asked.model)
        pins = [self.version]
        try:
            self.sequences = [
                Sequence(
                    self.version, prompt, how, engine.tokenizer, self._post, i * asked.n + n, n, asked.ending, caller
                )
                for i, (prompt, how) in enumerate(zip(prompts, params, strict=True))
                for n in range(asked.n)
            ]
            pins += [engine.versions.share(self.version) for _ in self.sequences]
            engine.scheduler.submit(self.sequences)
            pins = pins[:1]  # each sequence has a pin of its own, given back by the scheduler when it ends
        finally:
            for version in pins:
                engine.versions.release(version)

    def _post(self, event: Event) -> None:
        """Called by the engine's thread."""
        self._engine.scheduler.outbox.put(self._loop, self._receive, event)

    def _receive(self, event: Event) -> None:
        if self._is_closed:
            return
        self._unread.append(event)
        if self.is_blocked and len(self._unread) > MAX_UNREAD:
            self.close()
            self._unread = [Failed(event.index, "The answer is read too slowly: too much of it waits.", 503)]
        self._has_news.set()

    async def begin(self) -> bool:
        """Wait for the first event; True. Raises GenerationFailed if it is a failure."""
        await self._has_news.wait()
        if self._unread and isinstance(failed := self._unread[0], Failed):
            raise GenerationFailed(failed.message, failed.status)
        return True

    async def batches(self) -> AsyncIterator[list[Piece | Done]]:
        """Every event until each sequence is done, as they come, or until the job is closed. Raises GenerationFailed."""
        n_left = len(self.sequences)
        while n_left:
            if not self._unread and self._is_closed:  # nothing comes any more, and nobody would be woken
                return
            await self._has_news.wait()
            self._has_news.clear()
            events, self._unread = self._unread, []
            good = [event for event in events if not isinstance(event, Failed)]
            yield good
            for event in events:
                if isinstance(event, Failed):
                    raise GenerationFailed(event.message, event.status)
            n_left -= sum(isinstance(event, Done) for event in good)

    def close(self) -> None:
        """Whoever asked listens no longer: what still runs is cancelled."""
        if not self._is_closed:
            self._is_closed = True
            self._has_news.set()
            self._engine.scheduler.cancel(self.sequences)

    async def choices(self) -> list[Choice]:
        """All answers, complete. Raises GenerationFailed."""
        found = [Choice() for _ in self.sequences]
        async for events in self.batches():
            for event in events:
                choice = found[event.index]
                if isinstance(event, Piece):
                    choice.text += event.text
                    choice.tokens += event.tokens
                    choice.logprobs += event.logprobs
                else:
                    choice.done = event
        return found
