"""Conversations: questions, answers, ratings, side-by-side choices. The only writer of Message rows; `branches` reads them.

Nothing is overwritten: asking again, editing a question and comparing add siblings. Only an answer that ended early grows,
when somebody has it continued, or comes back soon after it lost its reader. Each answer is pinned to its version the moment
it is asked for.
"""

import random
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from serving import adapters, branches, sampling
from serving.models import Adapter, Conversation, Message
from serving.sampling import Settings

MAX_QUESTION_CHARS = 16_000
TITLE_CHARS = 80
ABANDONED_AFTER = timedelta(minutes=10)
# "left" and "right" name the better one; "none": not judged, only revealed.
CHOICES = ("left", "right", "tie", "both_bad", "none")


class Refused(Exception):
    """A request that makes no sense here; the message says what to do, for people."""


# --- asking -----------------------------------------------------------------------------------------------------------
def start(
    owner: User,
    text: str,
    versions: Sequence[str] = (),
    *,
    settings: Settings | None = None,
    key: uuid.UUID | None = None,
) -> Message:
    """A new conversation with its first question; returns the question. Raises what `ask` raises."""
    text, settings = _checked(text), settings or Settings()
    conversation = Conversation(
        owner=owner, title=_title(text), system_prompt=settings.system_prompt, sampling=settings.sampling
    )
    pinned = _pinned(conversation, versions)

    def make() -> Message:
        conversation.save(force_insert=True)
        return _add_question(conversation, text, None, pinned, key)

    return _once(owner, key, make)


def ask(
    conversation: Conversation,
    text: str,
    parent: uuid.UUID | None,
    versions: Sequence[str] = (),
    *,
    key: uuid.UUID | None = None,
) -> Message:
    """A question under the answer `parent` (None: a new root), answered by `current`, by one named version, or by two that
    are compared blindly. An edited question is one more under the same parent.

    `key`, made by whoever asks, becomes the question's id: asking again with it finds the question. Raises Refused on bad
    input, adapters.UnknownModel.
    """
    text = _checked(text)
    pinned = _pinned(conversation, versions)

    def make() -> Message:
        conversation.save(update_fields=["updated_at"])
        _check_parent(conversation, parent)
        return _add_question(conversation, text, parent, pinned, key)

    return _once(conversation.owner, key, make)


def regenerate(answer: Message, version: str = adapters.CURRENT) -> Message:
    """A sibling of `answer`, from `version` as it is now; returns it."""
    question = _judgeable_question(answer)
    [adapter] = _pinned(answer.conversation, [version])
    with transaction.atomic():
        answer.conversation.save(update_fields=["updated_at"])
        return _add_answer(question, adapter, sampling.of_conversation(answer.conversation))


def challenge(answer: Message, version: str = adapters.CURRENT) -> Message:
    """A new answer from `version`, to be compared blindly with `answer`; returns the question.

    Both are drawn alike: system prompt and settings are those of `answer`, only the seed is another.
    """
    question = _judgeable_question(answer)
    if answer.status != Message.Status.COMPLETE:
        raise Refused(_("Only a complete answer can be compared. Continue it, or regenerate."))
    [adapter] = _pinned(answer.conversation, [version])
    drawn = {name: value for name, value in answer.sampling.items() if name != "seed"}
    with transaction.atomic():
        answer.conversation.save(update_fields=["updated_at"])
        row = _locked(question)
        if row.comparison and not row.comparison.get("choice"):  # another tab was faster
            raise Refused(_("Two answers to this question wait for your choice already."))
        other = _add_answer(question, adapter, Settings(answer.system_prompt, drawn))
        _compare(row, random.SystemRandom().sample([answer, other], 2))
    return row


def continue_answer(answer: Message) -> None:
    """Has an answer that ended early go on where it stopped: same version, same settings. Raises Refused."""
    question = _judgeable_question(answer)
    if not branches.ended_early(answer):
        raise Refused(_("This answer is complete; there is nothing to continue."))
    if not _is_servable(answer):
        raise Refused(_("The version that wrote this answers no more. Regenerate to ask the current one."))
    allowed = branches.n_written(answer) + branches.n_longest(answer)
    with transaction.atomic():
        answer.conversation.save(update_fields=["updated_at"])
        _locked(question)  # a reply from another tab comes before or after, never between
        if answer.children.exists():
            raise Refused(_("You have replied to this answer already. Regenerate it to ask again."))
        _reopen(answer, {"n_gone_on": 0, "allowed_tokens": allowed})


