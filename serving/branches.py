"""Reading a conversation. It is a tree: answers hang under their question, questions under the answer that they reply to.

Several answers to one question are siblings, and so are several questions to one answer (one was edited). A branch is the
way from one message up to the root, continued downwards along the newest messages.
"""

import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.utils import timezone

from serving.models import Conversation, Message
from serving.sampling import DEFAULTS

# Long enough for a reload, a tunnel or a lid closed for a moment. Whoever comes back later reads first, and may have no use
# for the rest: they have a button.
GOES_ON_WITHIN = timedelta(minutes=5)
GOES_ON_TIMES = 5  # by itself, until somebody presses Continue: what is cut that often, something keeps cutting

Children = dict[uuid.UUID | None, list[Message]]


@dataclass(frozen=True)
class Place:
    """Where a message stands among its siblings."""

    number: int  # from 1
    count: int
    before: Message | None
    after: Message | None


@dataclass
class Turn:
    """A question with the answers that the page shows under it."""

    question: Message
    answers: list[Message]  # all siblings, oldest first
    shown: Message | None  # the one on this branch
    sides: list[Message] = field(default_factory=list)  # left and right, when two answers are compared
    previous: Message | None = None  # the answer that the question replies to
    questions: list[Message] = field(default_factory=list)  # the question and its siblings, oldest first
    has_replies: bool = False  # to the answer on this branch

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
    def is_continuable(self) -> bool:
        """Whether the answer on this branch ended early and nothing was built on it yet."""
        return self.shown is not None and not self.sides and not self.has_replies and ended_early(self.shown)

    @property
    def left(self) -> list[Message]:
        """The answers that go on by themselves as soon as somebody reads here again: a moment ago their reader was gone."""
        is_settled = not self.is_blind if self.sides else self.has_replies
        return [] if is_settled or self.is_unfinished else [answer for answer in self.visible if _was_just_left(answer)]

    @property
    def visible(self) -> list[Message]:
        return self.sides or ([self.shown] if self.shown else [])

    @property
    def place(self) -> Place | None:
        """Of the answer on this branch; None while two are compared blindly, or when there is none."""
        return _place(self.shown, self.answers) if self.shown and not self.is_blind else None

    @property
    def question_place(self) -> Place | None:
        return _place(self.question, self.questions)


def ended_early(answer: Message) -> bool:
    """Stopped, broken off or cut at the length limit, after at least a word."""
    is_cut = answer.status == Message.Status.COMPLETE and answer.usage.get("finish_reason") == "length"
    return bool(answer.content) and (is_cut or answer.status in (Message.Status.STOPPED, Message.Status.FAILED))


def _was_just_left(answer: Message) -> bool:
    if not answer.was_left or answer.ended_at is None or answer.usage.get("n_gone_on", 0) >= GOES_ON_TIMES:
        return False
    return timezone.now() - answer.ended_at < GOES_ON_WITHIN


def turns(conversation: Conversation, at: uuid.UUID | None = None) -> list[Turn]:
    """The branch through message `at`, continued along the newest messages; without it, the newest branch. It ends where
    two answers wait for a choice: what goes on from there is not decided.
    """
    children = _children(conversation)
    chosen = _ancestry(children, at)
    branch: list[Turn] = []
    last: Message | None = None
    while questions := children.get(last.pk if last else None):
        turn = _turn(_pick(questions, chosen), children, chosen)
        turn.previous, turn.questions = last, questions
        branch.append(turn)
        last = turn.shown
        if last is None or turn.is_blind:
            break
    return branch


def turn_of(message: Message) -> Turn:
    """The one turn that a question or an answer belongs to, with this answer on the branch."""
    question = message if message.role == Message.Role.USER else message.parent
    if question is None:
        raise ValueError(f"{message.pk} answers nothing")
    rows = question.conversation.messages.select_related("adapter")
    answers = list(rows.filter(parent=question))
    children: Children = {question.pk: answers}
    for reply in rows.filter(parent__in=answers):
        children.setdefault(reply.parent_id, []).append(reply)
    turn = _turn(question, children, {message.pk})
    turn.previous = question.parent
    turn.questions = list(rows.filter(parent=question.parent, role=Message.Role.USER))
    return turn


