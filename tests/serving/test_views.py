import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.urls import reverse

from serving import adapters, chat, urls
from serving.models import Adapter, Conversation, Deployment, Message
from tests.serving.scripted import ScriptedEngine

pytestmark = pytest.mark.django_db
Maker = Callable[[int], Adapter]

POSTED = {
    "chat_start", "chat_settings", "message_create", "conversation_rename", "conversation_delete",
    "conversation_settings", "message_regenerate", "message_challenge", "message_continue", "message_rate",
    "message_version_stream", "comparison_choose", "message_stop", "message_go_on",
}  # fmt: skip
OF_CONVERSATIONS = {
    "conversation", "message_create", "conversation_rename", "conversation_delete", "conversation_settings",
    "conversation_json", "conversation_markdown",
}  # fmt: skip
OF_ANSWERS = {
    "message", "message_stream", "message_regenerate", "message_challenge", "message_continue", "message_rate",
    "message_versions", "message_version_stream", "comparison_choose", "message_stop", "message_go_on",
}  # fmt: skip
OPEN_TO_ALL_USERS = {
    "chat", "chat_start", "chat_current", "chat_versions", "chat_context", "chat_settings", "conversations",
}  # fmt: skip
NAMES = sorted(str(page.name) for page in urls.urlpatterns if str(page.pattern).startswith("chat/"))


@pytest.fixture
def question(engine: ScriptedEngine, ada: User) -> Message:
    """Asked by ada, and answered."""
    question = chat.start(ada, "What is *this*?")
    chat.finish(question.children.get().pk, Message.Status.COMPLETE, "An **answer**.", {})
    return question


@pytest.fixture
def answer(question: Message) -> Message:
    return question.children.get()


@pytest.fixture
def page(client: Client, ada: User) -> Client:
    client.force_login(ada)
    return client


def address(name: str, question: Message) -> str:
    if name in OF_CONVERSATIONS:
        return reverse(name, args=[question.conversation_id])
    if name == "message_version_stream":
        return reverse(name, args=[question.children.all()[0].pk, adapters.base().pk])
    if name in OF_ANSWERS:
        return reverse(name, args=[question.pk if name == "comparison_choose" else question.children.all()[0].pk])
    return reverse(name)


def send(client: Client, name: str, question: Message) -> HttpResponse | StreamingHttpResponse:
    method = client.post if name in POSTED else client.get
    return method(address(name, question), content_type="application/json")  # type: ignore[return-value]


def post(client: Client, url: str, body: Any) -> Any:
    return client.post(url, json.dumps(body), content_type="application/json")


# --- access -----------------------------------------------------------------------------------------------------------
def test_it_knows_every_view_of_the_chat() -> None:
    assert set(NAMES) == OF_CONVERSATIONS | OF_ANSWERS | OPEN_TO_ALL_USERS


@pytest.mark.parametrize("name", NAMES)
def test_it_asks_for_a_login(client: Client, question: Message, name: str) -> None:
    response = send(client, name, question)
    assert response.status_code == 302
    assert response.headers["Location"].startswith(reverse("login"))


@pytest.mark.parametrize("name", sorted(OF_CONVERSATIONS | OF_ANSWERS))
def test_it_is_404_for_everybody_else(client: Client, question: Message, eve: User, name: str) -> None:
    eve.is_staff = eve.is_superuser = True  # administrators read nobody's conversations either
    eve.save()
    client.force_login(eve)
    assert send(client, name, question).status_code == 404
    question.refresh_from_db()
    assert question.children.count() == 1


@pytest.mark.parametrize("name", sorted(POSTED))
def test_it_changes_things_only_by_post_with_a_token(ada: User, question: Message, name: str) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(ada)
    assert client.get(address(name, question)).status_code == 405
    assert send(client, name, question).status_code == 403
    assert Conversation.objects.count() == 1


