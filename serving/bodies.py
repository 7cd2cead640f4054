"""What the chat page sends, read; and what goes wrong, as an answer that its scripts show."""

import json
import uuid
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponseBase, JsonResponse
from django.utils.translation import gettext as _

from serving import adapters, chat, gateway, sampling
from serving.client import EngineDown, EngineError


def json_errors(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """The one mapping of what goes wrong to an answer that api.js shows."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return view(request, *args, **kwargs)
        except (chat.Refused, BadRequest) as error:
            return refusal(400, str(error))
        except sampling.Invalid as error:
            return JsonResponse({"error": {"message": str(error), "fields": error.errors}}, status=400)
        except Http404:
            return refusal(404, not_found())
        except adapters.UnknownModel as error:
            return refusal(404, str(error))
        except (EngineDown, EngineError) as error:
            return refusal(503, gateway.in_words(error, is_begun=False))

    return wrapped


def refusal(status: int, words: str) -> JsonResponse:
    return JsonResponse({"error": {"message": words}}, status=status)


def not_found() -> str:
    return _("This is gone, or was never yours. Reload the page.")


def read(request: HttpRequest) -> dict[str, Any]:
    """The JSON object of a request. Raises BadRequest."""
    try:
        body = json.loads(request.body or b"{}")
        json.dumps(body, ensure_ascii=False).encode()  # no database stores half a character ("\\ud800")
    except (ValueError, RecursionError) as error:
        raise BadRequest(_("The request is not JSON.")) from error
    if not isinstance(body, dict):
        raise BadRequest(_("The request must be a JSON object."))
    return body


def text(body: dict[str, Any], name: str) -> str:
    value = body.get(name) or ""
    if not isinstance(value, str):
        raise BadRequest(_("%s must be text.") % name)
    return value


def names(body: dict[str, Any], name: str) -> list[str]:
    found = body.get(name) or []
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise BadRequest(_("%s must be a list of names.") % name)
    return found


def mapping(body: dict[str, Any], name: str) -> dict[str, Any]:
    found = body.get(name) or {}
    if not isinstance(found, dict):
        raise BadRequest(_("%s must be a JSON object.") % name)
    return found


def uuid_or_none(value: Any) -> uuid.UUID | None:
    """An id from a request; what is none counts as none."""
    try:
        return uuid.UUID(value)
    except (ValueError, TypeError, AttributeError):
        return None
