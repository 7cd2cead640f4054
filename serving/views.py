"""The chat pages. Every view is for the owner of what it shows: for anybody else it does not exist (404)."""

import json
import uuid
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from serving import adapters, chat, gateway, streams
from serving.chat import Turn
from serving.client import EngineDown, EngineError
from serving.models import Conversation, Message

MAX_LISTED = 200


def json_errors(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """The one mapping of what goes wrong to an answer that api.js shows."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return view(request, *args, **kwargs)
        except (chat.Refused, BadRequest) as error:
            return _error(400, str(error))
        except Http404:
            return _error(404, _not_found())
        except adapters.UnknownModel as error:
            return _error(404, str(error))
        except (EngineDown, EngineError) as error:
            return _error(503, gateway.in_words(error, is_begun=False))

    return wrapped


# --- pages ------------------------------------------------------------------------------------------------------------
@login_required
@require_GET
def chat_page(request: HttpRequest) -> HttpResponse:
    """An empty conversation."""
    return _page(request, None, [])


@login_required
@require_GET
def conversation(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """`?at=<message>` shows the branch through that message."""
    row = get_object_or_404(Conversation, pk=pk, owner=_user(request))
    return _page(request, row, chat.turns(row, _uuid_or_none(request.GET.get("at"))))


def _page(request: HttpRequest, row: Conversation | None, turns: list[Turn]) -> HttpResponse:
    deployment = adapters.deployment()
    context = {
        "page": "chat",
        "conversation": row,
        "turns": turns,
        "deployment": deployment,
        "versions": list(adapters.servable()),
        "compare_with": deployment.previous or adapters.base(),
        "conversations": _listed(request),
        "suggestions": _suggestions(),
        "max_chars": chat.MAX_QUESTION_CHARS,
    }
    return render(request, "serving/chat.html", context)


def _suggestions() -> list[str]:
    return [
        _("Explain why the sky is blue to a curious ten-year-old."),
        _("Write a short, friendly email that moves Thursday's meeting to Friday."),
        _("Give me three ways to make a small kitchen feel larger."),
    ]


def _listed(request: HttpRequest) -> list[Conversation]:
    return list(Conversation.objects.filter(owner=_user(request))[:MAX_LISTED])


# --- asking -----------------------------------------------------------------------------------------------------------
@login_required
@require_POST
@json_errors
def chat_start(request: HttpRequest) -> HttpResponse:
    """{"content", "versions"?: two names} → a new conversation with its first question."""
    body = _body(request)
    question = chat.start(_user(request), _text(body, "content"), _versions(body))
    row = question.conversation
    listed = {"conversations": _listed(request), "conversation": row}
    return JsonResponse(
        {
            "html": _turn_html(chat.turn_of(question)),
            "conversations": render_to_string("serving/_conversations.html", listed, request),
            "url": reverse("conversation", args=[row.pk]),
            "ask_url": reverse("message_create", args=[row.pk]),
            "title": row.title,
        },
        status=201,
    )


@login_required
@require_POST
@json_errors
def message_create(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """{"content", "parent": id of the answer replied to, "versions"?} → the new turn."""
    row = get_object_or_404(Conversation, pk=pk, owner=_user(request))
    body = _body(request)
    question = chat.ask(row, _text(body, "content"), _uuid_or_none(body.get("parent")), _versions(body))
    return JsonResponse({"html": _turn_html(chat.turn_of(question))}, status=201)


@login_required
@require_POST
@json_errors
def message_regenerate(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    answer = chat.regenerate(_answer(request, pk))
    return JsonResponse({"html": _turn_html(chat.turn_of(answer))}, status=201)


@login_required
@require_GET
async def message_stream(request: HttpRequest, pk: uuid.UUID) -> HttpResponseBase:
    """Server-sent events; leaving ends the answer."""
    user = cast(User, await request.auser())
    try:
        await gateway.in_database(_owned_answer, user, pk)
    except Http404:
        # Answered here: Django would render its page in a thread of its own, whose connection nobody closes.
        return _error(404, _not_found())
    response = StreamingHttpResponse(streams.events(pk, _end), content_type="text/event-stream")
    response["Cache-Control"] = "no-cache, no-transform"
    response["X-Accel-Buffering"] = "no"  # nginx would hold the events back
    return response


def _end(pk: uuid.UUID) -> dict[str, Any]:
    message = Message.objects.select_related("adapter", "parent").get(pk=pk)
    return {"status": message.status, "html": _turn_html(chat.turn_of(message))}


# --- one message ------------------------------------------------------------------------------------------------------
@login_required
@require_GET
@json_errors
def message(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """The turn of a question or an answer, as it is now."""
    row = get_object_or_404(Message.objects.select_related("parent"), pk=pk, conversation__owner=_user(request))
    turn = chat.turn_of(row)
    return JsonResponse({"html": _turn_html(turn), "is_finished": not turn.is_unfinished})


@login_required
@require_POST
@json_errors
def message_rate(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    answer = _answer(request, pk)
    chat.rate(answer, _body(request).get("rating", 0))
    return JsonResponse({"rating": answer.rating})


@login_required
@require_POST
@json_errors
def comparison_choose(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """{"choice"} of a side-by-side question: reveals the versions. The judgment itself is labeling's."""
    question = get_object_or_404(Message, pk=pk, conversation__owner=_user(request), role=Message.Role.USER)
    chat.choose(question, _text(_body(request), "choice"))
    question.refresh_from_db()
    return JsonResponse({"html": _turn_html(chat.turn_of(question))})


# --- conversations ----------------------------------------------------------------------------------------------------
@login_required
@require_POST
@json_errors
def conversation_rename(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    row = get_object_or_404(Conversation, pk=pk, owner=_user(request))
    chat.rename(row, _text(_body(request), "title"))
    row.refresh_from_db()
    return JsonResponse({"title": row.title})


@login_required
@require_POST
def conversation_delete(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    chat.delete(get_object_or_404(Conversation, pk=pk, owner=_user(request)))
    return redirect("chat")


@login_required
@require_GET
@json_errors
def chat_current(request: HttpRequest) -> HttpResponse:
    """Which version answers now; the page asks from time to time."""
    row = adapters.deployment()
    label = _("base") if row.adapter.is_base else row.adapter.name
    return JsonResponse({"name": row.adapter.name, "label": label, "is_base": row.adapter.is_base})


# --- parsing and rendering --------------------------------------------------------------------------------------------
def _turn_html(turn: Turn) -> str:
    return render_to_string("serving/_turn.html", {"turn": turn})


def _user(request: HttpRequest) -> User:
    return cast(User, request.user)  # login_required lets nobody else in


def _answer(request: HttpRequest, pk: uuid.UUID) -> Message:
    return _owned_answer(_user(request), pk)


def _owned_answer(user: User, pk: uuid.UUID) -> Message:
    rows = Message.objects.select_related("adapter", "parent", "conversation")
    return get_object_or_404(rows, pk=pk, conversation__owner=user, role=Message.Role.ASSISTANT)


def _not_found() -> str:
    return _("This is gone, or was never yours. Reload the page.")


def _error(status: int, words: str) -> JsonResponse:
    return JsonResponse({"error": {"message": words}}, status=status)


def _body(request: HttpRequest) -> dict[str, Any]:
    try:
        body = json.loads(request.body or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(_("The request is not JSON.")) from error
    if not isinstance(body, dict):
        raise BadRequest(_("The request must be a JSON object."))
    return body


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise BadRequest(_("%s must be text.") % name)
    return value


def _versions(body: dict[str, Any]) -> list[str]:
    names = body.get("versions") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadRequest(_("versions must be a list of names."))
    return names


def _uuid_or_none(value: Any) -> uuid.UUID | None:
    """A message id from a request; what is none counts as none."""
    try:
        return uuid.UUID(value)
    except (ValueError, TypeError, AttributeError):
        return None
