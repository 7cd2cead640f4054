import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from serving import adapters, chat
from serving.models import Adapter, Conversation, Message

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("engine")]
Maker = Callable[[int], Adapter]


def answered(question: Message, text: str) -> Message:
    """The first unfinished answer, completed."""
    answer = question.children.filter(status__in=Message.UNFINISHED)[0]
    chat.finish(answer.pk, Message.Status.COMPLETE, text, {})
    answer.refresh_from_db()
    return answer


def test_it_starts_a_conversation_on_the_current_version(ada: User) -> None:
    question = chat.start(ada, "  What is\n\nthe sky?  ")
    [answer] = question.children.all()
    assert question.content == "What is\n\nthe sky?"
    assert question.conversation.title == "What is the sky?"
    assert (answer.status, answer.adapter) == (Message.Status.PENDING, adapters.base())
    assert answer.sampling["temperature"] == 0.7
    assert 0 <= answer.sampling["seed"] < 2**31


def test_it_pins_the_version_when_asked(good_adapter: Maker, ada: User) -> None:
    first = chat.start(ada, "one").children.get()
    row = good_adapter(1)
    adapters.publish(row)
    second = chat.start(ada, "two").children.get()
    first.refresh_from_db()
    assert (first.adapter, second.adapter) == (adapters.base(), row)


@pytest.mark.parametrize("text", ["", "  \n ", "\x00", "x" * (chat.MAX_QUESTION_CHARS + 1)])
def test_it_refuses_questions_that_are_none(ada: User, text: str) -> None:
    with pytest.raises(chat.Refused):
        chat.start(ada, text)
    assert not Conversation.objects.exists()


def test_it_shortens_titles(ada: User) -> None:
    title = chat.start(ada, "word " * 100).conversation.title
    assert len(title) <= chat.TITLE_CHARS
    assert title.endswith("…")


def test_it_gives_the_engine_the_branch_and_nothing_else(ada: User) -> None:
    question = chat.start(ada, "q1")
    first = answered(question, "a1")
    other = chat.regenerate(first)
    answered(question, "a1 again")
    under_first = chat.ask(question.conversation, "q2", first.pk).children.get()
    assert [m["content"] for m in chat.history(under_first)] == ["q1", "a1", "q2"]
    under_other = chat.ask(question.conversation, "q3", other.pk).children.get()
    assert chat.history(under_other) == [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1 again"},
        {"role": "user", "content": "q3"},
    ]


def test_it_leaves_answers_without_words_out_of_the_history(ada: User) -> None:
    question = chat.start(ada, "q1")
    failed = question.children.get()
    chat.finish(failed.pk, Message.Status.FAILED, "", {}, "down")
    follow_up = chat.ask(question.conversation, "q2", failed.pk).children.get()
    assert [m["content"] for m in chat.history(follow_up)] == ["q1", "q2"]


def test_it_walks_between_siblings(ada: User) -> None:
    question = chat.start(ada, "q1")
    first = answered(question, "one")
    second = chat.regenerate(first)
    answered(question, "two")
    chat.ask(question.conversation, "q2", first.pk)
    newest = chat.turns(question.conversation)
    assert [turn.question.content for turn in newest] == ["q1"]
    assert (newest[0].shown, newest[0].position, newest[0].before) == (second, 2, first)
    older = chat.turns(question.conversation, first.pk)
    assert [turn.question.content for turn in older] == ["q1", "q2"]
    assert (older[0].shown, older[0].after) == (first, second)
    assert chat.turns(question.conversation, uuid.uuid4()) == newest


def test_it_says_where_the_version_changes(good_adapter: Maker, ada: User) -> None:
    question = chat.start(ada, "q1")
    first = answered(question, "a1")
    adapters.publish(good_adapter(1))
    chat.ask(question.conversation, "q2", first.pk)
    assert [turn.is_switch for turn in chat.turns(question.conversation)] == [False, True]


