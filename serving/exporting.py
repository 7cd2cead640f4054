"""A conversation as a file: JSON with everything on it, Markdown to read. All branches, versions, settings and ratings.

While a choice between two answers is open, who wrote them stays hidden here too.
"""

import json
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.utils.text import slugify
from django.utils.translation import gettext as _

from serving import sampling
from serving.models import Conversation, Message

FORMAT = 1
FORMATS = {"json": "application/json", "md": "text/markdown; charset=utf-8"}
MAX_NAME_CHARS = 60
QUOTED_CHARS = 60
# What may tell two versions apart.
HIDDEN = ("version", "system_prompt", "sampling", "usage", "created_at", "rating", "error")


def file_name(conversation: Conversation, extension: str, now: datetime) -> str:
    """Of letters, digits and dashes only, which every file system takes."""
    name = slugify(conversation.title)[:MAX_NAME_CHARS].strip("-") or "conversation"
    return f"chat-{name}-{now:%Y-%m-%d}.{extension}"


def to_json(conversation: Conversation) -> str:
    """{"format", "title", …, "messages": [every message of every branch, a tree by `parent`, oldest first]}."""
    rows = list(conversation.messages.select_related("adapter", "parent"))
    document = {
        "format": FORMAT,
        "id": str(conversation.pk),
        "title": conversation.title,
        "created_at": conversation.created_at.isoformat(),
        "updated_at": conversation.updated_at.isoformat(),
        "settings": sampling.to_dict(sampling.of_conversation(conversation)),
        "messages": [_message(row) for row in rows],
    }
    return json.dumps(document, ensure_ascii=False, indent=1)


def _message(row: Message) -> dict[str, Any]:
    common = {
        "id": str(row.pk),
        "parent": str(row.parent_id) if row.parent_id else None,
        "role": row.role,
        "content": row.content,
        "created_at": row.created_at.isoformat(),
    }
    if row.role == Message.Role.USER:
        compared = {name: value for name, value in row.comparison.items() if name != "client_key"}
        return common | ({"comparison": compared} if compared else {})
    said = common | {
        "status": row.status,
        "version": row.adapter.name if row.adapter else None,
        "system_prompt": row.system_prompt,
        "sampling": row.sampling,
        "usage": row.usage,
        "rating": row.rating,
        "error": row.error,
    }
    return said | (dict.fromkeys(HIDDEN) if is_hidden(row) else {})


def is_hidden(answer: Message) -> bool:
    """Whether it is one of two that wait for a choice."""
    compared = answer.parent.comparison if answer.parent else {}
    is_open = bool(compared) and not compared.get("choice")
    return is_open and str(answer.pk) in (compared["left"], compared["right"])


def to_markdown(conversation: Conversation) -> str:
    """The newest branch, then whatever leaves it, or another one, from there on."""
    rows = list(conversation.messages.select_related("adapter", "parent"))
    children: dict[Any, list[Message]] = {}
    for row in rows:
        children.setdefault(row.parent_id, []).append(row)
    parts = [f"# {conversation.title}", _settings(conversation)]
    written: set[uuid.UUID] = set()
    for start in [*children.get(None, [])[-1:], *rows]:
        if start.pk in written:
            continue
        if written:
            parts += ["---", _("Another branch, in reply to: %s") % _quoted(start.parent)]
        for row in _downwards(start, children, written):
            parts += [_heading(row), row.content or _("(nothing)")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _downwards(start: Message, children: dict[Any, list[Message]], written: set[uuid.UUID]) -> Iterator[Message]:
    """`start` and below it the newest of what is not written yet; all of them are written then."""
    row: Message | None = start
    while row is not None:
        written.add(row.pk)
        yield row
        row = next((below for below in reversed(children.get(row.pk, [])) if below.pk not in written), None)


def _settings(conversation: Conversation) -> str:
    settings = sampling.of_conversation(conversation)
    lines = [f"- {name}: {value}" for name, value in (sampling.DEFAULTS | settings.sampling).items()]
    prompt = settings.system_prompt
    return "\n".join([*lines, *([_("- system prompt: %s") % " ".join(prompt.split())] if prompt else [])])


def _heading(row: Message) -> str:
    if row.role == Message.Role.USER:
        return "## " + _("You")
    if is_hidden(row):
        return "## " + _("One of two versions, until you choose")
    facts = [row.adapter.name if row.adapter else _("unknown version")]
    if row.status != Message.Status.COMPLETE:
        facts.append(row.get_status_display().lower())
    if row.rating:
        facts.append(_("you found it good") if row.rating > 0 else _("you found it bad"))
    return "## " + ", ".join(facts)


def _quoted(message: Message | None) -> str:
    if message is None:
        return _("the beginning")
    line = " ".join(message.content.split())
    return f"“{line if len(line) <= QUOTED_CHARS else line[:QUOTED_CHARS].rstrip() + '…'}”"