# --- pages ------------------------------------------------------------------------------------------------------------
def test_it_shows_an_empty_page_with_suggestions(page: Client, engine: ScriptedEngine) -> None:
    html = page.get(reverse("chat")).content.decode()
    assert html.count("data-suggestion") == 3
    assert ">base</span>" in html


def test_it_shows_a_conversation_rendered(page: Client, question: Message) -> None:
    html = page.get(reverse("conversation", args=[question.conversation_id])).content.decode()
    assert "What is *this*?" in html  # people's words are shown as typed
    assert "<strong>answer</strong>" in html


def test_it_lists_only_own_conversations(page: Client, question: Message, eve: User) -> None:
    chat.start(eve, "a secret of eve")
    assert b"secret" not in page.get(reverse("chat")).content


def test_it_escapes_what_people_write(page: Client, engine: ScriptedEngine, ada: User) -> None:
    question = chat.start(ada, "<script>alert(1)</script>")
    html = page.get(reverse("conversation", args=[question.conversation_id])).content.decode()
    assert "<script>alert" not in html


def test_it_sends_a_strict_policy_and_no_inline_code(page: Client, question: Message) -> None:
    response = page.get(reverse("conversation", args=[question.conversation_id]))
    policy = response.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert b" style=" not in response.content
    assert b"onclick" not in response.content


# --- asking -----------------------------------------------------------------------------------------------------------
def test_it_starts_and_continues_a_conversation(page: Client, engine: ScriptedEngine, ada: User) -> None:
    started = post(page, reverse("chat_start"), {"content": "Hello"}).json()
    row = Conversation.objects.get(owner=ada)
    assert started["url"] == reverse("conversation", args=[row.pk])
    assert "data-stream=" in started["html"]
    parent = row.messages.get(role="assistant")
    chat.finish(parent.pk, Message.Status.COMPLETE, "Hi", {})
    response = post(page, started["ask_url"], {"content": "And?", "parent": str(parent.pk)})
    assert response.status_code == 201
    assert [m.content for m in row.messages.filter(role="user")] == ["Hello", "And?"]