def go_on(message: Message) -> None:
    """Has the answers of the turn of `message` go on that lost their reader a moment ago. What else ended stays as it is:
    by Stop, by an engine's error, long ago, or reopened by another tab meanwhile.
    """
    question = message if message.role == Message.Role.USER else message.parent
    if question is None:
        return
    with transaction.atomic():  # two sides that are compared: another tab finds both or none
        row = _locked(question)
        shown = row if message == question else Message.objects.select_related("parent").get(pk=message.pk)
        for answer in branches.turn_of(shown).left:
            if _is_servable(answer):
                _reopen(answer, {"n_gone_on": answer.usage.get("n_gone_on", 0) + 1})


def _is_servable(answer: Message) -> bool:
    return adapters.servable().filter(messages=answer).exists()


def _reopen(answer: Message, noted: dict[str, int]) -> None:
    """Lets it be written from where it ended, with `noted` in its usage. Of those who want that at once, one has it happen,
    and nobody after a Stop.
    """
    unchanged = Message.objects.filter(
        pk=answer.pk, status=answer.status, ended_at=answer.ended_at, stopped_at=answer.stopped_at
    )
    unchanged.update(
        status=Message.Status.PENDING,
        content=answer.content.rstrip(),  # as engines read it: what they continue has no blanks at its end
        usage=(answer.usage if answer.content.strip() else {}) | noted,  # a wait for nothing is not told
        asked_at=timezone.now(),
        ended_at=None,
        stopped_at=None,
        error="",
        rating=0,
    )


def _judgeable_question(answer: Message) -> Message:
    """The question that it answers, unless its answers wait for a choice. Raises Refused."""
    question = answer.parent
    if question is None or (question.comparison and not question.comparison.get("choice")):
        raise Refused(_("Choose between the two answers first."))
    return question


def _check_parent(conversation: Conversation, parent: uuid.UUID | None) -> None:
    if parent is None:
        return
    found = conversation.messages.filter(pk=parent, role=Message.Role.ASSISTANT).select_related("parent")
    replied = found.first()
    if replied is None:
        raise Refused(_("The answer that you reply to is gone. Reload the page."))
    _locked(_judgeable_question(replied))
    replied = found.get()
    _judgeable_question(replied)
    if replied.is_unfinished:
        raise Refused(_("Wait until the answer that you reply to is complete."))


def _locked(question: Message) -> Message:
    """The row as it is now. Whoever decides by its answers whether they are done with, or go on, holds it meanwhile."""
    return Message.objects.select_for_update().get(pk=question.pk)


def _once(owner: User, key: uuid.UUID | None, make: Callable[[], Message]) -> Message:
    """The owner's question of this key, or what `make` makes."""
    mine = Message.objects.filter(conversation__owner=owner, role=Message.Role.USER)
    if key and (known := mine.filter(pk=key).first()):
        return known
    try:
        with transaction.atomic():
            return make()
    except IntegrityError as error:  # the same request came twice at once
        if key and (known := mine.filter(pk=key).first()):
            return known
        raise Refused(_("This could not be asked. Reload the page and try again.")) from error


def _add_question(
    conversation: Conversation, text: str, parent: uuid.UUID | None, pinned: list[Adapter], key: uuid.UUID | None
) -> Message:
    question = Message.objects.create(
        pk=key or uuid.uuid4(), conversation=conversation, parent_id=parent, role=Message.Role.USER, content=text
    )
    settings = sampling.of_conversation(conversation)
    # Shuffled before they are made, so that neither side nor order of creation tells which is which.
    shuffled = random.SystemRandom().sample(pinned, len(pinned))
    answers = [_add_answer(question, adapter, settings) for adapter in shuffled]
    if len(answers) == 2:
        _compare(question, answers)
    return question


def _compare(question: Message, sides: list[Message]) -> None:
    """Sets two answers side by side until there is a choice; what was compared before is kept."""
    earlier = question.comparison.pop("earlier", []) + ([question.comparison] if question.comparison else [])
    question.comparison = {
        "left": str(sides[0].pk),
        "right": str(sides[1].pk),
        "client_key": str(uuid.uuid4()),  # stored: choosing again after a lost answer does not double the judgment
    } | ({"earlier": earlier} if earlier else {})
    question.save(update_fields=["comparison"])


def _add_answer(question: Message, adapter: Adapter, settings: Settings) -> Message:
    return Message.objects.create(
        conversation_id=question.conversation_id,
        parent=question,
        role=Message.Role.ASSISTANT,
        status=Message.Status.PENDING,
        adapter=adapter,
        system_prompt=settings.system_prompt,
        sampling=sampling.drawn(settings),
    )


