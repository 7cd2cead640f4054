import uuid
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from serving import adapters, branches, chat, sampling
from serving.models import Adapter, Conversation, Message
from serving.sampling import Settings

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
    assert [m["content"] for m in branches.history(under_first)] == ["q1", "a1", "q2"]
    under_other = chat.ask(question.conversation, "q3", other.pk).children.get()
    assert branches.history(under_other) == [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1 again"},
        {"role": "user", "content": "q3"},
    ]


def test_it_leaves_answers_without_words_out_of_the_history(ada: User) -> None:
    question = chat.start(ada, "q1")
    failed = question.children.get()
    chat.finish(failed.pk, Message.Status.FAILED, "", {}, "down")
    follow_up = chat.ask(question.conversation, "q2", failed.pk).children.get()
    assert [m["content"] for m in branches.history(follow_up)] == ["q1", "q2"]


def test_it_walks_between_siblings(ada: User) -> None:
    question = chat.start(ada, "q1")
    first = answered(question, "one")
    second = chat.regenerate(first)
    answered(question, "two")
    chat.ask(question.conversation, "q2", first.pk)
    newest = branches.turns(question.conversation)
    assert [turn.question.content for turn in newest] == ["q1"]
    assert newest[0].shown == second
    assert newest[0].place == branches.Place(2, 2, before=first, after=None)
    older = branches.turns(question.conversation, first.pk)
    assert [turn.question.content for turn in older] == ["q1", "q2"]
    assert older[0].shown == first
    assert older[0].place == branches.Place(1, 2, before=None, after=second)
    assert branches.turns(question.conversation, uuid.uuid4()) == newest


def test_it_says_where_the_version_changes(good_adapter: Maker, ada: User) -> None:
    question = chat.start(ada, "q1")
    first = answered(question, "a1")
    adapters.publish(good_adapter(1))
    chat.ask(question.conversation, "q2", first.pk)
    assert [turn.is_switch for turn in branches.turns(question.conversation)] == [False, True]


def test_it_refuses_replies_to_what_is_not_there(ada: User, eve: User) -> None:
    mine, hers = chat.start(ada, "q"), chat.start(eve, "q")
    for parent in (uuid.uuid4(), hers.children.get().pk, mine.pk):
        with pytest.raises(chat.Refused):
            chat.ask(mine.conversation, "q2", parent)


# --- an answer's life -------------------------------------------------------------------------------------------------
def test_it_waits_with_a_reply_for_the_end_of_the_answer(ada: User) -> None:
    question = chat.start(ada, "q")
    with pytest.raises(chat.Refused, match="Wait"):
        chat.ask(question.conversation, "q2", question.children.get().pk)
    assert chat.ask(question.conversation, "q2", answered(question, "a").pk).parent is not None


def test_it_stops_what_nobody_writes_yet_and_nothing_else(ada: User) -> None:
    waiting, writing = (chat.start(ada, "q").children.get() for _ in range(2))
    chat.claim(writing.pk)
    for answer in (waiting, writing):
        chat.stop(answer)
        answer.refresh_from_db()
    assert (waiting.status, writing.status) == (Message.Status.STOPPED, Message.Status.STREAMING)
    assert chat.claim(waiting.pk) is None


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


def test_it_takes_a_rating_of_any_answer_back(ada: User) -> None:
    """Parts of answers could be rated once."""
    part = chat.start(ada, "q").children.get()
    Message.objects.filter(pk=part.pk).update(status=Message.Status.STOPPED, rating=1)
    part.refresh_from_db()
    with pytest.raises(chat.Refused):
        chat.rate(part, -1)
    chat.rate(part, 0)
    part.refresh_from_db()
    assert part.rating == 0


def test_it_renames_without_moving_to_the_top(ada: User) -> None:
    first = chat.start(ada, "one").conversation
    chat.start(ada, "two")
    chat.rename(first, "  a\n name " + "x" * 200)
    assert [len(row.title) for row in Conversation.objects.all()] == [3, 120]
    with pytest.raises(chat.Refused):
        chat.rename(first, " ")


# --- editing: one more question beside the one before -----------------------------------------------------------------
def test_it_keeps_the_question_that_was_edited(ada: User) -> None:
    question = chat.start(ada, "q1")
    first = answered(question, "a1")
    talk = question.conversation
    follow_up = chat.ask(talk, "q2", first.pk)
    answered(follow_up, "a2")
    edited = chat.ask(talk, "q2, better", first.pk)
    newest = branches.turns(talk)
    assert [turn.question.content for turn in newest] == ["q1", "q2, better"]
    assert newest[1].question_place == branches.Place(2, 2, before=follow_up, after=None)
    assert [turn.question.content for turn in branches.turns(talk, follow_up.pk)] == ["q1", "q2"]
    assert branches.turn_of(edited).question_place == newest[1].question_place
    root = chat.ask(talk, "q1, better", None)
    assert [turn.question for turn in branches.turns(talk)] == [root]
    assert branches.turns(talk)[0].question_place == branches.Place(2, 2, before=question, after=None)


