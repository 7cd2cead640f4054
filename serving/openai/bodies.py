"""Request bodies at the door: which parameters there are, and what the gateway itself must know of them.

What values mean is the engine's to check. But nothing passes that is not named here: an engine may know parameters that
are not for the public, such as a chat template or a priority. What is sent on is written anew from what was read, so
that both sides read the same.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from serving.openai.problems import Problem, bad
from serving.openai.unserved import UNSERVED, asks_for_nothing

MAX_DEPTH = 16
MAX_CHOICES = 128  # the engine has a limit of its own
BYTES_PER_TOKEN = 4
USUAL_ANSWER = 256  # tokens that a request without max_tokens is taken to use

SHARED = {
    "model", "stream", "stream_options", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
    "stop_token_ids", "ignore_eos", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
    "logprobs", "prompt_logprobs",
}  # fmt: skip
# Read here, meant for OpenAI's own services, or for models that reason or call tools: never sent on.
KEPT_HERE = {
    "model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "include_reasoning",
    "parallel_tool_calls", "prompt_cache_retention", "reasoning_effort", "request_id", "session_id", "verbosity",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One of the two endpoints that generate."""

    name: str  # in the request log
    path: str
    prompt: str  # the parameter with what is asked
    parameters: frozenset[str]


CHAT = Kind(
    "chat.completions",
    "/v1/chat/completions",
    "messages",
    frozenset(
        SHARED
        | KEPT_HERE
        | {
            "messages", "max_completion_tokens", "top_logprobs", "response_format", "add_generation_prompt",
            "continue_final_message",
        }
    ),
)  # fmt: skip
TEXT = Kind("completions", "/v1/completions", "prompt", frozenset(SHARED | KEPT_HERE | {"prompt", "echo", "suffix"}))


@dataclass(frozen=True)
class Asked:
    model: str
    is_stream: bool
    wants_usage: bool  # at the end of a stream
    n_tokens: int  # estimated, of prompt and answers
    n_prompt_tokens: int  # of these the prompt's
    sticky: str  # what tells one conversation from others; "": nothing does
    parameters: dict[str, Any]  # to be sent on


def parse(raw: bytes, kind: Kind) -> Asked:
    """Raises Problem."""
    body = _object(raw)
    given = {name: value for name, value in body.items() if not asks_for_nothing(name, value, body)}
    if unknown := sorted(set(given) - kind.parameters):
        raise _not_served(unknown[0])
    if kind.prompt not in given:
        raise bad(_("The parameter %s is missing.") % kind.prompt, kind.prompt, "missing_required_parameter")
    is_stream, options = _flag(given, "stream"), _stream_options(given)
    n_prompt_tokens = len(raw) // BYTES_PER_TOKEN
    if options and not is_stream:
        raise bad(_("stream_options needs stream to be true."), "stream_options")
    sent = {name: value for name, value in given.items() if name not in KEPT_HERE}
    if is_stream:
        sent["stream_options"] = {"include_usage": True}  # the limits need it
    return Asked(
        model=_text(given, "model"),
        is_stream=is_stream,
        wants_usage=_flag(options, "include_usage"),
        n_tokens=n_prompt_tokens
        + _n_prompts(given[kind.prompt]) * _whole(given, "n", 1, MAX_CHOICES) * _longest_answer(given),
        n_prompt_tokens=n_prompt_tokens,
        sticky=_sticky(given, kind),
        parameters=sent,
    )


def _not_served(name: str) -> Problem:
    if name in UNSERVED:
        return bad(f"{name}: {UNSERVED[name][1]}", name, "unsupported_parameter")
    name = name[:80]
    return bad(_("There is no parameter %s.") % repr(name), name, "unknown_parameter")


def _n_prompts(prompt: Any) -> int:
    """A list of texts, or of lists of token ids, is one prompt each; messages and token ids are one together."""
    return len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw.decode(), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise bad(_("The request body is not valid JSON.")) from error
    if not isinstance(body, dict):
        raise bad(_("The request body must be a JSON object."))
    _check_depth(body)
    return body


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


def _check_depth(body: Any) -> None:
    level, depth = [body], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise bad(_("The request body is nested more than %d levels deep.") % MAX_DEPTH)
        inner = (value.values() if isinstance(value, dict) else value for value in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, str) or not value:
        raise bad(_("%s must be a text.") % name, name, None if name in given else "missing_required_parameter")
    return value


def _flag(given: dict[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise bad(_("%s must be true or false.") % name, name)
    return value


def _whole(given: dict[str, Any], name: str, default: int, most: int, least: int = 1) -> int:
    value = given.get(name, default)
    if type(value) is not int or not least <= value <= most:
        words = _("%(name)s must be a whole number from %(least)d to %(most)d.")
        raise bad(words % {"name": name, "least": least, "most": most}, name)
    return value


def _longest_answer(given: dict[str, Any]) -> int:
    """Of one choice, in tokens: none where only the prompt is to be scored."""
    least, names = int(not given.get("echo")), ("max_tokens", "max_completion_tokens")
    found = [_whole(given, name, 1, 1 << 30, least) for name in names if name in given]
    return min(found, default=USUAL_ANSWER)


def _stream_options(given: dict[str, Any]) -> dict[str, Any]:
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise bad(_("stream_options may hold include_usage and include_obfuscation only."), "stream_options")
    found = {name: value for name, value in options.items() if value is not None}
    _flag(found, "include_obfuscation")  # which hides the lengths of words from who reads along: taken, and not done
    return found


def _sticky(given: dict[str, Any], kind: Kind) -> str:
    """`user` or `prompt_cache_key`, else how the conversation begins: up to its first question, or a text's first line.

    A digest: whatever was sent, it is short and can be stored and hashed on.
    """
    named = [given[name] for name in ("prompt_cache_key", "user") if name in given]
    if any(not isinstance(name, str) for name in named):
        raise bad(_("user and prompt_cache_key must be texts."), "user")
    beginning = named[:1] or _beginning(given[kind.prompt])
    return hashlib.sha256(json.dumps(beginning).encode()).hexdigest()


def _beginning(prompt: Any) -> list[Any]:
    if isinstance(prompt, str):
        return [prompt.split("\n", 1)[0]]
    if not isinstance(prompt, list):
        return []
    is_question: Callable[[Any], bool] = lambda turn: isinstance(turn, dict) and turn.get("role") == "user"  # noqa: E731
    first = next((i for i, turn in enumerate(prompt) if is_question(turn)), 0)
    return prompt[: first + 1]
