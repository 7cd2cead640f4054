"""What all endpoints share: strict requests, scopes, one format for errors, requests that may be sent twice.

Every error is {"error": {"code", "message", "fields"?}}; the message says what to do.
"""

import json
import math
from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, JsonResponse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import exceptions, serializers
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from labeling import access
from labeling.errors import Refused
from serving import idempotency

MAX_INTEGER = 2**31 - 1


class Strict(serializers.Serializer):
    """A serializer that refuses keys that it does not know: a misspelt one is never silently ignored."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := sorted(set(data) - set(self.fields))):
            raise serializers.ValidationError({key: [_("There is no such key here. Leave it out.")] for key in unknown})
        return super().to_internal_value(data)


class ProblemShown(serializers.Serializer):
    code = serializers.CharField(help_text="for programs")
    message = serializers.CharField(help_text="for people: what is wrong, and what to do")
    fields = serializers.JSONField(required=False, help_text="which values are wrong, and why")  # type: ignore[assignment]


class ErrorShown(serializers.Serializer):
    error = ProblemShown()


class Endpoint(APIView):
    """`scopes` says what a key needs, by method; `throttle` names the rate where it is not that of reading or writing."""

    scopes: ClassVar[dict[str, str]] = {}
    throttle: ClassVar[str | None] = None

    def get_exception_handler(self) -> Any:
        return answer_error


def answer_error(error: Exception, context: dict[str, Any]) -> Response | None:
    """The one mapping of exceptions to answers; None (a bug, hence 500) for any other."""
    if isinstance(error, Refused):
        return _error(error.status, error.code, str(error))
    if isinstance(error, idempotency.Conflict):
        return _error(409, "idempotency_conflict", str(error))
    if isinstance(error, (Http404, exceptions.NotFound)):
        return _error(404, "not_found", _("There is nothing here that you may see."))
    if isinstance(error, exceptions.NotAuthenticated):
        return _error(401, "login_required", _("You are logged out. Log in again."), _headers(error))
    if isinstance(error, exceptions.ValidationError):
        message = _("Some values are wrong; fields says which.")
        return _error(400, "invalid", message, fields=error.detail)
    if isinstance(error, (PermissionDenied, exceptions.PermissionDenied)):
        return _error(403, "forbidden", _why_denied(error))
    if isinstance(error, exceptions.APIException):
        return _error(error.status_code, str(error.default_code), str(error.detail), _headers(error))
    return None


def _why_denied(error: Exception) -> str:
    is_ours = isinstance(error, exceptions.PermissionDenied) and error.detail != error.default_detail
    return str(error) if is_ours or str(error) else _("Only a manager of this campaign may do this.")


def _headers(error: exceptions.APIException) -> dict[str, str]:
    """How to log in, and when to come back."""
    challenge, wait = getattr(error, "auth_header", None), getattr(error, "wait", None)
    headers = {"WWW-Authenticate": str(challenge)} if challenge else {}
    if wait:
        headers["Retry-After"] = str(math.ceil(wait))
    return headers


@csrf_exempt
def nothing_here(request: HttpRequest, rest: str) -> JsonResponse:
    """Programs get JSON also where no address is."""
    message = _("There is no such address. They all end with a slash; /api/docs/ lists them.")
    return JsonResponse({"error": {"code": "not_found", "message": message}}, status=404)


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    return Response({"error": {"code": code, "message": message, **more}}, status=status, headers=headers)


def parse(serializer: type[Strict], request: Request, *, partial: bool = False) -> dict[str, Any]:
    """The request's body, checked; raises ValidationError."""
    parsed = serializer(data=request.data, partial=partial)
    parsed.is_valid(raise_exception=True)
    return parsed.validated_data


Handler = Callable[..., Response]
IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    location=OpenApiParameter.HEADER,
    description="made by you: sent again with the same key, the request acts once and is answered the same",
)


def idempotent(handler: Handler) -> Handler:
    """The endpoint takes an Idempotency-Key: same key and same request, same answer; another request is a 409."""

    @wraps(handler)
    def once(self: Endpoint, request: Request, *args: Any, **kwargs: Any) -> Response:
        key = request.headers.get("Idempotency-Key", "")
        if not key:
            return handler(self, request, *args, **kwargs)
        if len(key) > idempotency.MAX_KEY or not key.isascii() or not key.isprintable():
            raise serializers.ValidationError({"Idempotency-Key": [_("At most 80 letters, digits and signs.")]})
        data = json.dumps(request.data, sort_keys=True).encode()
        asked = idempotency.fingerprint(str(request.method), request.path, data)
        row, is_new = idempotency.begin(access.person(request), key, asked, timezone.now())
        if not is_new:
            return Response(row.body, status=row.status, headers={"Idempotency-Replayed": "true"})
        return _answer_first(row, lambda: handler(self, request, *args, **kwargs))

    return extend_schema(parameters=[IDEMPOTENCY_KEY])(once)


def _answer_first(row: idempotency.IdempotentRequest, act: Callable[[], Response]) -> Response:
    try:
        response = act()
    except BaseException:
        idempotency.forget(row)
        raise
    idempotency.finish(row, response.status_code, json.loads(JSONRenderer().render(response.data)))
    return response
