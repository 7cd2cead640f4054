"""What can go wrong below /v1/, as OpenAI's clients expect to be told."""

import json
import math
from collections.abc import Mapping

from django.http import HttpResponse
from django.utils.translation import gettext as _

from serving.client import EngineDown, EngineError
from serving.limits import Limited, Limits, Use
from serving.requests import OF_REQUESTS, status_of

RETRY = {"Retry-After": "2"}
RETRY_WITH_A_PLACE = {"Retry-After": "15"}  # seconds; so often the worker unloads what nobody wants any more
KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}


class Problem(Exception):
    """An error answer: its status, words, the parameter at fault and a code."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def body(self) -> bytes:
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")

    def response(self) -> HttpResponse:
        return HttpResponse(self.body(), status=self.status, content_type="application/json", headers=self.headers)

    def event(self) -> bytes:
        """Inside a stream, which can have no other status any more."""
        return b"data: " + self.body() + b"\n\n"


def bad(message: str, param: str | None = None, code: str | None = None) -> Problem:
    return Problem(400, message, code, param)


def unauthorized() -> Problem:
    words = _("This key is missing, unknown, expired or revoked. Send Authorization: Bearer, a space, and a key.")
    return Problem(401, words, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def too_large(n_bytes: int) -> Problem:
    return Problem(413, _("The request body may have %d bytes.") % n_bytes, "request_too_large")


def unknown_model(name: str) -> Problem:
    words = _("The model %s does not exist. GET /v1/models lists those that do.") % repr(name[:80])
    return Problem(404, words, "model_not_found", "model")


def limited(error: Limited) -> Problem:
    """429. A request that no waiting makes small enough says so to the client, which would try again."""
    words = {
        "requests": _("This key may send %d requests a minute.") % error.limits.requests,
        "tokens": _("This key may use %d tokens a minute, prompts and answers together.") % error.limits.tokens,
        "concurrent": _("This key may have %d requests answered at once.") % error.limits.concurrent,
    }[error.kind]
    headers = limit_headers(error.limits, error.requests, error.tokens)
    if error.seconds is None:
        headers["X-Should-Retry"] = "false"
        words += " " + _("This one asks for more than that.")
    else:
        headers["Retry-After"] = str(math.ceil(error.seconds))
    return Problem(429, words, "rate_limit_exceeded", headers=headers)


def limit_headers(limits: Limits, requests: Use, tokens: Use) -> dict[str, str]:
    """OpenAI's, of each limit that there is."""
    headers = {}
    for name, limit, use in (("requests", limits.requests, requests), ("tokens", limits.tokens, tokens)):
        if limit:
            headers[f"X-RateLimit-Limit-{name.title()}"] = str(limit)
            headers[f"X-RateLimit-Remaining-{name.title()}"] = str(max(limit - use.n, 0))
            headers[f"X-RateLimit-Reset-{name.title()}"] = f"{use.reset:.3f}s"
    return headers


def of_engine(failure: EngineDown | EngineError) -> Problem:
    """An engine's refusal in its own words where the request is at fault. What else it says is not for the public."""
    status = status_of(failure)
    if isinstance(failure, EngineError) and status in OF_REQUESTS:
        return Problem(status, failure.message, failure.code, failure.param)
    if status == 504:
        return Problem(status, _("The model server did not answer in time."), "engine_timeout")
    if status == 502:
        return Problem(status, _("The model server failed on this request."), "engine_error")
    if isinstance(failure, EngineError) and failure.is_full:
        words = _(
            "The model server has no place for this version now. Try again in a moment, or ask for another model."
        )
        return Problem(status, words, "no_place", headers=RETRY_WITH_A_PLACE)
    words = _("The model server is starting or has too much to do. Try again in a few seconds.")
    return Problem(status, words, "engine_unavailable", headers=RETRY)
