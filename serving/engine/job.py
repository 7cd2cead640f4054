"""One HTTP request's sequences, seen from the server's event loop."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from serving.engine.engine import Engine
from serving.engine.sampler import SamplingParams, TokenLogprob
from serving.engine.sequence import Done, Event, Failed, Piece, Sequence
from serving.engine.versions import Version


class GenerationFailed(RuntimeError):
    """The engine could not finish the request; the message is for people."""


@dataclass
class Choice:
    """One finished answer."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    done: Done | None = None


class Job:
    """Submits sequences and hands out their events. Close it when nobody listens any more."""

    def __init__(
        self, engine: Engine, name: str, prompts: list[list[int]], params: list[SamplingParams], n: int
    ) -> None:
        """`n` choices for each prompt, pinned to the version `name`. Raises UnknownVersion, Overloaded or Stopped."""
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self.version: Version = engine.versions.acquire(name)
        self.n_prompt = sum(len(prompt) for prompt in prompts)
        self.sequences: list[Sequence] = []
        for i, (prompt, how) in enumerate(zip(prompts, params, strict=True)):
            for draw in range(n):
                sequence = Sequence(self.version, prompt, how, engine.tokenizer, self._receive, i * n + draw, draw)
                self.sequences.append(sequence)
        self._submit()

    def _submit(self) -> None:
        """Each sequence gets a pin of its own, given back by the scheduler when it ends."""
        pins = [self.version, *(self._engine.versions.share(self.version) for _ in self.sequences)]
        try:
            self._engine.scheduler.submit(self.sequences)
            pins = pins[:1]
        finally:
            for version in pins:
                self._engine.versions.release(version)

    def _receive(self, event: Event) -> None:
        """Called by the engine's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Piece | Done]:
        """Every event until each sequence is done. Raises GenerationFailed."""
        for _ in self.sequences:
            while isinstance(event := await self._events.get(), Piece):
                yield event
            if isinstance(event, Failed):
                raise GenerationFailed(event.message)
            yield event

    def close(self) -> None:
        """Whoever asked listens no longer: what still runs is cancelled."""
        self._engine.scheduler.cancel(self.sequences)

    async def choices(self) -> list[Choice]:
        """All answers, complete. Raises GenerationFailed."""
        found = [Choice() for _ in self.sequences]
        async for event in self.events():
            choice = found[event.index]
            if isinstance(event, Piece):
                choice.text += event.text
                choice.logprobs += event.logprobs
            else:
                choice.done = event
        return found
