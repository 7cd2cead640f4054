import uuid

import pytest
from django.urls import reverse

from labeling import judgments, pairs
from labeling.models import Campaign, Comparison, Judgment, Prompt
from serving.models import Adapter, Conversation, Message
from tests.labeling import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def anna():
    return make.person("anna")


@pytest.fixture
def versions():
    return [Adapter.objects.create(name=f"adapter-{n}", sha256=str(n) * 64, base_sha256="b" * 64) for n in (1, 2)]


def _say(conversation, role, content, parent=None, **fields):
    return Message.objects.create(conversation=conversation, role=role, content=content, parent=parent, **fields)


@pytest.fixture
def answers(anna, versions):
    """Two answers by two versions to the second question of a conversation that has another branch."""
    talk = Conversation.objects.create(owner=anna)
    first = _say(talk, "user", "Hello?")
    reply = _say(talk, "assistant", "Yes?", first, adapter=versions[0])
    _say(talk, "user", "Another branch", reply)
    question = _say(talk, "user", "Why is the sky blue?", reply)
    return [
        _say(talk, "assistant", text, question, adapter=version, sampling={"seed": 1})
        for text, version in zip(("Because.", "Light is scattered."), versions, strict=True)
    ]


def _choose(client, answers, **fields):
    body = {
        "messages": [answer.pk for answer in answers],
        "client_key": uuid.uuid4(),
        "verdict": "preference",
        "choice": answers[1].pk,
        **fields,
    }
    return client.post(reverse("chat_comparison"), body, content_type="application/json")


def test_it_turns_a_choice_into_a_judgment_with_versions(client, anna, answers, versions):
    client.force_login(anna)
    response = _choose(client, answers)
    assert response.status_code == 201
    judgment = Judgment.objects.get(pk=response.json()["id"])
    rows = list(judgment.comparison.responses.order_by("id"))
    assert judgment.order == [row.pk for row in rows]
    assert judgment.ranks == {str(rows[0].pk): 2, str(rows[1].pk): 1}
    assert [(row.text, row.adapter, row.source) for row in rows] == [
        ("Because.", versions[0], "chat"),
        ("Light is scattered.", versions[1], "chat"),
    ]
    assert [turn["content"] for turn in judgment.comparison.prompt.messages] == [
        "Hello?",
        "Yes?",
        "Why is the sky blue?",
    ]
    assert list(judgments.in_force()) == [judgment]


def test_it_leaves_out_turns_without_words(client, anna, answers):
    """As the versions saw it: an answer that was stopped before its first word says nothing."""
    Message.objects.filter(content="Yes?").update(content="", status="stopped")
    client.force_login(anna)
    assert _choose(client, answers).status_code == 201
    messages = Prompt.objects.get().messages
    assert [(turn["role"], turn["content"]) for turn in messages] == [
        ("user", "Hello?"),
        ("user", "Why is the sky blue?"),
    ]


def test_it_stores_a_retry_once(client, anna, answers):
    client.force_login(anna)
    key = uuid.uuid4()
    ids = {_choose(client, answers, client_key=key).json()["id"] for _ in range(3)}
    assert len(ids) == Judgment.objects.count() == Comparison.objects.count() == 1


def test_it_gives_nobody_elses_chat_to_label(client, anna, answers):
    client.force_login(anna)
    _choose(client, answers)
    chat = Campaign.objects.get(slug="chat")
    root = make.person("root", is_superuser=True)
    assert not pairs.open_comparisons(chat, root, make.NOW).exists()
    judgments.undo(Judgment.objects.get(), make.NOW)
    assert not pairs.open_comparisons(chat, root, make.NOW).exists()
    judgments.reopen(chat)
    assert not pairs.open_comparisons(chat, root, make.NOW).exists()


def _stream(answers):
    Message.objects.filter(pk=answers[0].pk).update(status="streaming")


def _move(answers):
    Message.objects.filter(pk=answers[0].pk).update(parent=answers[0].parent.parent.parent)


def _repeat(answers):
    Message.objects.filter(pk=answers[0].pk).update(content=answers[1].content)


def _forget(answers):
    Message.objects.filter(pk=answers[0].pk).update(adapter=None)


def _give_away(answers):
    Conversation.objects.update(owner=make.person("ben"))


@pytest.mark.parametrize(("spoil", "why"), [
    (_stream, "Both answers must be complete"),
    (_move, "the same question"),
    (_repeat, "nothing to compare"),
    (_forget, "not known which version"),
    (_give_away, "your own conversation"),
])  # fmt: skip
def test_it_refuses_and_leaves_nothing_behind(client, anna, answers, spoil, why):
    spoil(answers)
    client.force_login(anna)
    response = _choose(client, answers)
    assert response.status_code == 400
    assert why in response.json()["error"]["message"]
    assert not any(model.objects.exists() for model in (Prompt, Comparison, Judgment))


@pytest.mark.parametrize("fields", [{"choice": None}, {"choice": uuid.uuid4()}, {"strength": 2}, {"verdict": "tie"}])
def test_it_refuses_choices_off_the_scale(client, anna, answers, fields):
    client.force_login(anna)
    assert _choose(client, answers, **fields).status_code == 400
    assert not Judgment.objects.exists()


def test_it_refuses_a_second_choice_between_the_same_answers(client, anna, answers):
    client.force_login(anna)
    _choose(client, answers)
    response = _choose(client, answers[::-1])
    assert response.status_code == 400
    assert "already" in response.json()["error"]["message"]
