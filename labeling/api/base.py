"""What all endpoints share: strict requests, one format for errors.

Every error is {"error": {"code", "message", "fields"?}}; the message says what to do.
"""

from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404
from django.utils.translation import gettext as _
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from labeling.errors import Refused

MAX_INTEGER = 2**31 - 1


class Strict(serializers.Serializer):
    """A serializer that refuses keys that it does not know: a misspelt one is never silently ignored."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := sorted(set(data) - set(self.fields))):
            raise serializers.ValidationError({key: [_("There is no such key here. Leave it out.")] for key in unknown})
        return super().to_internal_value(data)


class Endpoint(APIView):
    """Maps what goes wrong to one error format."""

    def get_exception_handler(self) -> Any:
        return answer_error


def answer_error(error: Exception, context: dict[str, Any]) -> Response | None:
    """The one mapping of exceptions to answers; None (a bug, hence 500) for any other."""
    if isinstance(error, Refused):
        return _error(error.status, error.code, str(error))
    if isinstance(error, (Http404, exceptions.NotFound)):
        return _error(404, "not_found", _("There is nothing here that you may see."))
    if isinstance(error, exceptions.NotAuthenticated):
        return _error(401, "login_required", _("You are logged out. Log in again."))
    if isinstance(error, exceptions.ValidationError):
        message = _("Some values are wrong; fields says which.")
        return _error(400, "invalid", message, fields=error.detail)
    if isinstance(error, (PermissionDenied, exceptions.PermissionDenied)):
        message = str(error) or _("Only a manager of this campaign may do this.")
        return _error(403, "forbidden", message)
    if isinstance(error, exceptions.APIException):
        return _error(error.status_code, str(error.default_code), str(error.detail))
    return None


def _error(status: int, code: str, message: str, **more: Any) -> Response:
    return Response({"error": {"code": code, "message": message, **more}}, status=status)


def parse(serializer: type[Strict], request: Request) -> dict[str, Any]:
    """The request's body, checked; raises ValidationError."""
    parsed = serializer(data=request.data)
    parsed.is_valid(raise_exception=True)
    return parsed.validated_data