def test_it_asks_once_however_often_it_is_sent(ada: User, eve: User) -> None:
    key, other = uuid.uuid4(), uuid.uuid4()
    first = [chat.start(ada, "q", key=key) for _ in range(3)]
    assert len({question.pk for question in first}) == Conversation.objects.count() == 1
    answer = answered(first[0], "a")
    [again, twice] = [chat.ask(first[0].conversation, "q2", answer.pk, key=other) for _ in range(2)]
    assert again == twice
    assert Message.objects.filter(role="assistant").count() == 2
    with pytest.raises(chat.Refused):
        chat.start(eve, "q", key=key)  # somebody else's key finds nothing
    assert not eve.conversations.exists()


# --- continuing -------------------------------------------------------------------------------------------------------
STOPPED, COMPLETE, FAILED = Message.Status.STOPPED, Message.Status.COMPLETE, Message.Status.FAILED


@pytest.mark.parametrize(("status", "usage"), [(STOPPED, {}), (FAILED, {}), (COMPLETE, {"finish_reason": "length"})])
def test_it_continues_what_ended_early(ada: User, status: str, usage: dict[str, str]) -> None:
    answer = chat.start(ada, "q").children.get()
    chat.finish(answer.pk, status, "Once upon  \n", usage, "why")
    answer.refresh_from_db()
    assert branches.turn_of(answer).is_continuable
    before = answer.sampling
    chat.continue_answer(answer)
    answer.refresh_from_db()
    assert (answer.status, answer.content, answer.error) == (Message.Status.PENDING, "Once upon", "")
    messages, options = branches.sent(answer)
    assert messages == [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Once upon"}]
    assert options == before | {"continue_final_message": True, "add_generation_prompt": False}
    with pytest.raises(chat.Refused):
        chat.continue_answer(answer)  # another tab did


def test_it_continues_nothing_that_is_complete_or_replied_to_or_blind(good_adapter: Maker, ada: User) -> None:
    question = chat.start(ada, "q")
    complete = answered(question, "a")
    with pytest.raises(chat.Refused, match="nothing to continue"):
        chat.continue_answer(complete)
    stopped = chat.regenerate(complete)
    chat.finish(stopped.pk, STOPPED, "half", {})
    stopped.refresh_from_db()
    chat.ask(question.conversation, "q2", stopped.pk)
    assert not branches.turn_of(stopped).is_continuable
    with pytest.raises(chat.Refused, match="replied"):
        chat.continue_answer(stopped)
    adapters.publish(good_adapter(1))
    blind = chat.start(ada, "q", ["current", "base"])
    side = blind.children.all()[0]
    chat.finish(side.pk, STOPPED, "half", {})
    side.refresh_from_db()
    with pytest.raises(chat.Refused, match="Choose"):
        chat.continue_answer(side)


def test_it_continues_only_on_the_version_that_began(good_adapter: Maker, ada: User) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    answer = chat.start(ada, "q").children.get()
    chat.finish(answer.pk, STOPPED, "half", {})
    Adapter.objects.filter(pk=row.pk).update(status=Adapter.Status.REJECTED)
    answer.refresh_from_db()
    with pytest.raises(chat.Refused, match="answers no more"):
        chat.continue_answer(answer)
    answer.refresh_from_db()
    assert answer.status == STOPPED


def test_it_gives_a_continued_answer_its_time(ada: User) -> None:
    """An old one is not taken for one that nobody writes any more."""
    answer = chat.start(ada, "q").children.get()
    chat.finish(answer.pk, STOPPED, "half", {})
    Message.objects.update(created_at=timezone.now() - timedelta(days=3), asked_at=timezone.now() - timedelta(days=3))
    answer.refresh_from_db()
    chat.continue_answer(answer)
    assert chat.close_abandoned() == 0


# --- settings ---------------------------------------------------------------------------------------------------------
def test_it_asks_with_the_settings_of_the_conversation(ada: User) -> None:
    settings = Settings("Answer in French.", {"temperature": 0.1, "seed": 7})
    question = chat.start(ada, "q", settings=settings)
    answer = answered(question, "a")
    assert answer.sampling == sampling.DEFAULTS | {"temperature": 0.1, "seed": 7}
    assert branches.history(answer)[0] == {"role": "system", "content": "Answer in French."}
    chat.change_settings(question.conversation, Settings())
    later = chat.regenerate(Message.objects.get(pk=answer.pk))
    assert later.sampling | {"seed": 0} == sampling.DEFAULTS | {"seed": 0}
    assert branches.history(later) == [{"role": "user", "content": "q"}]
    assert branches.history(answer)[0]["role"] == "system"  # what was asked stays what it was


# --- one named version, and comparing with a new answer ---------------------------------------------------------------
def test_it_asks_a_version_by_name(good_adapter: Maker, ada: User) -> None:
    adapters.publish(good_adapter(1))
    question = chat.start(ada, "q", ["base"])
    assert question.children.get().adapter == adapters.base()
    answer = answered(question, "a")
    assert chat.regenerate(answer).adapter == adapters.current()
    assert chat.regenerate(answer, "base").adapter == adapters.base()
