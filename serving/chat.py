"""Conversations: questions, answers, branches, ratings, side-by-side choices. The only writer of Message rows.

A conversation is a tree. Answers hang under their question, several answers to one question are siblings, and a branch
is the way from one message up to the root. Each answer is pinned to its version the moment it is asked for.
"""

import random
import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from serving import adapters
from serving.models import Adapter, Conversation, Message

MAX_QUESTION_CHARS = 16_000
TITLE_CHARS = 80
SAMPLING = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 1024}
ABANDONED_AFTER = timedelta(minutes=10)
# "left" and "right" name the better one; "none": not judged, only revealed.
CHOICES = ("left", "right", "tie", "both_bad", "none")


class Refused(Exception):
    """A request that makes no sense here; the message says what to do, for people."""


@dataclass
class Turn:
    """A question with the answers that the page shows under it."""

    question: Message
    answers: list[Message]  # all siblings, oldest first
    shown: Message | None  # the one on this branch
    sides: list[Message] = field(default_factory=list)  # left and right, when two versions answered side by side
    previous: Message | None = None  # the answer that the question replies to

    @property
    def is_blind(self) -> bool:
        return bool(self.sides) and not self.question.comparison.get("choice")

    @property
    def is_unfinished(self) -> bool:
        return any(answer.is_unfinished for answer in self.visible)

    @property
    def is_comparable(self) -> bool:
        """Labeling takes only pairs of complete answers."""
        return all(answer.status == Message.Status.COMPLETE for answer in self.sides)

    @property
    def is_switch(self) -> bool:
        """Another version answers than the one before."""
        if self.sides or self.previous is None or self.shown is None:
            return False
        return self.previous.adapter_id != self.shown.adapter_id

    @property
    def visible(self) -> list[Message]:
        return self.sides or ([self.shown] if self.shown else [])

    @property
    def position(self) -> int:
        """1-based place of the shown answer among its siblings."""
        return self.answers.index(self.shown) + 1 if self.shown else 0

    @property
    def before(self) -> Message | None:
        return self.answers[self.position - 2] if self.position > 1 else None

    @property
    def after(self) -> Message | None:
        return self.answers[self.position] if 0 < self.position < len(self.answers) else None


# --- asking -----------------------------------------------------------------------------------------------------------
def start(owner: User, text: str, versions: Iterable[str] = ()) -> Message:
    """A new conversation with its first question; returns the question. Raises what `ask` raises."""
    text = _checked(text)
    pinned = _pinned(versions)
    with transaction.atomic():
        conversation = Conversation.objects.create(owner=owner, title=_title(text))
        return _add_question(conversation, text, None, pinned)


def ask(conversation: Conversation, text: str, parent: uuid.UUID | None, versions: Iterable[str] = ()) -> Message:
    """A question under the answer `parent` (None: a new root), answered by `current` or by two named versions.

    Raises Refused on bad input, adapters.UnknownModel.
    """
    text = _checked(text)
    pinned = _pinned(versions)
    if parent and not conversation.messages.filter(pk=parent, role=Message.Role.ASSISTANT).exists():
        raise Refused(_("The answer that you reply to is gone. Reload the page."))
    with transaction.atomic():
        conversation.save(update_fields=["updated_at"])
        return _add_question(conversation, text, parent, pinned)


def regenerate(answer: Message) -> Message:
    """A sibling of `answer`, from the version that is current now; returns it."""
    question = answer.parent
    if question is None or question.comparison:
        raise Refused(_("Only an answer of its own can be regenerated."))
    adapter = adapters.current()
    with transaction.atomic():
        answer.conversation.save(update_fields=["updated_at"])
        return _add_answer(question, adapter)


def _add_question(conversation: Conversation, text: str, parent: uuid.UUID | None, pinned: list[Adapter]) -> Message:
    question = Message.objects.create(conversation=conversation, parent_id=parent, role=Message.Role.USER, content=text)
    # Shuffled before they are made, so that neither side nor order of creation tells which is which.
    answers = [_add_answer(question, adapter) for adapter in random.SystemRandom().sample(pinned, len(pinned))]
    if len(answers) == 2:
        question.comparison = {
            "left": str(answers[0].pk),
            "right": str(answers[1].pk),
            "client_key": str(uuid.uuid4()),  # stored: choosing again after a lost answer does not double the judgment
        }
        question.save(update_fields=["comparison"])
    return question


def _add_answer(question: Message, adapter: Adapter) -> Message:
    return Message.objects.create(
        conversation_id=question.conversation_id,
        parent=question,
        role=Message.Role.ASSISTANT,
        status=Message.Status.PENDING,
        adapter=adapter,
        sampling=SAMPLING | {"seed": secrets.randbelow(2**31)},
    )


def _pinned(versions: Iterable[str]) -> list[Adapter]:
    """The versions that are to answer: resolved once, here."""
    names = list(versions)
    if not names:
        return [adapters.current()]
    pinned = [adapters.resolve(name) for name in names]
    if len(pinned) != 2 or pinned[0] == pinned[1]:
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


