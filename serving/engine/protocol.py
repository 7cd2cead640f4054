"""Requests and answers of the HTTP API: OpenAI's chat and text completions with vLLM's extensions, strictly checked.

Everything in a request body is hostile. Each field is taken with its type and bounds; what is left over is unknown and
refused, so a misspelt parameter is never silently ignored.
"""

import math
from dataclasses import dataclass
from typing import Any

from serving.engine.sampler import SamplingParams

MAX_CHOICES = 16
MAX_TOP = 20
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_MESSAGES = 4096
MAX_BIASES = 1024
ROLES = ("system", "developer", "user", "assistant", "tool")
IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "request_id",
    "priority",
)


class BadRequest(ValueError):
    """An answer in OpenAI's error format: status, message, the parameter at fault, a code."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status

    def to_dict(self) -> dict[str, Any]:
        return error(self.message, self.status, self.param, self.code)


def error(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Fields:
    """Takes a JSON object apart, one checked field at a time. A null is the same as an absent field."""

    def __init__(self, body: Any, name: str | None = None) -> None:
        if not isinstance(body, dict):
            raise BadRequest(f"{name or 'The request body'} must be a JSON object.", name)
        self._left = {key: value for key, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        return self._left.pop(name, None)

    def text(self, name: str, *, is_required: bool = True) -> str:
        value = self.take(name)
        if value is None and not is_required:
            return ""
        if not isinstance(value, str) or (is_required and not value):
            raise BadRequest(f"{name} must be a text that is not empty.", name)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise BadRequest(f"{name} must be true or false.", name)
        return default if value is None else value

    def integer(self, name: str, default: Any, low: int, high: int) -> Any:
        value = self.take(name)
        if value is None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise BadRequest(f"{name} must be a whole number between {low} and {high}.", name)
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.take(name)
        if value is None:
            return default
        is_number = type(value) in (int, float) and math.isfinite(value) if not _is_huge(value) else False
        if not is_number or not low <= value <= high:
            raise BadRequest(f"{name} must be a number between {low:g} and {high:g}.", name)
        return float(value)

    def finish(self) -> None:
        for name in IGNORED:
            self.take(name)
        if self._left:
            name = sorted(self._left)[0]
            raise BadRequest(f"This engine does not know the parameter {name[:80]!r}.", name[:80], "unknown_parameter")


@dataclass(frozen=True)
class Sampling:
    """The part that chat and text completions share. `max_tokens` None: as many as the context has room for."""

    max_tokens: int | None
    options: dict[str, Any]  # the other fields of SamplingParams

    def params(self, n_prompt: int, context: int) -> SamplingParams:
        """Complete, for a prompt of n_prompt tokens. Raises BadRequest when prompt and answer do not fit."""
        room = context - n_prompt
        n_asked = self.max_tokens if self.max_tokens is not None else max(room, 1)
        if n_asked > room:
            raise BadRequest(
                f"This model's context is {context} tokens; the prompt has {n_prompt} and the answer may have "
                f"{n_asked}. Shorten one of them.",
                "messages" if room < 1 else "max_tokens",
                "context_length_exceeded",
            )
        return SamplingParams(max_tokens=n_asked, **self.options)


@dataclass(frozen=True)
class Generation:
    """What to do with a prompt, whatever form it came in."""

    model: str
    sampling: Sampling
    n: int
    is_stream: bool
    has_usage: bool  # a stream ends with a usage chunk


@dataclass(frozen=True)
class ChatRequest(Generation):
    messages: list[dict[str, Any]]
    add_generation_prompt: bool
    is_continued: bool


@dataclass(frozen=True)
class CompletionRequest(Generation):
    prompts: list[str | list[int]]


def parse_chat(body: Any, n_vocabulary: int) -> ChatRequest:
    """A /v1/chat/completions body. Raises BadRequest."""
    fields = Fields(body)
    messages = parse_messages(fields.take("messages"))
    is_continued = fields.flag("continue_final_message")
    add_generation_prompt = fields.flag("add_generation_prompt", default=not is_continued)
    if is_continued and (add_generation_prompt or messages[-1]["role"] != "assistant" or not messages[-1]["content"]):
        raise BadRequest("Only an assistant's message can be continued, without a generation prompt.", "messages")
    max_tokens = fields.integer("max_tokens", None, 1, 1 << 30)
    max_tokens = fields.integer("max_completion_tokens", max_tokens, 1, 1 << 30)
    has_logprobs, n_top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, 0, MAX_TOP)
    if n_top and not has_logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true.", "top_logprobs")
    if fields.take("response_format") not in (None, {"type": "text"}):
        raise BadRequest("This engine answers in text only.", "response_format")
    generation = _generation(fields, max_tokens, n_top if has_logprobs else None, n_vocabulary)
    return ChatRequest(
        **generation, messages=messages, add_generation_prompt=add_generation_prompt, is_continued=is_continued
    )


def parse_completion(body: Any, n_vocabulary: int) -> CompletionRequest:
    """A /v1/completions body. Raises BadRequest."""
    fields = Fields(body)
    prompts = _prompts(fields.take("prompt"), n_vocabulary)
    max_tokens = fields.integer("max_tokens", 16, 1, 1 << 30)
    n_top = fields.integer("logprobs", None, 0, MAX_TOP)
    if fields.flag("echo") or fields.take("suffix"):
        raise BadRequest("This engine has neither echo nor suffix.", "echo")
    generation = _generation(fields, max_tokens, n_top, n_vocabulary)
    return CompletionRequest(**generation, prompts=prompts)


def parse_messages(value: Any) -> list[dict[str, Any]]:
    """[{role, content}], with content parts joined to one text. Raises BadRequest."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise BadRequest(f"messages must be a list of 1 to {MAX_MESSAGES} messages.", "messages")
    return [_message(item, f"messages.{i}") for i, item in enumerate(value)]