def history(answer: Message) -> list[dict[str, str]]:
    """What `answer` answers, from the system prompt and the root to its question: [{"role", "content"}, …]."""
    by_id = {message.pk: message for message in answer.conversation.messages.all()}
    above: list[dict[str, str]] = []
    message = by_id.get(answer.parent_id) if answer.parent_id else None
    while message is not None:
        if message.content:  # an answer that failed before its first word says nothing
            above.append({"role": message.role, "content": message.content})
        message = by_id.get(message.parent_id) if message.parent_id else None
    if answer.system_prompt:
        above.append({"role": "system", "content": answer.system_prompt})
    return above[::-1]


def sent(answer: Message) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The messages and the options that go to the engine. An answer that has words already is to be continued."""
    if not answer.content:
        return history(answer), answer.sampling
    messages = [*history(answer), {"role": "assistant", "content": answer.content}]
    allowed = answer.usage.get("allowed_tokens", n_longest(answer))  # however often it goes on by itself
    options = answer.sampling | {"continue_final_message": True, "add_generation_prompt": False}
    return messages, options | {"max_tokens": max(allowed - n_written(answer), 1)}


def n_written(answer: Message) -> int:
    """Tokens; at least so many, where a part was cut that no engine counted."""
    return int(answer.usage.get("completion_tokens", 0))


def n_longest(answer: Message) -> int:
    """Tokens that it may have, each time that somebody asks for it or continues it."""
    return int(answer.sampling.get("max_tokens", DEFAULTS["max_tokens"]))


def _children(conversation: Conversation) -> Children:
    """All messages by parent, oldest first."""
    children: Children = {}
    for message in conversation.messages.select_related("adapter"):
        children.setdefault(message.parent_id, []).append(message)
    return children


def _turn(question: Message, children: Children, chosen: set[uuid.UUID]) -> Turn:
    answers = children.get(question.pk, [])
    if not answers:
        return Turn(question, answers, None)
    shown, sides = _pick(answers, chosen), _sides(question, answers)
    is_chosen = shown.pk in chosen
    if sides and (shown in sides or not question.comparison.get("choice")):
        if not is_chosen or shown not in sides:
            shown = _better(question, sides, answers)
    else:
        sides = []  # another answer was asked for since, or is looked at
    return Turn(question, answers, shown, sides, has_replies=bool(children.get(shown.pk)))


def _sides(question: Message, answers: list[Message]) -> list[Message]:
    by_id = {str(answer.pk): answer for answer in answers}
    return [by_id[question.comparison[side]] for side in ("left", "right")] if question.comparison else []


def _better(question: Message, sides: list[Message], answers: list[Message]) -> Message:
    """The one that the conversation goes on from: the one preferred, else the older one, which may have replies."""
    choice = question.comparison.get("choice")
    return sides[("left", "right").index(choice)] if choice in ("left", "right") else min(sides, key=answers.index)


def _pick(siblings: list[Message], chosen: set[uuid.UUID]) -> Message:
    return next((message for message in siblings if message.pk in chosen), siblings[-1])


def _place(message: Message, siblings: list[Message]) -> Place | None:
    if message not in siblings:
        return None
    i = siblings.index(message)
    before = siblings[i - 1] if i else None
    return Place(i + 1, len(siblings), before, siblings[i + 1] if i + 1 < len(siblings) else None)


def _ancestry(children: Children, at: uuid.UUID | None) -> set[uuid.UUID]:
    """Ids of `at` and all above it; empty when it is not of this conversation."""
    parents = {message.pk: message.parent_id for siblings in children.values() for message in siblings}
    chosen = set()
    while at in parents:
        chosen.add(at)
        at = parents[at]
    return chosen
