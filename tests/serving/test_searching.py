from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from serving import searching
from serving.models import Conversation, Message
from serving.searching import PAGE_SIZE, Listed, listed

pytestmark = pytest.mark.django_db


def talk(owner: User, title: str, *messages: str, days_ago: float = 0) -> Conversation:
    row = Conversation.objects.create(owner=owner, title=title)
    for i, content in enumerate(messages):
        Message.objects.create(conversation=row, role=("user", "assistant")[i % 2], content=content)
    Conversation.objects.filter(pk=row.pk).update(updated_at=timezone.now() - timedelta(days=days_ago))
    return row


def rows(owner: User, query: str = "", after: str = "") -> list[Listed]:
    return [row for _day, group in listed(owner, query, after).groups for row in group]


def titles(owner: User, query: str = "") -> list[str]:
    return [row.conversation.title for row in rows(owner, query)]


@pytest.mark.parametrize(
    "query",
    ["sky", "SKY", "größe", "HIMMEL", "Größe blue", "rayleigh", "100 %", "a_b", "(.*)", "ÜBER"],
)
def test_it_finds_words_in_titles_and_messages_whatever_their_case(ada: User, query: str) -> None:
    talk(ada, "Why is the SKY blue?", "Die Größe der Tropfen im Himmel?", "Rayleigh: 100 % a_b (.*) über")
    talk(ada, "Soup", "Leek and potato?", "Yes: 100 g, axb, ab")
    assert titles(ada, query) == ["Why is the SKY blue?"]


def test_it_wants_every_word_wherever_it_stands(ada: User) -> None:
    talk(ada, "Sky", "About soup?", "Leek.")
    assert titles(ada, "sky leek soup") == ["Sky"]
    assert titles(ada, "sky leek onion") == []
    assert titles(ada, "   ") == ["Sky"]


def test_it_finds_nothing_of_others(ada: User, eve: User) -> None:
    talk(eve, "A secret", "of eve")
    assert titles(ada) == titles(ada, "secret") == titles(ada, "eve") == []


def test_it_shows_where_the_words_are(ada: User) -> None:
    row = talk(ada, "Blue <b>", "unrelated", "x" * 300 + " the Sky is\n\nblue " + "y" * 300)
    [found] = rows(ada, "sky blue")
    assert found.title == [("Blue", True), (" <b>", False)]
    assert [piece for piece, is_hit in found.excerpt if is_hit] == ["Sky", "blue"]
    assert len("".join(piece for piece, _hit in found.excerpt)) < 200
    assert found.message == row.messages.get(role="assistant")  # the link leads there


def test_it_groups_by_day(ada: User) -> None:
    noon = timezone.localtime().replace(hour=12)
    for name, days in (("a", 0), ("b", 1), ("c", 3), ("d", 20), ("e", 400)):
        row = talk(ada, name)
        Conversation.objects.filter(pk=row.pk).update(updated_at=noon - timedelta(days=days))
    groups = listed(ada, now=noon).groups
    assert [day for day, _rows in groups[:4]] == ["Today", "Yesterday", "This week", "This month"]
    assert groups[4][0] == (noon - timedelta(days=400)).strftime("%B %Y")


def test_it_pages_through_everything_once(ada: User) -> None:
    now = timezone.now()
    Conversation.objects.bulk_create([Conversation(owner=ada, title=f"word {i}") for i in range(2 * PAGE_SIZE + 1)])
    Conversation.objects.update(updated_at=now)  # all at the same moment: their ids decide
    for query in ("", "word"):
        seen, after = [], ""
        for _page in range(3):
            seen += [row.conversation.pk for row in rows(ada, query, after)]
            after = listed(ada, query, after).after
        assert after == ""
        assert len(seen) == len(set(seen)) == 2 * PAGE_SIZE + 1
    assert listed(ada, "word").count == 2 * PAGE_SIZE + 1


@pytest.mark.parametrize("after", ["x", "_", "2026-01-01_x", "2026-01-01T00:00:00_" + "0" * 32, "\x00"])
def test_it_begins_at_the_top_when_the_place_is_none(ada: User, after: str) -> None:
    talk(ada, "one")
    assert len(rows(ada, "", after)) == 1


def test_it_asks_few_questions_of_the_database(ada: User, django_assert_max_num_queries) -> None:
    for i in range(30):
        talk(ada, f"word {i}", "a word", "words")
    with django_assert_max_num_queries(3):
        assert len(rows(ada, "word")) == 30


def test_it_takes_the_first_words_of_an_endless_query() -> None:
    assert searching.split("a " * 1_000) == ["a"] * searching.MAX_WORDS
    assert searching.split("x\x00y" + "z" * 1_000)[0].startswith("xyz")
