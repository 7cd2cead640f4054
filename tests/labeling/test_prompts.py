import pytest

from labeling import prompts
from labeling.errors import Invalid
from labeling.models import Prompt
from tests.labeling import make


@pytest.mark.parametrize(
    ("messages", "word"),
    [
        ([], "list of turns"),
        (None, "list of turns"),
        ("  \n ", "Turn 1 is empty"),
        ([{"role": "user", "content": "a", "name": "b"}], "exactly the keys"),
        ([{"role": "robot", "content": "a"}], "'robot'"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "must be the user's"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "only the first"),
        ([{"role": "user", "content": 7}], "A text is wanted"),
    ],
)
def test_it_says_what_is_wrong_with_a_prompt(messages, word):
    with pytest.raises(Invalid, match=word):
        prompts.canonical(messages)


def test_it_hashes_the_canonical_form():
    plain = prompts.canonical("  Hello?\r\n")
    assert plain == [{"role": "user", "content": "Hello?"}]
    assert prompts.digest(plain) == prompts.digest(prompts.canonical([{"content": "Hello?", "role": "user"}]))
    assert prompts.digest(plain) != prompts.digest(prompts.canonical("hello?"))


@pytest.mark.django_db
def test_it_adds_each_prompt_once_and_answers_in_order():
    campaign = make.campaign()
    items = [{"messages": "B"}, {"messages": "A", "domain": "letters"}, {"messages": "B "}]
    rows = prompts.add_prompts(campaign, items, "test")
    assert [row.messages[0]["content"] for row in rows] == ["B", "A", "B"]
    assert rows[0] == rows[2]
    assert rows[1].domain == "letters"
    assert prompts.add_prompts(campaign, items, "again") == rows
    assert Prompt.objects.count() == 2
    assert {row.candidates_state for row in rows} == {"wanted"}


@pytest.mark.django_db
def test_it_writes_nothing_when_one_prompt_is_wrong():
    with pytest.raises(Invalid):
        prompts.add_prompts(make.campaign(), [{"messages": "A"}, {"messages": ""}], "test")
    assert not Prompt.objects.exists()


@pytest.mark.django_db
def test_it_wants_no_candidates_where_none_are_sampled():
    assert make.prompt(make.campaign(n_candidates=0)).candidates_state == "none"


@pytest.mark.django_db
def test_it_asks_again_but_not_for_prompts_being_written():
    campaign = make.campaign()
    failed, claimed = make.prompt(campaign), make.prompt(campaign)
    Prompt.objects.filter(pk=failed.pk).update(candidates_state="failed", candidates_attempts=3)
    Prompt.objects.filter(pk=claimed.pk).update(candidates_state="claimed")
    assert prompts.want_candidates(campaign.prompts.all()) == 1
    failed.refresh_from_db()
    assert (failed.candidates_state, failed.candidates_attempts, failed.candidates_round) == ("wanted", 0, 1)


@pytest.mark.django_db
def test_it_asks_for_nothing_that_the_campaign_does_not_sample():
    prompt = make.prompt(make.campaign(n_candidates=0))
    assert prompts.want_candidates(prompt.campaign.prompts.all()) == 0
    prompt.refresh_from_db()
    assert prompt.candidates_state == "none"