def _pinned(conversation: Conversation, versions: Sequence[str]) -> list[Adapter]:
    """The versions that are to answer: resolved once, here. A conversation stays with the canary or without it."""
    sticky = str(conversation.pk)
    pinned = [adapters.resolve(name, sticky).adapter for name in versions or [adapters.CURRENT]]
    if len(pinned) > 2 or (len(pinned) == 2 and pinned[0] == pinned[1]):
        raise Refused(_("Choose two different versions to compare."))
    return pinned


def _checked(text: str) -> str:
    text = text.strip().replace("\x00", "")  # PostgreSQL stores no NUL
    if not text:
        raise Refused(_("Write a question first."))
    if len(text) > MAX_QUESTION_CHARS:
        raise Refused(_("A question may have at most %d characters.") % MAX_QUESTION_CHARS)
    return text


def _title(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TITLE_CHARS else line[: TITLE_CHARS - 1].rstrip() + "…"


# --- an answer's life -------------------------------------------------------------------------------------------------
def claim(message_id: uuid.UUID) -> Message | None:
    """The answer, if it is still to be written and nobody else writes it: PENDING → STREAMING for one caller."""
    claimed = Message.objects.filter(pk=message_id, status=Message.Status.PENDING).update(
        status=Message.Status.STREAMING
    )
    return Message.objects.select_related("adapter", "conversation").get(pk=message_id) if claimed else None


def stop(answer: Message) -> None:
    """Says that its reader wants no more of it, so that it does not go on by itself. This ends an answer that nobody writes
    yet: PENDING → STOPPED. One that is being written is so until its reader leaves the stream, which pages do after this.
    """
    now, row = timezone.now(), Message.objects.filter(pk=answer.pk)
    row.exclude(status=Message.Status.COMPLETE).update(stopped_at=now)
    row.filter(status=Message.Status.PENDING).update(status=Message.Status.STOPPED, ended_at=now)


def finish(message_id: uuid.UUID, status: str, content: str, usage: dict[str, Any], error: str = "") -> None:
    """Writes the end of an answer, whatever it was. An answer that was closed as abandoned meanwhile gets its text."""
    Message.objects.filter(pk=message_id).exclude(status=Message.Status.COMPLETE).update(
        status=status, content=content.replace("\x00", ""), usage=usage, error=error, ended_at=timezone.now()
    )


def close_abandoned(now: datetime | None = None) -> int:
    """Marks answers FAILED whose writer must have died, and those that nobody came to read. Returns how many."""
    old = (now or timezone.now()) - ABANDONED_AFTER
    return Message.objects.filter(status__in=Message.UNFINISHED, asked_at__lt=old).update(
        status=Message.Status.FAILED, error=_("This answer was interrupted. Regenerate to ask again.")
    )


# --- what people do with it -------------------------------------------------------------------------------------------
def rate(answer: Message, rating: int) -> None:
    """−1 or 1, of a complete answer, as nothing is learned from a part; 0 takes it back, of any. Raises Refused."""
    if type(rating) is not int or rating not in (-1, 0, 1):
        raise Refused(_("A rating is -1, 0 or 1."))
    if rating and answer.status != Message.Status.COMPLETE:
        raise Refused(_("Only a complete answer can be rated. Continue it, or regenerate."))
    answer.rating = rating
    answer.save(update_fields=["rating"])


def choose(question: Message, choice: str, client_key: str, *, is_stored: bool = False) -> None:
    """Ends the blindness of a side-by-side question. The first choice stands; `is_stored`: as a judgment, too.

    `client_key` is that of the comparison as the reader saw it. Raises Refused, also when it is not that one any more.
    """
    if not question.comparison or choice not in CHOICES:
        raise Refused(_("There is nothing to choose between."))
    with transaction.atomic():
        row = _locked(question)
        if row.children.filter(status__in=Message.UNFINISHED).exists():
            raise Refused(_("Wait until both answers are complete."))
        if row.comparison["client_key"] != client_key:
            raise Refused(_("Other answers are compared here by now. Reload the page."))
        if not row.comparison.get("choice"):
            row.comparison |= {"choice": choice, "is_stored": is_stored and choice != "none"}
            row.save(update_fields=["comparison"])


def change_settings(conversation: Conversation, settings: Settings) -> None:
    """For answers from now on."""
    # Not `save`: it does not move the conversation to the top of the list.
    Conversation.objects.filter(pk=conversation.pk).update(
        system_prompt=settings.system_prompt, sampling=settings.sampling
    )


def rename(conversation: Conversation, title: str) -> None:
    title = " ".join(title.replace("\x00", "").split())
    if not title:
        raise Refused(_("A conversation needs a name."))
    # Not `save`, as above.
    Conversation.objects.filter(pk=conversation.pk).update(title=title[: Conversation.title.field.max_length])


def delete(conversation: Conversation) -> None:
    conversation.delete()