# --- reading ----------------------------------------------------------------------------------------------------------
def turns(conversation: Conversation, at: uuid.UUID | None = None) -> list[Turn]:
    """The branch through message `at`, continued along the newest messages; without it, the newest branch."""
    messages = list(conversation.messages.select_related("adapter"))
    children: dict[uuid.UUID | None, list[Message]] = {}
    for message in messages:
        children.setdefault(message.parent_id, []).append(message)
    chosen = _ancestry({message.pk: message for message in messages}, at)
    branch: list[Turn] = []
    last: Message | None = None
    while questions := children.get(last.pk if last else None):
        question = _pick(questions, chosen)
        turn = _turn(question, children.get(question.pk, []), chosen)
        turn.previous = last
        branch.append(turn)
        last = turn.shown
        if last is None:
            break
    return branch


def turn_of(message: Message) -> Turn:
    """The one turn that a question or an answer belongs to, with this answer on the branch."""
    question = message if message.role == Message.Role.USER else message.parent
    if question is None:
        raise Refused(_("This answer has no question."))
    turn = _turn(question, list(question.children.select_related("adapter")), {message.pk})
    turn.previous = question.parent
    return turn


def _turn(question: Message, answers: list[Message], chosen: set[uuid.UUID]) -> Turn:
    if question.comparison:
        by_id = {str(answer.pk): answer for answer in answers}
        sides = [by_id[question.comparison[side]] for side in ("left", "right")]
        # The conversation goes on from the better one.
        shown = sides[1] if question.comparison.get("choice") == "right" else sides[0]
        return Turn(question, answers, shown, sides)
    return Turn(question, answers, _pick(answers, chosen) if answers else None)


def _pick(siblings: list[Message], chosen: set[uuid.UUID]) -> Message:
    return next((message for message in siblings if message.pk in chosen), siblings[-1])


def _ancestry(by_id: dict[uuid.UUID, Message], at: uuid.UUID | None) -> set[uuid.UUID]:
    chosen = set()
    while at in by_id:
        chosen.add(at)
        at = by_id[at].parent_id
    return chosen


def history(answer: Message) -> list[dict[str, str]]:
    """The turns that `answer` answers, from the root to its question: [{"role", "content"}, …]."""
    by_id = {message.pk: message for message in answer.conversation.messages.all()}
    above: list[dict[str, str]] = []
    message = by_id.get(answer.parent_id) if answer.parent_id else None
    while message is not None:
        if message.content:  # an answer that failed before its first word says nothing
            above.append({"role": message.role, "content": message.content})
        message = by_id.get(message.parent_id) if message.parent_id else None
    return above[::-1]


# --- an answer's life -------------------------------------------------------------------------------------------------
def claim(message_id: uuid.UUID) -> Message | None:
    """The answer, if it is still to be written and nobody else writes it: PENDING → STREAMING for one caller."""
    claimed = Message.objects.filter(pk=message_id, status=Message.Status.PENDING).update(
        status=Message.Status.STREAMING
    )
    return Message.objects.select_related("adapter", "conversation").get(pk=message_id) if claimed else None


def finish(message_id: uuid.UUID, status: str, content: str, usage: dict[str, Any], error: str = "") -> None:
    """Writes the end of an answer, whatever it was. An answer that was closed as abandoned meanwhile gets its text."""
    Message.objects.filter(pk=message_id).exclude(status=Message.Status.COMPLETE).update(
        status=status, content=content.replace("\x00", ""), usage=usage, error=error
    )


def close_abandoned(now: datetime | None = None) -> int:
    """Marks answers FAILED whose writer must have died, and those that nobody came to read. Returns how many."""
    old = (now or timezone.now()) - ABANDONED_AFTER
    return Message.objects.filter(status__in=Message.UNFINISHED, created_at__lt=old).update(
        status=Message.Status.FAILED, error=_("This answer was interrupted. Regenerate to ask again.")
    )


# --- what people do with it -------------------------------------------------------------------------------------------
def rate(answer: Message, rating: int) -> None:
    """−1, 0 or 1. Raises Refused."""
    if type(rating) is not int or rating not in (-1, 0, 1):
        raise Refused(_("A rating is -1, 0 or 1."))
    answer.rating = rating
    answer.save(update_fields=["rating"])


def choose(question: Message, choice: str) -> None:
    """Ends the blindness of a side-by-side question. The first choice stands. Raises Refused."""
    if not question.comparison or choice not in CHOICES:
        raise Refused(_("There is nothing to choose between."))
    if question.children.filter(status__in=Message.UNFINISHED).exists():
        raise Refused(_("Wait until both answers are complete."))
    with transaction.atomic():
        row = Message.objects.select_for_update().get(pk=question.pk)
        row.comparison = {"choice": choice} | row.comparison
        row.save(update_fields=["comparison"])


def rename(conversation: Conversation, title: str) -> None:
    title = " ".join(title.replace("\x00", "").split())
    if not title:
        raise Refused(_("A conversation needs a name."))
    # Not `save`: renaming does not move a conversation to the top of the list.
    Conversation.objects.filter(pk=conversation.pk).update(title=title[: Conversation.title.field.max_length])


def delete(conversation: Conversation) -> None:
    conversation.delete()