def _message(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict) or item.get("role") not in ROLES:
        raise BadRequest(f"{where} must be an object with a role: {', '.join(ROLES)}.", where)
    if unknown := sorted(set(item) - {"role", "content", "name", "refusal"}):
        raise BadRequest(f"{where} has a field {unknown[0][:80]!r} that this engine does not know.", where)
    content = item.get("content")
    if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRequest(f"{where}.content must be a text or a list of text parts.", where)
    return {"role": item["role"], "content": content}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _generation(fields: Fields, max_tokens: int | None, n_top: int | None, n_vocabulary: int) -> dict[str, Any]:
    """The fields that chat and text completions share, as arguments of Generation; nothing may be left over."""
    stream, stream_options = fields.flag("stream"), Fields(fields.take("stream_options") or {}, "stream_options")
    n = fields.integer("n", 1, 1, MAX_CHOICES)
    has_usage = stream_options.flag("include_usage")
    stream_options.finish()
    model = fields.text("model")
    prompt_logprobs = fields.integer("prompt_logprobs", None, 0, MAX_TOP)
    if stream and prompt_logprobs is not None:
        raise BadRequest("prompt_logprobs cannot be streamed.", "prompt_logprobs")
    top_k = fields.integer("top_k", 0, -1, 1 << 30)
    options = {
        "temperature": fields.number("temperature", 1.0, 0.0, 2.0),
        "top_p": fields.number("top_p", 1.0, 0.0, 1.0),
        "top_k": max(top_k, 0),
        "min_p": fields.number("min_p", 0.0, 0.0, 1.0),
        "seed": fields.integer("seed", None, -(1 << 63), (1 << 63) - 1),
        "stop": _stops(fields.take("stop")),
        "stop_token_ids": frozenset(_token_ids(fields.take("stop_token_ids") or [], "stop_token_ids", n_vocabulary)),
        "ignore_eos": fields.flag("ignore_eos"),
        "presence_penalty": fields.number("presence_penalty", 0.0, -2.0, 2.0),
        "frequency_penalty": fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        "repetition_penalty": fields.number("repetition_penalty", 1.0, 0.01, 10.0),
        "logit_bias": _logit_bias(fields.take("logit_bias"), n_vocabulary),
        "logprobs": n_top,
        "prompt_logprobs": prompt_logprobs,
    }
    fields.finish()
    if options["top_p"] == 0:
        raise BadRequest("top_p must be greater than 0.", "top_p")
    sampling = Sampling(max_tokens=max_tokens, options=options)
    return {"model": model, "sampling": sampling, "n": n, "is_stream": stream, "has_usage": has_usage}


def _prompts(value: Any, n_vocabulary: int) -> list[str | list[int]]:
    """One text, one list of token ids, or a list of either."""
    many = value if isinstance(value, list) and value and isinstance(value[0], (str, list)) else [value]
    if len(many) > MAX_CHOICES:
        raise BadRequest(f"prompt may hold at most {MAX_CHOICES} prompts.", "prompt")
    for prompt in many:
        if not isinstance(prompt, str):
            _token_ids(prompt, "prompt", n_vocabulary)
        if not prompt:
            raise BadRequest("prompt must not be empty.", "prompt")
    return many


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    is_list = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not is_list or not all(isinstance(stop, str) and 1 <= len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise BadRequest(f"stop must be a text or up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters.", "stop")
    return tuple(stops)


def _token_ids(value: Any, name: str, n_vocabulary: int) -> list[int]:
    if not isinstance(value, list) or not all(type(t) is int and 0 <= t < n_vocabulary for t in value):
        raise BadRequest(f"{name} must be a text or token ids between 0 and {n_vocabulary - 1}.", name)
    return value


def _logit_bias(value: Any, n_vocabulary: int) -> dict[int, float]:
    """Token id (as JSON has keys: a text) to bias. Raises BadRequest."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise BadRequest(f"logit_bias must be an object with up to {MAX_BIASES} token ids.", "logit_bias")
    biases = {}
    for key, bias in value.items():
        is_token = key.isascii() and key.isdigit() and len(key) <= 9 and int(key) < n_vocabulary
        if not is_token or type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise BadRequest("logit_bias must map token ids to numbers between -100 and 100.", "logit_bias")
        biases[int(key)] = float(bias)
    return biases


def _is_huge(value: Any) -> bool:
    """An integer that no float can hold: math.isfinite would raise."""
    return type(value) is int and abs(value) > 1 << 63
