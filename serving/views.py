"""The chat page and its messages. Every view is for the owner of what it shows: for anybody else it does not exist (404)."""

import uuid
from typing import Any, cast

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from serving import (
    adapters,
    before_after,
    bodies,
    branches,
    chat,
    context,
    picker,
    sampling,
    searching,
    streams,
)
from serving.bodies import json_errors
from serving.branches import Turn
from serving.models import Adapter, Conversation, Message


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
    return _page(request, row, branches.turns(row, bodies.uuid_or_none(request.GET.get("at"))))


def _page(request: HttpRequest, row: Conversation | None, turns: list[Turn]) -> HttpResponse:
    settings = sampling.of_conversation(row) if row else sampling.Settings()
    page = {
        "page": "chat",
        "conversation": row,
        "turns": turns,
        "answering": _answering(row.pk if row else None),
        **_versions(),
        "listed": searching.listed(_user(request)),
        "suggestions": _suggestions(),
        "max_chars": chat.MAX_QUESTION_CHARS,
        "settings": settings,
        "settings_form": sampling.SettingsForm(initial=sampling.to_dict(settings)),
    }
    return render(request, "serving/chat.html", page)


def _versions() -> dict[str, Any]:
    """What there is to pick, and what is compared unless somebody chooses."""
    deployment = adapters.deployment()
    return {
        "deployment": deployment,
        "options": picker.options(deployment),
        "compare_with": deployment.previous or adapters.base(),
    }


def _answering(conversation: uuid.UUID | None) -> Adapter:
    return adapters.resolve(adapters.CURRENT, str(conversation or "")).adapter


def _suggestions() -> list[str]:
    return [
        _("Explain why the sky is blue to a curious ten-year-old."),
        _("Write a short, friendly email that moves Thursday's meeting to Friday."),
        _("Give me three ways to make a small kitchen feel larger."),
    ]


@login_required
@require_GET
@json_errors
def chat_current(request: HttpRequest) -> HttpResponse:
    """Which version answers now, `?in=` a conversation, which may be one of those that try out another; the page asks from
    time to time.
    """
    adapter = _answering(bodies.uuid_or_none(request.GET.get("in")))
    return JsonResponse({"name": adapter.name, "label": picker.label(adapter), "is_base": adapter.is_base})


@login_required
@require_GET
@json_errors
def chat_versions(request: HttpRequest) -> HttpResponse:
    """What there is to pick and to compare by now; the page asks when another version answers than before."""
    return JsonResponse({"html": render_to_string("serving/_versions.html", _versions())})


@login_required
@require_GET
@json_errors
def chat_context(request: HttpRequest) -> HttpResponse:
    """How many tokens a conversation may have; null while no model server answers."""
    return JsonResponse({"tokens": context.size()})


# --- asking -----------------------------------------------------------------------------------------------------------
@login_required
@require_POST
@json_errors
def chat_start(request: HttpRequest) -> HttpResponse:
    """{"content", "versions"?: one name or two, "settings"?, "key"?: a UUID} → a new conversation with its first question."""
    body = bodies.read(request)
    question = chat.start(
        _user(request),
        bodies.text(body, "content"),
        bodies.names(body, "versions"),
        settings=sampling.parse(bodies.mapping(body, "settings")),
        key=bodies.uuid_or_none(body.get("key")),
    )
    row = question.conversation
    listed = {"listed": searching.listed(_user(request)), "conversation": row}
    return JsonResponse(
        {
            "html": _turn_html(branches.turn_of(question)),
            "conversations": render_to_string("serving/_conversations.html", listed, request),
            "id": str(row.pk),
            "url": reverse("conversation", args=[row.pk]),
            "ask_url": reverse("message_create", args=[row.pk]),
            "settings_url": reverse("conversation_settings", args=[row.pk]),
            "export_urls": [reverse(f"conversation_{kind}", args=[row.pk]) for kind in ("markdown", "json")],
            "title": row.title,
        },
        status=201,
    )


