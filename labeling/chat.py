"""Choices made in chat: two answers to one question, side by side, become a comparison and a judgment.

They are private (never given to anybody else to label) and lie in a campaign of their own, from which runs learn like
from any other.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime

from django.contrib.auth.models import User
from django.db import transaction
from django.utils.translation import gettext as _

from labeling import choices, judgments, pairs, prompts, responses
from labeling.errors import Invalid
from labeling.models import Campaign, Comparison, Judgment, Purpose, Response
from serving.chat import history
from serving.models import Message

SCALE = Campaign(scale=Campaign.Scale.THREE)  # what chat offers, whatever somebody sets for the campaign


def campaign() -> Campaign:
    """The campaign that chat's choices go to, made when the first one comes."""
    return Campaign.objects.get_or_create(
        slug="chat",
        defaults={
            "name": "Chat",
            "description": "Choices that people made between two answers while chatting.",
            "n_candidates": 0,
            "scale": SCALE.scale,
        },
    )[0]


def record_choice(
    user: User,
    message_ids: Sequence[uuid.UUID],
    client_key: uuid.UUID,
    verdict: str,
    chosen: uuid.UUID | None,
    now: datetime,
) -> Judgment:
    """Stores what `user` chose between two finished answers of theirs (`message_ids` in the order shown, left to
    right), with the versions that wrote them; all of it or nothing. A retry returns the judgment that is there.

    Raises Invalid when the answers are not two complete siblings in a conversation of this person, or do not differ.
    """
    answers = _answers(user, message_ids)
    with transaction.atomic():
        earlier = Judgment.objects.filter(annotator=user, client_key=client_key).first()
        if earlier:
            return earlier
        where = campaign()
        rows = _responses(where, answers)
        choice = choices.Choice(
            verdict=verdict,
            order=[row.pk for row in rows],
            chosen=next((row.pk for row, pk in zip(rows, message_ids, strict=True) if pk == chosen), None),
        )
        choices.check(SCALE, choice)
        return judgments.add(_comparison(where, rows, user), user, client_key, choice, now, purpose=Purpose.CHAT)


def _answers(user: User, message_ids: Sequence[uuid.UUID]) -> list[Message]:
    mine = Message.objects.filter(conversation__owner=user, role=Message.Role.ASSISTANT).select_related("adapter")
    found = mine.in_bulk(list(message_ids))
    if len(message_ids) != 2 or len(found) != 2:
        raise Invalid(_("Two different answers of your own conversation are wanted."))
    first, second = (found[pk] for pk in message_ids)
    if first.parent_id is None or first.parent_id != second.parent_id:
        raise Invalid(_("The two answers must answer the same question."))
    if {first.status, second.status} != {Message.Status.COMPLETE}:
        raise Invalid(_("Both answers must be complete. Wait until they are written, or regenerate one."))
    if first.adapter_id is None or second.adapter_id is None:
        raise Invalid(_("It is not known which version wrote these answers, so nothing can be learned from them."))
    return [first, second]


def _responses(where: Campaign, answers: list[Message]) -> list[Response]:
    prompt = prompts.add_prompts(where, [{"messages": history(answers[0]), "domain": "chat"}], "chat")[0]
    drafts = [
        responses.draft(prompt, answer.content, answer.adapter, source="chat", sampling=answer.sampling)
        for answer in answers
    ]
    rows = responses.store([draft for draft in drafts if draft])
    if len(rows) != 2 or rows[0] == rows[1]:
        raise Invalid(_("The two answers say the same, or one is empty: there is nothing to compare."))
    return rows


def _comparison(where: Campaign, rows: list[Response], user: User) -> Comparison:
    pairs.add_comparisons(where, [rows], Comparison.Source.CHAT, is_open=False)
    comparison = (
        Comparison.objects.select_for_update(of=("self",))
        .select_related("campaign")
        .get(campaign=where, content_key=pairs.content_key(rows))
    )
    if judgments.in_force().filter(comparison=comparison, annotator=user).exists():
        raise Invalid(_("You chose between these two answers already."))
    return comparison