def test_it_refuses_replies_to_what_is_not_there(ada: User, eve: User) -> None:
    mine, hers = chat.start(ada, "q"), chat.start(eve, "q")
    for parent in (uuid.uuid4(), hers.children.get().pk, mine.pk):
        with pytest.raises(chat.Refused):
            chat.ask(mine.conversation, "q2", parent)


# --- side by side -----------------------------------------------------------------------------------------------------
def compared(good_adapter: Maker, ada: User) -> tuple[Message, Adapter]:
    row = good_adapter(1)
    adapters.publish(row)
    return chat.start(ada, "q", ["current", "base"]), row


def test_it_answers_with_two_versions_blindly(good_adapter: Maker, ada: User) -> None:
    question, row = compared(good_adapter, ada)
    turn = chat.turn_of(question)
    assert {answer.adapter for answer in turn.sides} == {row, adapters.base()}
    assert turn.is_blind
    assert [str(answer.pk) for answer in turn.sides] == [question.comparison["left"], question.comparison["right"]]


def test_it_puts_versions_on_random_sides(good_adapter: Maker, ada: User) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    lefts = {chat.turn_of(chat.start(ada, "q", ["current", "base"])).sides[0].adapter for _ in range(40)}
    assert lefts == {row, adapters.base()}


@pytest.mark.parametrize("names", [["base"], ["base", "base"], ["base", "current"], ["base", "current", "x"]])
def test_it_refuses_to_compare_anything_but_two_versions(ada: User, names: list[str]) -> None:
    with pytest.raises((chat.Refused, adapters.UnknownModel)):
        chat.start(ada, "q", names)


def test_it_reveals_after_the_choice_and_goes_on_from_the_better(good_adapter: Maker, ada: User) -> None:
    question, _row = compared(good_adapter, ada)
    with pytest.raises(chat.Refused, match="complete"):
        chat.choose(question, "right")
    answered(question, "one")
    answered(question, "two")
    chat.choose(question, "right")
    chat.choose(question, "left")  # the first choice stands
    question.refresh_from_db()
    turn = chat.turn_of(question)
    assert not turn.is_blind
    assert turn.shown == turn.sides[1]
    with pytest.raises(chat.Refused):
        chat.regenerate(turn.sides[0])


def test_it_has_nothing_to_choose_in_a_single_answer(ada: User) -> None:
    with pytest.raises(chat.Refused):
        chat.choose(chat.start(ada, "q"), "left")


# --- an answer's life -------------------------------------------------------------------------------------------------
def test_it_lets_one_reader_write_an_answer(ada: User) -> None:
    answer = chat.start(ada, "q").children.get()
    assert chat.claim(answer.pk) == answer
    assert chat.claim(answer.pk) is None


def test_it_closes_answers_that_nobody_writes_any_more(ada: User) -> None:
    question = chat.start(ada, "q")
    pending, streaming = question.children.get(), chat.regenerate(question.children.get())
    chat.claim(streaming.pk)
    assert chat.close_abandoned(timezone.now() + timedelta(minutes=9)) == 0
    assert chat.close_abandoned(timezone.now() + timedelta(minutes=11)) == 2
    for answer in (pending, streaming):
        answer.refresh_from_db()
        assert (answer.status, bool(answer.error)) == (Message.Status.FAILED, True)


def test_it_keeps_ratings_within_bounds(ada: User) -> None:
    answer = answered(chat.start(ada, "q"), "a")
    chat.rate(answer, -1)
    for rating in (2, "1", None, True):
        with pytest.raises(chat.Refused):
            chat.rate(answer, rating)  # type: ignore[arg-type]
    answer.refresh_from_db()
    assert answer.rating == -1


def test_it_renames_without_moving_to_the_top(ada: User) -> None:
    first = chat.start(ada, "one").conversation
    chat.start(ada, "two")
    chat.rename(first, "  a\n name " + "x" * 200)
    assert [len(row.title) for row in Conversation.objects.all()] == [3, 120]
    with pytest.raises(chat.Refused):
        chat.rename(first, " ")