@login_required
@require_POST
@json_errors
def message_create(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """{"content", "parent": id of the answer replied to, or null, "versions"?, "key"?} → the new turn. An edited question
    has the parent of the one before.
    """
    row = get_object_or_404(Conversation, pk=pk, owner=_user(request))
    body = bodies.read(request)
    question = chat.ask(
        row,
        bodies.text(body, "content"),
        bodies.uuid_or_none(body.get("parent")),
        bodies.names(body, "versions"),
        key=bodies.uuid_or_none(body.get("key")),
    )
    return JsonResponse({"html": _turn_html(branches.turn_of(question))}, status=201)


@login_required
@require_POST
@json_errors
def message_regenerate(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """{"version"?} → the turn with one more answer."""
    answer = chat.regenerate(_answer(request, pk), _version(request))
    return JsonResponse({"html": _turn_html(branches.turn_of(answer))}, status=201)


@login_required
@require_POST
@json_errors
def message_challenge(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """{"version"?} → the turn with this answer and a new one side by side, blind."""
    question = chat.challenge(_answer(request, pk), _version(request))
    return JsonResponse({"html": _turn_html(branches.turn_of(question))}, status=201)


@login_required
@require_POST
@json_errors
def message_continue(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    answer = _answer(request, pk)
    chat.continue_answer(answer)
    answer.refresh_from_db()
    return JsonResponse({"html": _turn_html(branches.turn_of(answer))})


@login_required
@require_POST
@json_errors
def message_go_on(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """The turn of a question or an answer, in which those go on that lost their reader a moment ago."""
    row = get_object_or_404(Message.objects.select_related("parent"), pk=pk, conversation__owner=_user(request))
    chat.go_on(row)
    return JsonResponse({"html": _turn_html(branches.turn_of(row))})


@login_required
@require_POST
@json_errors
def message_stop(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """Tells a reader who stops from one who is gone, and ends what has no stream yet."""
    answer = _answer(request, pk)
    chat.stop(answer)
    answer.refresh_from_db()
    return JsonResponse({"status": answer.status})


@login_required
@require_GET
@json_errors
def message_stream(request: HttpRequest, pk: uuid.UUID) -> StreamingHttpResponse:
    """Server-sent events; leaving ends the answer.

    The view is synchronous: it asks whose the answer is and is done. What follows is a coroutine, so a reader costs
    neither a thread nor a connection.
    """
    _answer(request, pk)
    return _stream(streams.events(pk, _end))


def _end(pk: uuid.UUID) -> dict[str, Any]:
    message = Message.objects.select_related("adapter", "parent").get(pk=pk)
    return {"status": message.status, "html": _turn_html(branches.turn_of(message))}


def _stream(events: Any) -> StreamingHttpResponse:
    response = StreamingHttpResponse(events, content_type="text/event-stream")
    response["Cache-Control"] = "no-cache, no-transform"
    response["X-Accel-Buffering"] = "no"  # nginx would hold the events back
    return response


# --- one message ------------------------------------------------------------------------------------------------------
@login_required
@require_GET
@json_errors
def message(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """The turn of a question or an answer, as it is now."""
    row = get_object_or_404(Message.objects.select_related("parent"), pk=pk, conversation__owner=_user(request))
    turn = branches.turn_of(row)
    return JsonResponse({"html": _turn_html(turn), "is_finished": not turn.is_unfinished})


@login_required
@require_POST
@json_errors
def message_rate(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    answer = _answer(request, pk)
    chat.rate(answer, bodies.read(request).get("rating", 0))
    return JsonResponse({"rating": answer.rating})


@login_required
@require_POST
@json_errors
def comparison_choose(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """{"choice", "client_key" of the comparison, "is_stored": whether labeling has it as a judgment} of a side-by-side
    question: reveals the versions. The judgment itself is labeling's.
    """
    question = get_object_or_404(Message, pk=pk, conversation__owner=_user(request), role=Message.Role.USER)
    body = bodies.read(request)
    client_key = bodies.text(body, "client_key")
    chat.choose(question, bodies.text(body, "choice"), client_key, is_stored=body.get("is_stored") is True)
    question.refresh_from_db()
    return JsonResponse({"html": _turn_html(branches.turn_of(question))})


# --- before and after -------------------------------------------------------------------------------------------------
@login_required
@require_GET
@json_errors
def message_versions(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """The versions that the question of this answer can be put to, as the columns of a dialog."""
    answer = _answer(request, pk)
    shown = {"answer": answer, "columns": before_after.columns()}
    return JsonResponse({"html": render_to_string("serving/_before_after.html", shown)})


@login_required
@require_POST
@json_errors
def message_version_stream(request: HttpRequest, pk: uuid.UUID, version: int) -> StreamingHttpResponse:
    """What that version says, as server-sent events; nothing is stored."""
    answer, adapter = _answer(request, pk), get_object_or_404(adapters.servable(), pk=version)
    return _stream(streams.passing(before_after.write(answer, adapter)))


# --- parsing and rendering --------------------------------------------------------------------------------------------
def _turn_html(turn: Turn) -> str:
    return render_to_string("serving/_turn.html", {"turn": turn})


def _user(request: HttpRequest) -> User:
    return cast(User, request.user)  # login_required lets nobody else in


def _answer(request: HttpRequest, pk: uuid.UUID) -> Message:
    rows = Message.objects.select_related("adapter", "parent", "conversation")
    return get_object_or_404(rows, pk=pk, conversation__owner=_user(request), role=Message.Role.ASSISTANT)


def _version(request: HttpRequest) -> str:
    return bodies.text(bodies.read(request), "version") or adapters.CURRENT
