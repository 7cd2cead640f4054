import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from serving import chat
from serving.models import Conversation, Message
from tests.serving.scripted import ScriptedEngine

pytestmark = pytest.mark.django_db


@pytest.fixture
def talk(engine: ScriptedEngine, ada: User) -> Conversation:
    question = chat.start(ada, "What is <b>this</b>?")
    chat.finish(question.children.get().pk, Message.Status.COMPLETE, "An **answer**.", {})
    return question.conversation


@pytest.fixture
def page(client: Client, ada: User) -> Client:
    client.force_login(ada)
    return client


def post(client: Client, url: str, body: Any) -> Any:
    return client.post(url, json.dumps(body), content_type="application/json")


def test_it_lists_what_is_looked_for_with_a_link_to_the_place(page: Client, talk: Conversation) -> None:
    answer = talk.messages.get(role="assistant")
    found = page.get(reverse("conversations"), {"q": "ANSWER", "open": str(talk.pk)}).json()
    assert f"?at={answer.pk}#turn-{answer.parent_id}" in found["html"]
    assert "<mark>answer</mark>" in found["html"]
    assert 'aria-current="page"' in found["html"]
    assert found["said"] == "1 conversation found."
    nothing = page.get(reverse("conversations"), {"q": "onion"}).json()
    assert "Nothing found" in nothing["html"]
    assert "<b>" not in page.get(reverse("conversations"), {"q": "<b>"}).json()["html"]


def test_it_stays_on_the_open_conversation_when_another_is_deleted(page: Client, talk: Conversation, ada: User) -> None:
    other = chat.start(ada, "Another").conversation
    deleted = page.post(reverse("conversation_delete", args=[other.pk]), {"open": str(talk.pk)})
    assert deleted.headers["Location"] == reverse("conversation", args=[talk.pk])
    deleted = page.post(reverse("conversation_delete", args=[talk.pk]), {"open": str(talk.pk)})
    assert deleted.headers["Location"] == reverse("chat")


def test_it_renames_and_deletes(page: Client, talk: Conversation) -> None:
    assert post(page, reverse("conversation_rename", args=[talk.pk]), {"title": "New"}).json() == {"title": "New"}
    assert post(page, reverse("conversation_rename", args=[talk.pk]), {"title": " "}).status_code == 400
    assert page.post(reverse("conversation_delete", args=[talk.pk])).headers["Location"] == reverse("chat")
    assert not Message.objects.exists()


def test_it_keeps_settings_and_resets_them(page: Client, talk: Conversation) -> None:
    url = reverse("conversation_settings", args=[talk.pk])
    changed = post(page, url, {"temperature": "0.2", "system_prompt": "Be brief.", "seed": None}).json()
    assert changed["is_default"] is False
    assert (changed["settings"]["temperature"], changed["settings"]["top_p"]) == (0.2, None)
    talk.refresh_from_db()
    assert (talk.system_prompt, talk.sampling) == ("Be brief.", {"temperature": 0.2})
    html = page.get(reverse("conversation", args=[talk.pk])).content.decode()
    assert "Be brief.</textarea>" in html.replace("\n", "")
    assert post(page, url, {}).json()["is_default"] is True
    talk.refresh_from_db()
    assert (talk.system_prompt, talk.sampling) == ("", {})


@pytest.mark.parametrize("name", ["chat_settings", "conversation_settings"])
def test_it_says_which_setting_is_wrong(page: Client, talk: Conversation, name: str) -> None:
    url = reverse(name, args=[] if name == "chat_settings" else [talk.pk])
    response = post(page, url, {"temperature": 3, "seed": "x"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error["fields"]) == {"temperature", "seed"}
    assert error["fields"]["temperature"] in error["message"]
    talk.refresh_from_db()
    assert talk.sampling == {}


def test_it_looks_over_settings_before_there_is_a_conversation(page: Client, engine: ScriptedEngine) -> None:
    checked = post(page, reverse("chat_settings"), {"seed": "7"}).json()
    started = post(page, reverse("chat_start"), {"content": "Hi", "settings": checked["settings"]}).json()
    row = Conversation.objects.get(pk=started["id"])
    assert row.sampling == {"seed": 7}
    assert row.messages.get(role="assistant").sampling["seed"] == 7


@pytest.mark.parametrize(("kind", "extension"), [("markdown", "md"), ("json", "json")])
def test_it_downloads_as_a_file_with_a_safe_name(page: Client, talk: Conversation, kind: str, extension: str) -> None:
    chat.rename(talk, 'a"; filename="evil.html')
    response = page.get(reverse(f"conversation_{kind}", args=[talk.pk]))
    name = response.headers["Content-Disposition"]
    assert name.startswith('attachment; filename="chat-a-filenameevilhtml-')
    assert name.endswith(f'.{extension}"')
    assert "An **answer**." in response.content.decode()
    assert response.headers["X-Content-Type-Options"] == "nosniff"
