"""The shapes of answers: chat and text completions, whole and in chunks, as the OpenAI API documents them."""

import json
import time
import uuid
from collections.abc import Iterable
from typing import Any

from serving.engine.job import Choice
from serving.engine.sampler import TokenLogprob
from serving.engine.sequence import Done, Piece
from serving.engine.text import Tokenizer
from serving.engine.versions import Version


class TextAnswer:
    """/v1/completions: an answer's common fields and its choices."""

    object = chunk_object = "text_completion"
    prefix = "cmpl"

    def __init__(self, tokenizer: Tokenizer, version: Version) -> None:
        self._tokenizer = tokenizer
        self._offsets: dict[int, int] = {}  # characters sent so far, by choice
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": version.name,
            "system_fingerprint": version.sha256[:12],
        }

    def whole(self, choices: list[Choice], n_prompt: int) -> dict[str, Any]:
        dones = [choice.done for choice in choices if choice.done]
        found = [self._choice(choice, done) for choice, done in zip(choices, dones, strict=True)]
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
        logprobs = self._logprobs(done.index, choice.logprobs)
        found = {"index": done.index, "text": choice.text, "logprobs": logprobs, **_ending(done)}
        if done.prompt_logprobs is not None:
            found["prompt_logprobs"] = self._prompt_logprobs(done.prompt_logprobs)
        return found

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
        if done.prompt_logprobs is not None:
            found["prompt_logprobs"] = self._prompt_logprobs(done.prompt_logprobs)
        return found

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
    n_tokens = sum(done.n_tokens for done in dones)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_tokens,
        "total_tokens": n_prompt + n_tokens,
        "prompt_tokens_details": {"cached_tokens": min((done.n_cached for done in dones), default=0)},
    }


def event(data: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def _delta(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _ending(done: Done) -> dict[str, Any]:
    return {"finish_reason": done.reason, "stop_reason": done.stop_reason}
