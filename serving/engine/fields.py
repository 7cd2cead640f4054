"""A hostile JSON object taken apart, one checked field at a time, and the refusals that come of it."""

import math
from typing import Any

# Accepted for the sake of clients that always send them; none changes what this engine answers.
IGNORED = (
    "include_reasoning",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "request_id",
    "safety_identifier",
    "service_tier",
    "session_id",
    "store",
    "user",
    "verbosity",
)


class BadRequest(ValueError):
    """An answer in OpenAI's error format: status, message, the parameter at fault, a code."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status

    def to_dict(self) -> dict[str, Any]:
        return error(self.message, self.status, self.param, self.code)


def error(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error format. Both texts may quote the request, so half a surrogate pair must not end up in them."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": _whole(message), "type": kind, "param": param and _whole(param), "code": code}}


class Fields:
    """Takes a JSON object apart, one checked field at a time. A null is the same as an absent field."""

    def __init__(self, body: Any, name: str | None = None) -> None:
        if not isinstance(body, dict):
            raise BadRequest(f"{name or 'The request body'} must be a JSON object.", name)
        self._left = {key: value for key, value in body.items() if value is not None}

    def take(self, name: str) -> Any:
        return self._left.pop(name, None)

    def take_or(self, name: str, default: Any) -> Any:
        value = self.take(name)
        return default if value is None else value

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

    def refuse(self, name: str, neutral: tuple[Any, ...], sentence: str) -> None:
        """Take a field that this engine does not serve; only values that change nothing pass."""
        value = self.take(name)
        if value is not None and value not in neutral:
            raise BadRequest(f"{name}: {sentence}", name, "unsupported_parameter")

    def finish(self) -> None:
        for name in IGNORED:
            self.take(name)
        if self._left:
            name = sorted(self._left)[0]
            raise BadRequest(f"This engine does not know the parameter {name[:80]!r}.", name[:80], "unknown_parameter")


def _is_huge(value: Any) -> bool:
    """An integer that no float can hold: math.isfinite would raise."""
    return type(value) is int and abs(value) > 1 << 63


def _whole(text: str) -> str:
    return text.encode(errors="replace").decode()
