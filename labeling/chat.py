"""What people say of answers in chat: a choice between two, side by side, or a thumb on one, becomes a comparison and a
judgment, if the person has agreed to that.

They are private (never given to anybody else to label) and lie in a campaign of their own, from which runs learn like
from any other.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime

from django.contrib.auth.models import User
from django.db import transaction
from django.utils.translation import gettext as _

from labeling import choices, judgments, pairs, prompts, responses, texts
from labeling.errors import Invalid, Refused
from labeling.models import Campaign, Comparison, Judgment, Preferences, Purpose, Response
from serving.branches import history
from serving.models import Message

SCALE = Campaign(scale=Campaign.Scale.THREE)  # what chat offers, whatever somebody sets for the campaign


NONE = "none"  # no thumb, or no thumb any more


class NoConsent(Refused):
    """Nothing was stored."""

    code = "consent_wanted"


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


def consent_of(user: User) -> datetime | None:
    """Since when this person's choices and thumbs may be stored and learned from; None when they may not."""
    return Preferences.objects.filter(user=user).values_list("chat_consent_at", flat=True).first()


def give_consent(user: User, now: datetime) -> datetime:
    """From now on this person's choices and thumbs are stored; given before, it stays as it was."""
    preferences, _new = Preferences.objects.get_or_create(user=user)
    Preferences.objects.filter(pk=preferences.pk, chat_consent_at=None).update(chat_consent_at=now)
    return consent_of(user) or now


def withdraw_consent(user: User, now: datetime) -> int:
    """Nothing more is stored, and what no training has used yet is taken back; returns how many judgments that were."""
    Preferences.objects.filter(user=user).update(chat_consent_at=None)
    mine = judgments.in_force().filter(annotator=user, purpose=Purpose.CHAT, frozen_at=None)
    for judgment in mine:
        judgments.undo(judgment, now)
    return len(mine)


def _check_consent(user: User) -> None:
    if consent_of(user) is None:
        raise NoConsent(_("You have not agreed that what you say of answers is learned from, so nothing was stored."))


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

    Raises NoConsent, and Invalid when the answers are not two complete siblings in a conversation of this person, or
    do not differ.
    """
    _check_consent(user)
    answers = _pair(user, message_ids)
    with transaction.atomic():
        earlier = Judgment.objects.filter(annotator=user, client_key=client_key).first()
        if earlier:
            return earlier
        where = campaign()
        rows = _responses(where, answers)
        if rows[0] == rows[1]:
            raise Invalid(_("The two answers say the same: there is nothing to compare."))
        choice = choices.Choice(
            verdict=verdict,
            order=[row.pk for row in rows],
            chosen=next((row.pk for row, pk in zip(rows, message_ids, strict=True) if pk == chosen), None),
        )
        choices.check(SCALE, choice)
        comparison = _comparison(where, rows)
        if judgments.in_force().filter(comparison=comparison, annotator=user).exists():
            raise Invalid(_("You chose between these two answers already."))
        return judgments.add(comparison, user, client_key, choice, now, purpose=Purpose.CHAT)


def rate(user: User, message_id: uuid.UUID, client_key: uuid.UUID, verdict: str, now: datetime) -> Judgment | None:
    """Stores a thumb on one finished answer of theirs, with the version that wrote it. Another verdict than before is
    a revision; `none` takes the thumb back, for which no consent is needed. Returns the judgment that is in force.

    Raises NoConsent, Invalid and labeling.errors.Frozen.
    """
    if verdict != NONE:
        _check_consent(user)
    answers = _answers(user, [message_id])
    with transaction.atomic():
        where = campaign()
        rows = _responses(where, answers) if verdict != NONE else _known(where, answers)
        if not rows:
            return None
        comparison = _comparison(where, rows)
        earlier = judgments.in_force().filter(comparison=comparison, annotator=user).first()
        choice = choices.Choice(verdict=verdict, order=[rows[0].pk])
        if verdict == NONE:
            if earlier:
                judgments.undo(earlier, now)
            return None
        if earlier is None:
            choices.check(SCALE, choice)
            return judgments.add(comparison, user, client_key, choice, now, purpose=Purpose.CHAT)
        return earlier if earlier.verdict == verdict else judgments.revise(earlier, client_key, choice, now)


def _known(where: Campaign, answers: list[Message]) -> list[Response]:
    """The response that this answer was stored as, if it was: taking a thumb back stores nothing."""
    prompt = where.prompts.filter(sha256=prompts.digest(prompts.canonical(history(answers[0])))).first()
    if prompt is None:
        return []
    return list(prompt.responses.filter(sha256=texts.digest(texts.clean(answers[0].content))))


def _pair(user: User, message_ids: Sequence[uuid.UUID]) -> list[Message]:
    answers = _answers(user, message_ids)
    if len(answers) != 2 or answers[0] == answers[1]:
        raise Invalid(_("Two different answers of your own conversation are wanted."))
    first, second = answers
    if first.parent_id is None or first.parent_id != second.parent_id:
        raise Invalid(_("The two answers must answer the same question."))
    if first.system_prompt != second.system_prompt:
        raise Invalid(_("The two answers were given with different system prompts, so they cannot be compared."))
    return answers


def _answers(user: User, message_ids: Sequence[uuid.UUID]) -> list[Message]:
    mine = Message.objects.filter(conversation__owner=user, role=Message.Role.ASSISTANT).select_related("adapter")
    found = mine.in_bulk(list(message_ids))
    if not set(message_ids) <= set(found):
        raise Invalid(_("This is no answer of your own conversation."))
    answers = [found[pk] for pk in message_ids]
    if any(answer.status != Message.Status.COMPLETE for answer in answers):
        raise Invalid(_("Only complete answers can be judged. Wait until they are written, or regenerate."))
    if any(answer.adapter_id is None for answer in answers):
        raise Invalid(_("It is not known which version wrote this, so nothing can be learned from it."))
    return answers


def _responses(where: Campaign, answers: list[Message]) -> list[Response]:
    """The answers as rows of labeling, with the versions that wrote them."""
    prompt = prompts.add_prompts(where, [{"messages": history(answers[0]), "domain": "chat"}], "chat")[0]
    drafts = [
        responses.draft(prompt, answer.content, answer.adapter, source="chat", sampling=answer.sampling)
        for answer in answers
    ]
    rows = responses.store([draft for draft in drafts if draft])
    if len(rows) != len(answers):
        raise Invalid(_("An empty answer cannot be judged."))
    return rows


def _comparison(where: Campaign, rows: list[Response]) -> Comparison:
    """The comparison of these responses, locked."""
    pairs.add_comparisons(where, [rows], Comparison.Source.CHAT, is_open=False)
    locked = Comparison.objects.select_for_update(of=("self",)).select_related("campaign")
    return locked.get(campaign=where, content_key=pairs.content_key(rows))
