"""Responses: answers to a prompt, each text once."""

from typing import Any

from labeling import texts
from labeling.models import Prompt, Response
from serving.models import Adapter


def draft(prompt: Prompt, text: object, adapter: Adapter | None = None, **fields: Any) -> Response | None:
    """A response that is not stored yet, cleaned and hashed; None when nothing is left of the text.

    Raises labeling.errors.Invalid when the text is none, or too long.
    """
    cleaned = texts.clean(text)
    if not cleaned:
        return None
    return Response(prompt=prompt, adapter=adapter, text=cleaned, sha256=texts.digest(cleaned), **fields)


def add_response(prompt: Prompt, text: object, adapter: Adapter | None = None, **fields: Any) -> Response | None:
    """Stores an answer; None when it is empty, or when the prompt already has one with the same text.

    Raises labeling.errors.Invalid when the text is none, or too long.
    """
    new = draft(prompt, text, adapter, **fields)
    if new is None or prompt.responses.filter(sha256=new.sha256).exists():
        return None
    return store([new])[0]


def store(drafts: list[Response]) -> list[Response]:
    """The rows of these drafts, in their order; a text that the prompt already has is not added again.

    Ids are given in no order of theirs: who judges sees ids, and files name the better response first.
    """
    Response.objects.bulk_create(sorted(drafts, key=lambda draft: draft.sha256), ignore_conflicts=True)
    found = Response.objects.filter(
        prompt__in={draft.prompt_id for draft in drafts}, sha256__in={draft.sha256 for draft in drafts}
    )
    rows = {(response.prompt_id, response.sha256): response for response in found}
    return [rows[draft.prompt_id, draft.sha256] for draft in drafts]
