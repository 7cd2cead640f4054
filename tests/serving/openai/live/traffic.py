"""Programs that ask the public endpoints without a pause, and what came of each of their streams."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import openai

PROMPTS = ("Why is the sky blue?", "What is in bread?", "Tell me about Rome.", "Write about a lighthouse. " * 20)
N_QUESTIONS = 2 * len(PROMPTS)  # each prompt as a conversation, and as a text that goes on
LONG = N_QUESTIONS  # one more, the first prompt with a long answer
GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}
ERROR = {"message", "type", "param", "code"}


@dataclass(eq=False)
class Stream:
    """One streamed answer. Times are seconds of the monotonic clock."""

    question: int
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    text: str = ""
    models: set[str] = field(default_factory=set)  # that its events name
    versions: set[str] = field(default_factory=set)
    finish_reason: str = ""
    failure: openai.APIError | None = None

    @property
    def is_whole(self) -> bool:
        return bool(self.finish_reason) and self.failure is None

    @property
    def is_told_clearly(self) -> bool:
        """Of its failure: in OpenAI's format, before the stream with a status, in it as an event."""
        failure = self.failure
        status = failure.status_code if isinstance(failure, openai.APIStatusError) else None
        is_formatted = failure is not None and isinstance(failure.body, dict) and set(failure.body) == ERROR
        return is_formatted and (status is None if self.versions else status in (502, 503))


class Traffic:
    """`streams` holds those that have ended, in that order, `running` the others."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client
        self.streams: list[Stream] = []
        self.running: list[Stream] = []
        self.is_over = False

    async def ask_again_and_again(self, question: int) -> None:
        """Whoever is told to come back later does."""
        while not self.is_over:
            stream = await self.ask("current", question)
            if isinstance(stream.failure, openai.APIStatusError):
                await asyncio.sleep(float(stream.failure.response.headers.get("Retry-After", 1)))

    async def ask(self, model: str, question: int) -> Stream:
        found = Stream(question)
        self.running.append(found)
        try:
            async for chunk in await self._begun(model, question):
                _read(found, chunk)
        except openai.APIError as failure:
            found.failure = failure
        found.ended = time.monotonic()
        self.running.remove(found)
        self.streams.append(found)
        return found

    async def _begun(self, model: str, question: int) -> AsyncIterator[Any]:
        prompt = PROMPTS[question % N_QUESTIONS // 2]
        how: dict[str, Any] = {**GREEDY, "stream": True, "max_tokens": 200 if question == LONG else 16}
        if question % 2:
            return await self._client.completions.create(model=model, prompt=prompt, **how)
        messages: Any = [{"role": "user", "content": prompt}]
        return await self._client.chat.completions.create(model=model, messages=messages, **how)


def _read(stream: Stream, chunk: Any) -> None:
    stream.models.add(chunk.model)
    stream.versions.add(chunk.system_fingerprint)
    for choice in chunk.choices:
        stream.text += (choice.text if chunk.object == "text_completion" else choice.delta.content) or ""
        stream.finish_reason = choice.finish_reason or stream.finish_reason
