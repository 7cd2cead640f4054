"""The names that programs may ask for: aliases, versions that may answer, and the base model."""

import json
import re
from datetime import datetime
from typing import Any

from django.conf import settings

from serving import adapters
from serving.adapters import Choice
from serving.models import Adapter, Deployment
from serving.openai.problems import unknown_model

NAME = re.compile(r"[\w.:/-]{1,100}", re.ASCII)


def chosen(name: str, sticky: str) -> Choice:
    """What answers to this name now. Raises Problem."""
    if not NAME.fullmatch(name):  # no database is asked for what is no name
        raise unknown_model(name)
    try:
        return adapters.resolve(name, sticky)
    except adapters.UnknownModel as error:
        raise unknown_model(name) from error


def listing(name: str = "") -> bytes:
    """All of them, or the one of that name, as JSON. Raises Problem."""
    found = _entries()
    if not name:
        return json.dumps({"object": "list", "data": found}).encode()
    adapter = chosen(name, "").adapter
    for entry in found:
        if entry["id"] == name:
            return json.dumps(entry).encode()
    return json.dumps(_entry(name, adapter.created_at, adapter)).encode()  # a version without its hash


def _entries() -> list[dict[str, Any]]:
    root = adapters.base()
    aliases = Deployment.objects.filter(adapter__base_sha256=root.sha256).select_related("adapter").order_by("alias")
    return [
        *(_entry(row.alias, row.updated_at, row.adapter) for row in aliases),
        *(_entry(row.engine_name, row.created_at, row) for row in adapters.servable()),
    ]


def _entry(name: str, since: datetime, adapter: Adapter) -> dict[str, Any]:
    """As vLLM has it: `root` is what answers, `parent` the model that it adapts."""
    return {
        "id": name,
        "object": "model",
        "created": int(since.timestamp()),
        "owned_by": "alignapp",
        "root": adapter.engine_name,
        "parent": None if adapter.is_base else settings.BASE_MODEL_NAME,
    }
