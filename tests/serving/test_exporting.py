import itertools
import json
from datetime import UTC, datetime

import pytest
from django.contrib.auth.models import User

from serving import adapters, chat, exporting
from serving.models import Conversation, Message
from serving.sampling import Settings

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("engine")]


@pytest.fixture
def talk(ada: User) -> Conversation:
    """q1 → a1 → (q2 → a2 | q2, edited → pending); q1 → another a1, stopped."""
    question = chat.start(ada, "q1", settings=Settings("Be brief.", {"temperature": 0.1}))
    first = _finish(question, "a1")
    chat.rate(first, 1)
    follow_up = chat.ask(question.conversation, "q2", first.pk)
    _finish(follow_up, "a2")
    chat.ask(question.conversation, "q2, edited", first.pk)
    stopped = chat.regenerate(first)
    chat.finish(stopped.pk, Message.Status.STOPPED, "another a1", {"completion_tokens": 2})
    return question.conversation


def _finish(question: Message, text: str) -> Message:
    answer = question.children.get()
    chat.finish(answer.pk, Message.Status.COMPLETE, text, {})
    answer.refresh_from_db()
    return answer


def test_it_writes_all_branches_as_json(talk: Conversation) -> None:
    document = json.loads(exporting.to_json(talk))
    assert document["settings"]["system_prompt"] == "Be brief."
    said = {message["content"]: message for message in document["messages"]}
    assert set(said) == {"q1", "a1", "q2", "a2", "q2, edited", "", "another a1"}
    assert said["q2"]["parent"] == said["q2, edited"]["parent"] == said["a1"]["id"]
    assert said["a1"]["version"] == adapters.base().name
    assert (said["a1"]["rating"], said["a1"]["sampling"]["temperature"]) == (1, 0.1)
    assert (said["another a1"]["status"], said["another a1"]["usage"]) == ("stopped", {"completion_tokens": 2})


def test_it_writes_every_message_once_as_markdown(talk: Conversation) -> None:
    text = exporting.to_markdown(talk)
    assert text.startswith("# q1\n")
    lines = text.splitlines()
    for said in ("q1", "a1", "q2", "a2", "q2, edited", "another a1"):
        assert lines.count(said) == 1
    assert f"## {adapters.base().name}, you found it good" in lines
    assert f"## {adapters.base().name}, stopped" in lines
    assert "- system prompt: Be brief." in lines
    assert lines.index("another a1") < lines.index("a1")  # the newest branch comes first
    assert "Another branch, in reply to: “q1”" in lines


def test_it_writes_long_conversations(ada: User) -> None:
    """Deeper than Python's stack."""
    talk = Conversation.objects.create(owner=ada, title="long")
    rows = [Message(conversation=talk, role=("user", "assistant")[i % 2], content=f"said {i}") for i in range(3_000)]
    for above, below in itertools.pairwise(rows):
        below.parent = above
    Message.objects.bulk_create(rows)
    assert exporting.to_markdown(talk).count("said ") == 3_000
    assert len(json.loads(exporting.to_json(talk))["messages"]) == 3_000


def test_it_hides_who_wrote_what_until_the_choice(ada: User, good_adapter) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    question = chat.start(ada, "q", ["current", "base"])
    for answer in question.children.all():
        chat.finish(answer.pk, Message.Status.COMPLETE, "same words", {"completion_tokens": 2})
    for write in (exporting.to_json, exporting.to_markdown):
        assert row.name not in write(question.conversation)
        assert "client_key" not in write(question.conversation)
    hidden = [m for m in json.loads(exporting.to_json(question.conversation))["messages"] if m["role"] == "assistant"]
    assert all(message[name] is None for message in hidden for name in exporting.HIDDEN)
    chat.choose(question, "left", question.comparison["client_key"])
    for write in (exporting.to_json, exporting.to_markdown):
        assert row.name in write(Conversation.objects.get())


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Why is the sky blue?", "chat-why-is-the-sky-blue-2026-03-01.md"),
        ("../../etc/passwd\n", "chat-etcpasswd-2026-03-01.md"),
        ("con", "chat-con-2026-03-01.md"),
        ("日本語", "chat-conversation-2026-03-01.md"),
        ("x" * 200, f"chat-{'x' * 60}-2026-03-01.md"),
        ('a";b="', "chat-ab-2026-03-01.md"),
    ],
)
def test_it_names_files_safely(title: str, name: str) -> None:
    assert exporting.file_name(Conversation(title=title), "md", datetime(2026, 3, 1, tzinfo=UTC)) == name