@pytest.mark.parametrize(
    "body",
    [{}, [], "x", {"content": 7}, {"content": ""}, {"content": "x", "versions": "base"}, {"content": "x", "versions": [1]},
     {"content": "x", "versions": ["base", "base"]}, {"content": "x" * 20_000}, {"content": "x", "settings": [1]},
     {"content": "x", "settings": {"temperature": 3}}],
)  # fmt: skip
def test_it_says_what_is_wrong_with_a_question(page: Client, engine: ScriptedEngine, body: Any) -> None:
    response = post(page, reverse("chat_start"), body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert not Conversation.objects.exists()


def test_it_says_when_a_version_is_unknown(page: Client, engine: ScriptedEngine) -> None:
    response = post(page, reverse("chat_start"), {"content": "x", "versions": ["base", "adapter-9-ffffff"]})
    assert response.status_code == 404
    assert "adapter-9-ffffff" in response.json()["error"]["message"]


def test_it_refuses_half_a_character(page: Client, engine: ScriptedEngine) -> None:
    for body in ('{"content": "\\ud800"}', '{"\\udfff": [{"a": "x"}], "content": "Hi"}'):
        assert page.post(reverse("chat_start"), body, content_type="application/json").status_code == 400
    assert post(page, reverse("chat_start"), {"content": "😀"}).status_code == 201


def test_it_refuses_what_is_no_json(page: Client, engine: ScriptedEngine) -> None:
    for body in ("{", "[" * 100_000):
        response = page.post(reverse("chat_start"), body, content_type="application/json")
        assert response.status_code == 400


def test_it_regenerates_as_a_sibling(page: Client, question: Message, answer: Message) -> None:
    response = post(page, reverse("message_regenerate", args=[answer.pk]), {})
    assert response.status_code == 201
    assert question.children.count() == 2
    assert "2/2" not in response.json()["html"]  # shown when the answer is complete
    chat.finish(question.children.exclude(pk=answer.pk).get().pk, Message.Status.COMPLETE, "Another", {})
    html = page.get(reverse("conversation", args=[question.conversation_id]), {"at": str(answer.pk)}).content.decode()
    assert "1/2" in html
    assert "An <strong>answer</strong>." in html


def test_it_ignores_a_branch_that_is_none(page: Client, question: Message) -> None:
    for at in ("x", str(uuid.uuid4()), "", "'"):
        assert page.get(reverse("conversation", args=[question.conversation_id]), {"at": at}).status_code == 200


# --- what people do ---------------------------------------------------------------------------------------------------
def test_it_keeps_a_rating(page: Client, answer: Message) -> None:
    url = reverse("message_rate", args=[answer.pk])
    assert post(page, url, {"rating": 1}).json() == {"rating": 1}
    assert post(page, url, {"rating": 5}).status_code == 400
    answer.refresh_from_db()
    assert answer.rating == 1


def test_it_offers_thumbs_on_complete_answers_only(page: Client, answer: Message) -> None:
    part = chat.regenerate(answer)
    chat.finish(part.pk, Message.Status.STOPPED, "Half of", {})
    assert post(page, reverse("message_rate", args=[part.pk]), {"rating": 1}).status_code == 400
    for row, n_thumbs in ((answer, 2), (part, 0)):
        html = page.get(reverse("message", args=[row.pk])).json()["html"]
        assert html.count("data-rate=") == n_thumbs


def test_it_says_which_version_is_current(page: Client, good_adapter: Maker) -> None:
    assert page.get(reverse("chat_current")).json() == {"name": "base-bbbbbb", "label": "base", "is_base": True}
    row = good_adapter(1)
    adapters.publish(row)
    assert page.get(reverse("chat_current")).json()["name"] == row.name


def test_it_offers_what_was_published_since(page: Client, good_adapter: Maker) -> None:
    before = page.get(reverse("chat_versions")).json()["html"]
    row = good_adapter(1)
    adapters.publish(row)
    html = page.get(reverse("chat_versions")).json()["html"]
    assert row.name not in before
    assert html.count(f'value="{row.name}"') == 3  # to pick, and to compare
    assert f'<option value="{row.name}" selected>{row.name} · current</option>' in html
    assert '<option value="base-bbbbbb" selected>base</option>' in html
    assert html in page.get(reverse("chat")).content.decode()  # as the page has it


def test_it_tells_no_version_before_the_choice(page: Client, good_adapter: Maker) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    started = post(page, reverse("chat_start"), {"content": "Hi", "versions": [row.name, "base"]}).json()
    question = Message.objects.get(role="user")
    for answer in question.children.all():
        chat.finish(answer.pk, Message.Status.COMPLETE, "Same words", {"completion_tokens": 9, "seconds": 1})
    shown = page.get(reverse("message", args=[question.pk])).json()
    for html in (started["html"], shown["html"]):
        assert row.name not in html
        assert "base" not in html
        assert "tokens/s" not in html
    assert 'data-choice="left"' in shown["html"]
    url = reverse("comparison_choose", args=[question.pk])
    key = question.comparison["client_key"]
    for refused in ({"choice": "nonsense", "client_key": key}, {"choice": "left"}):
        assert post(page, url, refused).status_code == 400
    revealed = post(page, url, {"choice": "left", "client_key": key, "is_stored": True}).json()["html"]
    assert row.name in revealed
    assert "your choice" in revealed
    assert "Not saved as a judgment." not in revealed


def test_it_says_when_a_choice_became_no_judgment(page: Client, good_adapter: Maker) -> None:
    adapters.publish(good_adapter(1))
    post(page, reverse("chat_start"), {"content": "Hi", "versions": ["current", "base"]})
    question = Message.objects.get(role="user")
    for answer in question.children.all():
        chat.finish(answer.pk, Message.Status.COMPLETE, "words", {})
    body = {"choice": "right", "client_key": question.comparison["client_key"]}
    revealed = post(page, reverse("comparison_choose", args=[question.pk]), body).json()["html"]
    assert "your choice" in revealed
    assert "Not saved as a judgment." in revealed


def test_it_tells_neither_age_nor_failure_before_the_choice(page: Client, good_adapter: Maker) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    post(page, reverse("chat_start"), {"content": "Hi", "versions": [row.name, "base"]})
    question = Message.objects.get(role="user")
    for answer in question.children.all():
        chat.finish(answer.pk, Message.Status.FAILED, "", {}, f"{answer.adapter} is not loaded")
    html = page.get(reverse("message", args=[question.pk])).json()["html"]
    assert f'data-shown="{question.pk}"' in html
    assert row.name not in html
    assert "This answer could not be written to its end." in html


def test_it_offers_no_judgment_of_an_incomplete_pair(page: Client, good_adapter: Maker) -> None:
    adapters.publish(good_adapter(1))
    post(page, reverse("chat_start"), {"content": "Hi", "versions": ["current", "base"]})
    question = Message.objects.get(role="user")
    for answer, status in zip(question.children.all(), (Message.Status.COMPLETE, Message.Status.STOPPED), strict=True):
        chat.finish(answer.pk, status, "words", {})
    html = page.get(reverse("message", args=[question.pk])).json()["html"]
    assert 'data-choice="none"' in html
    assert 'data-choice="left"' not in html


def test_it_goes_on_with_an_answer_whose_reader_comes_back(page: Client, question: Message) -> None:
    answer = chat.ask(question.conversation, "And then?", question.children.get().pk).children.get()
    chat.finish(answer.pk, Message.Status.STOPPED, "Half of", {})
    url = reverse("message_go_on", args=[answer.pk])
    here = reverse("conversation", args=[question.conversation_id])
    assert page.get(here).content.decode().count(f'data-go-on="{url}"') == 1
    html = page.post(url).json()["html"]
    assert 'data-status="pending"' in html
    assert reverse("message_stream", args=[answer.pk]) in html
    assert "data-go-on" not in html
    chat.stop(answer)
    assert "data-go-on" not in page.get(here).content.decode()


# --- streaming --------------------------------------------------------------------------------------------------------
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("closed_connections")
async def test_it_streams_an_answer(async_client: AsyncClient, engine: ScriptedEngine, ada: User) -> None:
    await async_client.aforce_login(ada)
    answer = await sync_to_async(lambda: chat.start(ada, "Hi").children.get())()
    response = await async_client.get(reverse("message_stream", args=[answer.pk]))
    assert response.headers["Content-Type"] == "text/event-stream"
    assert isinstance(response, StreamingHttpResponse)
    body = b"".join([chunk async for chunk in response.streaming_content]).decode()
    *_texts, end, _rest = body.split("\n\n")
    assert end.startswith("event: end\n")
    assert "Hello, world!" in end
    await answer.arefresh_from_db()
    assert answer.status == Message.Status.COMPLETE


def test_it_lets_each_text_choose_its_direction(page: Client, question: Message) -> None:
    content = page.get(address("conversation", question)).content.decode()
    for start in ('<div class="prose"', '<div class="question"', '<h1 class="truncate" id="chat-title"', "<textarea"):
        assert 'dir="auto"' in content.split(start, 1)[1].split(">", 1)[0]
    assert 'dir="auto" href="' + reverse("conversation", args=[question.conversation_id]) in content


def test_it_names_the_version_on_trial_where_it_answers(page: Client, question: Message, good_adapter: Maker) -> None:
    canary = good_adapter(1)
    Adapter.objects.filter(pk=canary.pk).update(status=Adapter.Status.READY)
    Deployment.objects.update_or_create(alias="current", defaults={"canary": canary, "canary_share": 1.0})
    here = {"in": str(question.conversation_id)}
    assert page.get(reverse("chat_current"), here).json()["name"] == canary.name
    assert page.get(reverse("chat_current")).json()["is_base"] is True
    html = page.get(reverse("conversation", args=[question.conversation_id])).content.decode()
    assert f'data-name="{canary.name}"' in html
    assert "on trial for 100 %" in html
