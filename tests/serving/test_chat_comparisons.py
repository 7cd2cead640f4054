"""Two answers side by side: blind until there is a choice."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User

from serving import adapters, branches, chat
from serving.models import Adapter, Message
from serving.sampling import Settings
from tests.serving.test_chat import answered

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("engine")]
Maker = Callable[[int], Adapter]


def compared(good_adapter: Maker, ada: User) -> tuple[Message, Adapter]:
    row = good_adapter(1)
    adapters.publish(row)
    return chat.start(ada, "q", ["current", "base"]), row


def choose(question: Message, choice: str, *, is_stored: bool = False) -> None:
    """As somebody who sees the newest comparison."""
    question.refresh_from_db()
    chat.choose(question, choice, question.comparison["client_key"], is_stored=is_stored)


def test_it_answers_with_two_versions_blindly(good_adapter: Maker, ada: User) -> None:
    question, row = compared(good_adapter, ada)
    turn = branches.turn_of(question)
    assert {answer.adapter for answer in turn.sides} == {row, adapters.base()}
    assert turn.is_blind
    assert [str(answer.pk) for answer in turn.sides] == [question.comparison["left"], question.comparison["right"]]


def test_it_puts_versions_on_random_sides(good_adapter: Maker, ada: User) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    lefts = {branches.turn_of(chat.start(ada, "q", ["current", "base"])).sides[0].adapter for _ in range(40)}
    assert lefts == {row, adapters.base()}


@pytest.mark.parametrize("names", [["base", "base"], ["base", "current"], ["base", "current", "x"]])
def test_it_refuses_to_compare_anything_but_two_versions(ada: User, names: list[str]) -> None:
    with pytest.raises((chat.Refused, adapters.UnknownModel)):
        chat.start(ada, "q", names)


def test_it_reveals_after_the_choice_and_goes_on_from_the_better(good_adapter: Maker, ada: User) -> None:
    question, _row = compared(good_adapter, ada)
    with pytest.raises(chat.Refused, match="complete"):
        choose(question, "right")
    answered(question, "one")
    answered(question, "two")
    choose(question, "right")
    choose(question, "left")  # the first choice stands
    question.refresh_from_db()
    turn = branches.turn_of(question)
    assert not turn.is_blind
    assert turn.shown == turn.sides[1]


def test_it_keeps_the_choice_whether_or_not_it_became_a_judgment(good_adapter: Maker, ada: User) -> None:
    adapters.publish(good_adapter(1))
    for is_stored in (True, False):
        question = chat.start(ada, "q", ["current", "base"])
        answered(question, "one")
        answered(question, "two")
        choose(question, "right", is_stored=is_stored)
        question.refresh_from_db()
        assert (question.comparison["choice"], question.comparison["is_stored"]) == ("right", is_stored)


def test_it_refuses_the_choice_of_another_comparison(good_adapter: Maker, ada: User) -> None:
    question, _old, new = challenged(good_adapter, ada)
    answered(question, "new")
    seen = question.comparison["client_key"]
    choose(question, "none")
    again = chat.challenge(Message.objects.get(pk=new.pk))
    answered(again, "third")
    with pytest.raises(chat.Refused, match="Other answers"):
        chat.choose(again, "left", seen)
    again.refresh_from_db()
    assert "choice" not in again.comparison


def test_it_has_nothing_to_choose_in_a_single_answer(ada: User) -> None:
    with pytest.raises(chat.Refused):
        chat.choose(chat.start(ada, "q"), "left", "")


def challenged(good_adapter: Maker, ada: User) -> tuple[Message, Message, Message]:
    """The question, its old answer, which has a reply, and the new one."""
    question = chat.start(ada, "q", settings=Settings("Be brief.", {"temperature": 0.1}))
    old = answered(question, "old")
    chat.ask(question.conversation, "q2", old.pk)
    chat.change_settings(question.conversation, Settings())
    adapters.publish(good_adapter(1))
    question = chat.challenge(Message.objects.get(pk=old.pk))
    return question, old, question.children.exclude(pk=old.pk).get()


def test_it_compares_an_answer_with_a_new_one_blindly(good_adapter: Maker, ada: User) -> None:
    question, old, new = challenged(good_adapter, ada)
    assert new.adapter == adapters.current() != old.adapter
    drawn = old.sampling | {"seed": new.sampling["seed"]}
    assert (new.system_prompt, new.sampling) == ("Be brief.", drawn)  # drawn alike, or the choice says nothing
    assert new.sampling["seed"] != old.sampling["seed"]
    [turn] = branches.turns(question.conversation)  # the reply to the old one waits for the choice
    assert turn.is_blind
    assert set(turn.sides) == {old, new}
    for act in (chat.regenerate, chat.challenge):
        with pytest.raises(chat.Refused, match="Choose"):
            act(Message.objects.get(pk=old.pk))
    with pytest.raises(chat.Refused, match="Choose"):
        chat.ask(question.conversation, "q3", old.pk)


def test_it_puts_old_and_new_on_random_sides(good_adapter: Maker, ada: User) -> None:
    adapters.publish(good_adapter(1))
    lefts = set()
    for _ in range(40):
        old = answered(chat.start(ada, "q"), "old")
        lefts.add(branches.turn_of(chat.challenge(old)).sides[0] == old)
    assert lefts == {True, False}


@pytest.mark.parametrize("side", ["old", "new", "tie"])
def test_it_goes_on_from_the_better_of_old_and_new(good_adapter: Maker, ada: User, side: str) -> None:
    question, old, new = challenged(good_adapter, ada)
    answered(question, "new")
    better = {"old": old, "new": new, "tie": old}[side]
    left = branches.turn_of(question).sides[0]
    choose(question, "tie" if side == "tie" else "left" if better == left else "right")
    branch = branches.turns(question.conversation)
    assert branch[0].shown == better
    assert [turn.question.content for turn in branch] == (["q", "q2"] if better == old else ["q"])
    other = ({old, new} - {better}).pop()
    assert branches.turns(question.conversation, other.pk)[0].shown == other  # nothing is lost


def test_it_compares_again_and_keeps_what_was_compared(good_adapter: Maker, ada: User) -> None:
    question, _old, new = challenged(good_adapter, ada)
    answered(question, "new")
    choose(question, "right")
    question.refresh_from_db()
    first = dict(question.comparison)
    again = chat.challenge(Message.objects.get(pk=new.pk))
    assert again.comparison["earlier"] == [first]
    assert "choice" not in again.comparison
    third = answered(question, "third")
    choose(question, "none")
    fourth = chat.regenerate(third)  # shown by itself: it was in no comparison
    [turn] = branches.turns(question.conversation)
    assert (turn.shown, turn.sides) == (fourth, [])
    assert turn.place == branches.Place(4, 4, before=third, after=None)


def test_it_compares_only_complete_answers(ada: User) -> None:
    answer = chat.start(ada, "q").children.get()
    chat.finish(answer.pk, Message.Status.STOPPED, "half", {})
    answer.refresh_from_db()
    with pytest.raises(chat.Refused, match="complete"):
        chat.challenge(answer)
