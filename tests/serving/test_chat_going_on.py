"""Answers that go on by themselves: those that lost their reader a moment ago, and no others."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.utils import timezone

from serving import adapters, branches, chat
from serving.models import Adapter, Conversation, Message

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("engine")]
Maker = Callable[[int], Adapter]
STOPPED, FAILED, COMPLETE = Message.Status.STOPPED, Message.Status.FAILED, Message.Status.COMPLETE


def left(
    question: Message, text: str = "Once upon", ago: timedelta = timedelta(), usage: dict[str, Any] | None = None
) -> Message:
    """Its unfinished answer, whose reader went `ago`."""
    answer = question.children.get(status__in=Message.UNFINISHED)
    chat.claim(answer.pk)
    chat.finish(answer.pk, STOPPED, text, usage or {"seconds": 2.0})
    Message.objects.filter(pk=answer.pk).update(ended_at=timezone.now() - ago)
    answer.refresh_from_db()
    return answer


def gone_on(answer: Message) -> str:
    chat.go_on(answer)
    answer.refresh_from_db()
    return str(answer.status)


@pytest.mark.parametrize(("text", "usage"), [("Once upon ", {"seconds": 2.0}), ("", {}), ("\n", {})])
def test_it_goes_on_with_what_lost_its_reader_once(ada: User, text: str, usage: dict[str, float]) -> None:
    answer = left(chat.start(ada, "q"), text)
    assert branches.turn_of(answer).left == [answer]
    assert gone_on(answer) == Message.Status.PENDING
    assert (answer.content, answer.usage) == (
        text.rstrip(),
        usage | {"n_gone_on": 1},
    )  # a wait for nothing is forgotten
    assert chat.claim(answer.pk) == answer
    assert branches.turn_of(answer).left == []
    assert gone_on(answer) == Message.Status.STREAMING  # and not to be claimed a second time


def test_it_lets_one_of_two_tabs_go_on(ada: User) -> None:
    answer = left(chat.start(ada, "q"))
    chat.go_on(answer)
    chat.claim(answer.pk)
    chat._reopen(answer, {})  # as the other tab does, which saw it as it was before
    answer.refresh_from_db()
    assert answer.status == Message.Status.STREAMING


def test_it_does_not_go_on_after_a_stop_whenever_it_comes(ada: User) -> None:
    before, after, unread = (chat.start(ada, "q") for _ in range(3))
    stopped = before.children.get()
    chat.claim(stopped.pk)
    chat.stop(stopped)
    chat.finish(stopped.pk, STOPPED, "half", {})
    late = left(after)
    chat.stop(late)
    never = unread.children.get()
    chat.stop(never)
    for answer in (stopped, late, never):
        assert gone_on(answer) == STOPPED
        assert not answer.was_left
    chat.continue_answer(late)
    chat.claim(late.pk)
    chat.finish(late.pk, STOPPED, "half and more", {})
    assert gone_on(late) == Message.Status.PENDING  # that Stop is over


def test_it_goes_on_with_nothing_old_failed_complete_or_replied_to(ada: User) -> None:
    old = left(chat.start(ada, "q"), ago=branches.GOES_ON_WITHIN)
    failed, complete = (chat.start(ada, "q").children.get() for _ in range(2))
    chat.finish(failed.pk, FAILED, "half", {}, "why")
    chat.finish(complete.pk, COMPLETE, "cut", {"finish_reason": "length"})
    replied = left(chat.start(ada, "q"))
    chat.ask(replied.conversation, "q2", replied.pk)
    for answer, status in ((old, STOPPED), (failed, FAILED), (complete, COMPLETE), (replied, STOPPED)):
        assert gone_on(answer) == status
    assert branches.turn_of(old).is_continuable


def test_it_goes_on_only_on_the_version_that_began(good_adapter: Maker, ada: User) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    answer = left(chat.start(ada, "q"))
    Adapter.objects.filter(pk=row.pk).update(status=Adapter.Status.REJECTED)
    assert gone_on(answer) == STOPPED


def test_it_goes_on_with_both_sides_of_a_comparison(good_adapter: Maker, ada: User) -> None:
    adapters.publish(good_adapter(1))
    question = chat.start(ada, "q", ["current", "base"])
    for side in question.children.all():
        assert branches.turn_of(question).left == []  # the other is being written
        chat.claim(side.pk)
        chat.finish(side.pk, STOPPED, "half", {})
    assert len(branches.turn_of(question).left) == 2
    chat.go_on(question)
    assert [side.status for side in question.children.all()] == [Message.Status.PENDING] * 2
    for side in question.children.all():
        chat.finish(side.pk, STOPPED, "half", {})
    chat.choose(question, "none", question.comparison["client_key"])
    question.refresh_from_db()
    assert branches.turn_of(question).left == []  # looked at as they are


@pytest.mark.parametrize("text", ["Once upon", ""])
def test_it_leaves_it_to_the_reader_what_is_cut_again_and_again(ada: User, text: str) -> None:
    question = chat.start(ada, "q")
    answer = left(question, text)
    for _ in range(branches.GOES_ON_TIMES):
        assert gone_on(answer) == Message.Status.PENDING
        answer = left(question, text, usage=answer.usage)
    assert gone_on(answer) == STOPPED
    assert branches.turn_of(answer).left == []


def test_it_counts_anew_after_a_continue(ada: User) -> None:
    question = chat.start(ada, "q")
    answer = left(question, usage={"n_gone_on": branches.GOES_ON_TIMES})
    chat.continue_answer(answer)
    answer.refresh_from_db()
    again = left(question, usage=answer.usage)
    assert branches.turn_of(again).left == [again]


# --- two at once ------------------------------------------------------------------------------------------------------
def left_sides(good_adapter: Maker, ada: User) -> Message:
    adapters.publish(good_adapter(1))
    question = chat.start(ada, "q", ["current", "base"])
    for side in question.children.all():
        chat.finish(side.pk, STOPPED, "half", {})
    return question


def test_it_does_not_go_on_after_a_choice_that_came_first(good_adapter: Maker, ada: User) -> None:
    question = left_sides(good_adapter, ada)
    seen = [Message.objects.select_related("parent").get(pk=side.pk) for side in question.children.all()]
    chat.choose(question, "none", question.comparison["client_key"])
    assert [gone_on(side) for side in seen] == [STOPPED] * 2


@pytest.mark.django_db(transaction=True)
def test_it_lets_nobody_choose_between_answers_that_go_on(good_adapter: Maker, ada: User) -> None:
    question = left_sides(good_adapter, ada)
    key = question.comparison["client_key"]
    assert "complete" in refused_after(lambda: chat.go_on(question), lambda: chat.choose(question, "none", key))


@pytest.mark.django_db(transaction=True)
def test_it_lets_nobody_reply_to_an_answer_that_goes_on(ada: User) -> None:
    answer = left(chat.start(ada, "q"))
    conversation = Conversation.objects.get()
    assert "complete" in refused_after(lambda: chat.go_on(answer), lambda: chat.ask(conversation, "q2", answer.pk))


@pytest.mark.django_db(transaction=True)
def test_it_continues_no_answer_that_is_being_replied_to(ada: User) -> None:
    answer = left(chat.start(ada, "q"))
    conversation = Conversation.objects.get()
    # Both change the conversation first, so that is where one waits for the other.
    refusal = refused_after(
        lambda: chat.ask(conversation, "q2", answer.pk), lambda: chat.continue_answer(answer), lock="UPDATE"
    )
    assert "replied" in refusal
    answer.refresh_from_db()
    assert answer.status == STOPPED


def refused_after(first: Callable[[], object], act: Callable[[], object], lock: str = "FOR UPDATE") -> str:
    """Why `act`, which comes to its `lock` before `first` is committed, was refused; "" when it was not."""
    refusals: list[str] = []
    is_at_lock = threading.Event()

    def watch(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        if sql.startswith("BEGIN") or lock in sql:
            is_at_lock.set()
        return execute(sql, *args)

    def run() -> None:
        try:
            with connection.execute_wrapper(watch):
                act()
        except chat.Refused as refusal:
            refusals.append(str(refusal))
        finally:
            is_at_lock.set()
            connection.close()

    thread = threading.Thread(target=run)
    with transaction.atomic():
        first()
        thread.start()
        assert is_at_lock.wait(10)
    thread.join()
    return "".join(refusals)
