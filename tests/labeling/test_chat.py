import uuid

import pytest
from django.urls import reverse

from labeling import chat, judgments, pairs
from labeling.models import Campaign, Comparison, Judgment, Prompt
from serving.models import Adapter, Conversation, Message
from tests.labeling import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def anna():
    user = make.person("anna")
    chat.give_consent(user, make.NOW)
    return user


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


def test_it_keeps_what_the_versions_were_told_beforehand(client, anna, answers):
    Message.objects.filter(pk__in=[answer.pk for answer in answers]).update(system_prompt="Be brief.")
    client.force_login(anna)
    assert _choose(client, answers).status_code == 201
    assert Prompt.objects.get().messages[0] == {"role": "system", "content": "Be brief."}


def test_it_stores_a_retry_once(client, anna, answers):
    client.force_login(anna)
    key = uuid.uuid4()
    ids = {_choose(client, answers, client_key=key).json()["id"] for _ in range(3)}
    assert len(ids) == Judgment.objects.count() == Comparison.objects.count() == 1


def test_it_gives_nobody_elses_chat_to_label(client, anna, answers):
    client.force_login(anna)
    _choose(client, answers)
    private = Campaign.objects.get(slug="chat")
    root = make.person("root", is_superuser=True)
    assert not pairs.open_comparisons(private, root, make.NOW).exists()
    judgments.undo(Judgment.objects.get(), make.NOW)
    assert not pairs.open_comparisons(private, root, make.NOW).exists()
    judgments.reopen(private)
    assert not pairs.open_comparisons(private, root, make.NOW).exists()


def _stream(answers):
    Message.objects.filter(pk=answers[0].pk).update(status="streaming")


def _move(answers):
    Message.objects.filter(pk=answers[0].pk).update(parent=answers[0].parent.parent.parent)


def _repeat(answers):
    Message.objects.filter(pk=answers[0].pk).update(content=answers[1].content)


def _forget(answers):
    Message.objects.filter(pk=answers[0].pk).update(adapter=None)


def _tell_otherwise(answers):
    Message.objects.filter(pk=answers[0].pk).update(system_prompt="Answer in French.")


def _give_away(answers):
    Conversation.objects.update(owner=make.person("ben"))


@pytest.mark.parametrize(("spoil", "why"), [
    (_stream, "Only complete answers"),
    (_move, "the same question"),
    (_repeat, "nothing to compare"),
    (_forget, "not known which version"),
    (_tell_otherwise, "different system prompts"),
    (_give_away, "no answer of your own conversation"),
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


# --- thumbs -----------------------------------------------------------------------------------------------------------
def _rate(client, answer, verdict, **fields):
    body = {"message": answer.pk, "client_key": uuid.uuid4(), "verdict": verdict, **fields}
    return client.post(reverse("chat_rating"), body, content_type="application/json")


def test_it_turns_a_thumb_into_a_judgment_with_its_version(client, anna, answers, versions):
    client.force_login(anna)
    judged = _rate(client, answers[1], "good").json()["judgment"]
    judgment = Judgment.objects.get(pk=judged)
    [row] = judgment.comparison.responses.all()
    assert (judgment.verdict, judgment.purpose, judgment.ranks) == ("good", "chat", {})
    assert (judgment.order, row.adapter, row.text) == ([row.pk], versions[1], "Light is scattered.")
    assert judgment.comparison.prompt.messages[-1]["content"] == "Why is the sky blue?"
    assert not judgment.comparison.is_open


def test_it_revises_a_thumb_that_changes(client, anna, answers):
    client.force_login(anna)
    for verdict in ("good", "good", "bad", "good"):
        _rate(client, answers[0], verdict)
    assert [row.verdict for row in Judgment.objects.all()] == ["good", "bad", "good"]
    assert [row.supersedes_id for row in Judgment.objects.all()][1:] == [row.pk for row in Judgment.objects.all()][:-1]
    assert judgments.in_force().get().verdict == "good"


def test_it_takes_a_thumb_back(client, anna, answers):
    client.force_login(anna)
    assert _rate(client, answers[0], "none").json() == {"judgment": None}
    assert not Prompt.objects.exists()  # there was nothing, and nothing was stored
    _rate(client, answers[0], "bad")
    assert _rate(client, answers[0], "none").json() == {"judgment": None}
    assert not judgments.in_force().exists()
    _rate(client, answers[0], "good")
    assert judgments.in_force().get().verdict == "good"


def test_it_keeps_a_thumb_and_a_choice_apart(client, anna, answers):
    client.force_login(anna)
    _choose(client, answers)
    _rate(client, answers[0], "bad")
    assert sorted(row.verdict for row in judgments.in_force()) == ["bad", "preference"]
    assert Comparison.objects.count() == 2


@pytest.mark.parametrize("verdict", ["tie", "preference", "skip", ""])
def test_it_refuses_what_is_no_thumb(client, anna, answers, verdict):
    client.force_login(anna)
    assert _rate(client, answers[0], verdict).status_code == 400
    assert not Judgment.objects.exists()


def test_it_refuses_thumbs_on_other_peoples_answers(client, anna, answers):
    ben = make.person("ben")
    chat.give_consent(ben, make.NOW)
    client.force_login(ben)
    assert _rate(client, answers[0], "good").status_code == 400
    assert not Prompt.objects.exists()


# --- consent ----------------------------------------------------------------------------------------------------------
def _consent(client, consent):
    return client.put(reverse("chat_consent"), {"consent": consent}, content_type="application/json")


def test_it_stores_nothing_without_consent(client, anna, answers):
    client.force_login(anna)
    _consent(client, consent=False)
    for refused in (_choose(client, answers), _rate(client, answers[0], "good")):
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "consent_wanted")
    assert not any(model.objects.exists() for model in (Campaign, Prompt, Comparison, Judgment))
    assert _consent(client, consent=True).json()["consent_at"]
    assert _rate(client, answers[0], "good").status_code == 200


def test_it_takes_back_what_nobody_learned_from_when_consent_is_withdrawn(client, anna, answers):
    client.force_login(anna)
    _rate(client, answers[0], "good")
    Judgment.objects.update(frozen_at=make.NOW)
    _rate(client, answers[1], "bad")
    assert _consent(client, consent=False).json() == {"consent_at": None, "retracted": 1}
    assert judgments.in_force().get().verdict == "good"
    assert client.get(reverse("chat_consent")).json() == {"consent_at": None}


def test_it_keeps_the_time_of_the_first_consent(client, anna):
    client.force_login(anna)
    assert chat.give_consent(anna, make.later(60)) == make.NOW
    assert client.get(reverse("chat_consent")).json()["consent_at"] == "2026-03-01T12:00:00Z"
