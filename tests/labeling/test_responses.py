import pytest

from labeling import responses
from tests.labeling import make

pytestmark = pytest.mark.django_db


def test_it_drops_empty_and_repeated_responses():
    prompt = make.prompt(make.campaign())
    first = responses.add_response(prompt, " Yes. \n", sampling={"seed": 1}, finish_reason="stop")
    assert first is not None
    assert (first.text, first.sampling, first.finish_reason) == ("Yes.", {"seed": 1}, "stop")
    assert responses.add_response(prompt, "Yes.", sampling={"seed": 2}) is None
    assert responses.add_response(prompt, " \n\x00") is None
    assert prompt.responses.count() == 1
    assert responses.add_response(make.prompt(prompt.campaign), "Yes.") is not None


def test_it_stores_drafts_in_order_and_finds_old_ones():
    prompt = make.prompt(make.campaign())
    old = responses.add_response(prompt, "old")
    drafts = [responses.draft(prompt, text, source="import") for text in ("new", "old", "new")]
    rows = responses.store([draft for draft in drafts if draft])
    assert [row.text for row in rows] == ["new", "old", "new"]
    assert rows[1] == old
    assert rows[0].pk == rows[2].pk


def test_it_gives_ids_that_do_not_tell_the_better_response():
    cats = make.campaign()
    texts = [(f"It is {number}.", f"Nobody knows {number}.") for number in range(40)]
    stored = [
        responses.store([draft for text in pair if (draft := responses.draft(prompt, text))])
        for prompt, pair in zip([make.prompt(cats) for _ in texts], texts, strict=True)
    ]
    assert 5 < sum(better.pk < worse.pk for better, worse in stored) < 35
