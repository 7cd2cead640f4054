"""Before and after: one question put to the base, the previous and the current version at once, openly and for looking only.

Nothing of it is stored: it is no part of the conversation, and nobody learns from it.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from django.utils.translation import gettext as _

from serving import adapters, branches, context, database, requests
from serving.client import Delta, EngineDown, EngineError
from serving.models import Adapter, Message


@dataclass(frozen=True)
class Column:
    adapter: Adapter
    names: list[str] = field(default_factory=list)  # what it is: base, previous, current; it may be several


def columns() -> list[Column]:
    """From the oldest to the newest, each version once."""
    deployment = adapters.deployment()
    found: dict[int, Column] = {}
    for name, adapter in (
        (_("base"), adapters.base()),
        (_("previous"), deployment.previous),
        (_("current"), deployment.adapter),
    ):
        if adapter is not None:
            found.setdefault(adapter.pk, Column(adapter)).names.append(name)
    return sorted(found.values(), key=lambda column: column.adapter.pk == deployment.adapter_id)


async def write(answer: Message, adapter: Adapter) -> AsyncGenerator[str, None]:
    """The growing text of what `adapter` says to the question of `answer`, drawn as that one was, seed included.

    Raises EngineDown, EngineError. Like every answer it is in the request log.
    """
    messages, served = await database.run(_admit, answer, adapter)
    text = ""
    try:
        async with aclosing(context.fitting(adapter, messages, {**answer.sampling, "served": served})) as pieces:
            async for piece in pieces:
                if isinstance(piece, Delta):
                    text += piece.text
                    yield text
                else:
                    served.usage = piece
        served.note_done()
    except (EngineDown, EngineError) as failure:
        served.note_failure(failure)
        raise
    finally:
        # Shielded: a reader who leaves cancels this task, and may do so twice.
        await asyncio.shield(database.run(requests.record, served))


def _admit(answer: Message, adapter: Adapter) -> tuple[list[dict[str, str]], requests.Served]:
    served = requests.of_page(answer, adapter)
    served.request_id = requests.new_id()  # that of the answer itself is taken
    return branches.history(answer), served
