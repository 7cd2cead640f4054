import pytest

from labeling import exchange
from labeling.models import Comparison, Prompt, Response
from tests.labeling import make

pytestmark = pytest.mark.django_db
GOOD = {"prompt": "Why?", "domain": "philosophy", "responses": [{"text": "So.", "generator": "a"}, {"text": "Thus."}]}


def test_it_imports_pairs_with_their_authors():
    campaign = make.campaign()
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go"},
    ]
    report = exchange.import_pairs(campaign, [GOOD, {"messages": turns, "responses": [{"text": t} for t in "abc"]}])
    assert report.as_json() == {"lines": 2, "added": 4, "duplicates": 0, "refused": []}
    assert set(Comparison.objects.values_list("source", "is_open")) == {("import", True)}
    prompt = Prompt.objects.get(domain="philosophy")
    assert prompt.candidates_state == "none"
    assert list(prompt.responses.order_by("text").values_list("text", "generator", "source", "adapter")) == [
        ("So.", "a", "import", None),
        ("Thus.", "", "import", None),
    ]


def test_it_finds_duplicates_by_content():
    campaign = make.campaign()
    exchange.import_pairs(campaign, [GOOD])
    same = {**GOOD, "prompt": " Why? ", "responses": [{"text": "Thus.\r\n", "generator": "b"}, {"text": "So."}]}
    report = exchange.import_pairs(campaign, [same, same])
    assert (report.added, report.duplicates) == (0, 2)
    assert Response.objects.count() == 2


@pytest.mark.parametrize(("line", "why"), [
    ("text", "A line is an object"),
    ({**GOOD, "chosen": 0}, "A line is an object"),
    ({"responses": GOOD["responses"]}, "either prompt or messages"),
    ({**GOOD, "messages": []}, "either prompt or messages"),
    ({**GOOD, "prompt": ""}, "Turn 1 is empty"),
    ({**GOOD, "domain": 3}, "domain must be a text"),
    ({**GOOD, "responses": [{"text": "a"}]}, "2 to 4"),
    ({**GOOD, "responses": "ab"}, "2 to 4"),
    ({**GOOD, "responses": [{"text": "a"}, {"text": " a"}]}, "same text"),
    ({**GOOD, "responses": [{"text": "a"}, {"text": " "}]}, "A response is empty"),
    ({**GOOD, "responses": [{"text": "a"}, {"text": 5}]}, "A text is wanted"),
    ({**GOOD, "responses": [{"text": "a"}, {"text": "b", "score": 5}]}, "A response is an object"),
    ({**GOOD, "responses": [{"text": "a"}, {"text": "b", "generator": 5}]}, "generator must be a text"),
])  # fmt: skip
def test_it_reports_what_it_refuses_and_takes_the_rest(line, why):
    report = exchange.import_pairs(make.campaign(), [line, GOOD])
    assert (report.lines, report.added) == (2, 1)
    [refused] = report.refused
    assert refused["line"] == 1
    assert why in refused["why"]


def test_it_imports_more_than_a_batch():
    lines = [{**GOOD, "prompt": f"Why {number}?"} for number in range(exchange.BATCH + 5)]
    assert exchange.import_pairs(make.campaign(), lines).added == exchange.BATCH + 5
