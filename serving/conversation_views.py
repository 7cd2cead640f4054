"""A person's conversations: the list, what is looked for in it, names, settings, files. Other people's do not exist (404)."""

import uuid
from typing import cast

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect
from django.template.loader import render_to_string
from django.utils import timezone
from django.utils.http import content_disposition_header
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_POST

from serving import bodies, chat, exporting, sampling, searching
from serving.bodies import json_errors
from serving.models import Conversation


@login_required
@require_GET
@json_errors
def conversations(request: HttpRequest) -> HttpResponse:
    """`?q=` words that must occur, `?after=` where the page before ended, `?open=` the conversation that is shown."""
    query = request.GET.get("q", "")
    page = searching.listed(_user(request), query, request.GET.get("after", ""))
    opened = bodies.uuid_or_none(request.GET.get("open"))
    shown = {"listed": page, "query": query, "conversation": {"pk": opened}}
    return JsonResponse(
        {"html": render_to_string("serving/_conversations.html", shown, request), "said": _said(page.count)}
    )


def _said(count: int | None) -> str:
    """What a screen reader says of a search."""
    if count is None:
        return ""
    return ngettext("%d conversation found.", "%d conversations found.", count) % count


@login_required
@require_POST
@json_errors
def conversation_rename(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    row = _conversation(request, pk)
    chat.rename(row, bodies.text(bodies.read(request), "title"))
    row.refresh_from_db()
    return JsonResponse({"title": row.title})


@login_required
@require_POST
def conversation_delete(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """Leads back to the conversation that is `open`, if that is another one."""
    chat.delete(_conversation(request, pk))
    opened = bodies.uuid_or_none(request.POST.get("open"))
    return redirect("conversation", opened) if opened and opened != pk else redirect("chat")


@login_required
@require_POST
@json_errors
def chat_settings(request: HttpRequest) -> HttpResponse:
    """Looks over the settings of a conversation that does not exist yet; they come again with its first question."""
    return _settings(sampling.parse(bodies.read(request)))


@login_required
@require_POST
@json_errors
def conversation_settings(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """Settings by name, all of them: what is left out is the default again. They hold for answers from now on."""
    row, settings = _conversation(request, pk), sampling.parse(bodies.read(request))
    chat.change_settings(row, settings)
    return _settings(settings)


def _settings(settings: sampling.Settings) -> HttpResponse:
    return JsonResponse({"settings": sampling.to_dict(settings), "is_default": settings.is_default})


@login_required
@require_GET
def conversation_export(request: HttpRequest, pk: uuid.UUID, extension: str) -> HttpResponse:
    """The whole conversation as a file."""
    row = _conversation(request, pk)
    text = exporting.to_json(row) if extension == "json" else exporting.to_markdown(row)
    response = HttpResponse(text, content_type=exporting.FORMATS[extension])
    name = exporting.file_name(row, extension, timezone.localtime())
    response["Content-Disposition"] = content_disposition_header(True, name)
    return response


def _conversation(request: HttpRequest, pk: uuid.UUID) -> Conversation:
    return get_object_or_404(Conversation, pk=pk, owner=_user(request))


def _user(request: HttpRequest) -> User:
    return cast(User, request.user)  # login_required lets nobody else in
