"""The shapes of answers: chat and text completions, whole and in chunks, as the OpenAI API documents them."""

import json
import time
import uuid
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from serving.engine.job import Choice, Job
from serving.engine.protocol import CompletionRequest, Generation
from serving.engine.sampler import TokenLogprob
from serving.engine.sequence import Done, Piece
from serving.engine.text import Tokenizer

ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class TextAnswer:
    """/v1/completions: an answer's common fields and its choices."""

    object = chunk_object = "text_completion"
    prefix = "cmpl"

    def __init__(self, tokenizer: Tokenizer, asked: Generation, job: Job) -> None:
        self._tokenizer, self._asked, self._prompts = tokenizer, asked, job.prompts
        self._offsets: dict[int, int] = {}  # characters sent so far, by choice
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": job.version.name,
            "system_fingerprint": job.version.sha256[:12],
        }

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        dones = [choice.done for choice in choices if choice.done]
        if isinstance(self._asked, CompletionRequest) and self._asked.is_only_prompt:
            dones = [replace(done, n_tokens=0) for done in dones]
        found = [self._choice(choice, done) for choice, done in zip(choices, dones, strict=True)]
        n_prompt = sum(len(prompt) for prompt in self._prompts)
        return {**self._head, "object": self.object, "choices": found, "usage": usage(dones, n_prompt)}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head, "object": self.chunk_object, "choices": choices, **more}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice of a stream's first chunk, if there is one."""
        return None

    def piece(self, piece: Piece) -> dict[str, Any]:
        logprobs = self._logprobs(piece.index, piece.logprobs)
        return {"index": piece.index, "text": piece.text, "logprobs": logprobs, "finish_reason": None}

    def closing(self, done: Done) -> dict[str, Any]:
        return {"index": done.index, "text": "", "logprobs": None, **_ending(done)}

    def _choice(self, choice: Choice, done: Done) -> dict[str, Any]:
        text, items = choice.text, choice.logprobs
        if isinstance(self._asked, CompletionRequest) and self._asked.is_only_prompt:
            text, items = "", []
        found: dict[str, Any] = {"index": done.index, "text": text, **_ending(done)}
        if isinstance(self._asked, CompletionRequest) and self._asked.is_echo:
            found["text"] = self._prompt_text(done.index) + text
            found["logprobs"] = self._echoed_logprobs(done, items)
        else:
            found["logprobs"] = self._logprobs(done.index, items)
        if done.prompt_logprobs is not None:
            found["prompt_logprobs"] = self._prompt_logprobs(done.prompt_logprobs)
        if self._asked.returns_ids:
            found |= {"prompt_token_ids": self._prompt(done.index), "token_ids": choice.tokens}
        return found

    def _prompt(self, index: int) -> list[int]:
        return self._prompts[index // self._asked.n]

    def _prompt_text(self, index: int) -> str:
        return self._tokenizer.decode(self._prompt(index), has_special=True)

    def _echoed_logprobs(self, done: Done, items: list[TokenLogprob]) -> dict[str, Any] | None:
        """Prompt and answer in one: the first token has none, as in OpenAI's API."""
        if done.prompt_logprobs is None:
            return None
        first = self._tokenizer.token_text(self._prompt(done.index)[0])
        self._offsets[done.index] = len(first)
        found = self._logprobs(done.index, [*done.prompt_logprobs, *items])
        first_entry = {"tokens": first, "token_logprobs": None, "top_logprobs": None, "text_offset": 0}
        return {key: [entry, *(found[key] if found else [])] for key, entry in first_entry.items()}

    def _logprobs(self, index: int, items: Iterable[TokenLogprob]) -> dict[str, Any] | None:
        """OpenAI's older form: parallel lists."""
        items = list(items)
        if not items:
            return None
        text, offsets = self._tokenizer.token_text, []
        for item in items:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(text(item.token))
        return {
            "tokens": [text(item.token) for item in items],
            "token_logprobs": [item.logprob for item in items],
            "top_logprobs": [{text(token): logprob for token, logprob in item.top} for item in items],
            "text_offset": offsets,
        }

    def _prompt_logprobs(self, items: Iterable[TokenLogprob]) -> list[dict[str, Any] | None]:
        """vLLM's form: null for the first token, then {token id: …} with the actual token among them."""
        found: list[dict[str, Any] | None] = [None]
        for item in items:
            entries = [(token, logprob, rank) for rank, (token, logprob) in enumerate(item.top, 1)]
            entries.append((item.token, item.logprob, item.rank))
            text = self._tokenizer.token_text
            found.append(
                {str(token): {"logprob": lp, "rank": rank, "decoded_token": text(token)} for token, lp, rank in entries}
            )
        return found


class ChatAnswer(TextAnswer):
    """/v1/chat/completions."""

    object, chunk_object = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def whole(self, choices: list[Choice]) -> dict[str, Any]:
        """What belongs to the one prompt stands beside the choices, as in vLLM."""
        found, done = super().whole(choices), choices[0].done
        if done and done.prompt_logprobs is not None:
            found["prompt_logprobs"] = self._prompt_logprobs(done.prompt_logprobs)
        if self._asked.returns_ids:
            found["prompt_token_ids"] = self._prompts[0]
        return found

    def opening(self, index: int) -> dict[str, Any]:
        return _delta(index, {"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> dict[str, Any]:
        return _delta(piece.index, {"content": piece.text}, self._logprobs(piece.index, piece.logprobs))

    def closing(self, done: Done) -> dict[str, Any]:
        return {**_delta(done.index, {}), **_ending(done)}

    def _choice(self, choice: Choice, done: Done) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        logprobs = self._logprobs(done.index, choice.logprobs)
        found = {"index": done.index, "message": message, "logprobs": logprobs, **_ending(done)}
        return {**found, "token_ids": choice.tokens} if self._asked.returns_ids else found

    def _logprobs(self, index: int, items: Iterable[TokenLogprob]) -> dict[str, Any] | None:
        content = [
            {**self._token(item.token, item.logprob), "top_logprobs": [self._token(*pair) for pair in item.top]}
            for item in items
        ]
        return {"content": content, "refusal": None} if content else None

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._tokenizer.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def usage(dones: list[Done], n_prompt: int) -> dict[str, Any]:
    """Token counts. Cached are the prompt tokens that the first choice found; the others share its prompt."""
    n_cached = min((done.n_cached for done in dones), default=0)
    return {
        **counts(n_prompt, sum(done.n_tokens for done in dones)),
        "prompt_tokens_details": {"cached_tokens": n_cached},
    }


def counts(n_prompt: int, n_answer: int) -> dict[str, Any]:
    return {"prompt_tokens": n_prompt, "completion_tokens": n_answer, "total_tokens": n_prompt + n_answer}


def event(data: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else ENCODE(data)
    return f"data: {text}\n\n".encode()


def _delta(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _ending(done: Done) -> dict[str, Any]:
    return {"finish_reason": done.reason, "stop_reason": done.stop_reason}
