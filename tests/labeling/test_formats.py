"""Every reader on a small file in the tool's documented structure (tests/labeling/formats, written by us)."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling import formats
from labeling.formats import Record, Refusal

SAMPLES = Path(__file__).parent / "formats"


def said(record: Record) -> list[tuple]:
    return [(vote.verdict, vote.ranks, vote.annotator) for vote in record.votes]


def texts(record: Record) -> list[str]:
    return [answer.text for answer in record.answers]


def read(name: str) -> list[Any]:
    path = SAMPLES / name
    return list(formats.read(path, formats.detect(path)))


@pytest.mark.parametrize(("name", "format", "n_records", "n_refused"), [
    ("lines.jsonl", "lines", 6, 0),
    ("table.csv", "table", 4, 0),
    ("trl_preference.jsonl", "preference", 4, 0),
    ("trl_implicit.jsonl", "preference", 2, 0),
    ("trl_unpaired.jsonl", "unpaired", 2, 0),
    ("hh.jsonl", "preference", 1, 1),
    ("label_studio.json", "label_studio", 3, 1),
    ("label_studio_min.json", "label_studio", 2, 0),
    ("argilla_2.json", "argilla", 2, 0),
    ("argilla_2_flat.jsonl", "argilla", 1, 0),
    ("argilla_1.jsonl", "argilla", 1, 0),
    ("argilla_1_rows.jsonl", "argilla", 2, 0),
    ("open_webui.json", "open_webui", 2, 1),
    ("arena.jsonl", "arena", 3, 1),
    ("arena_table.csv", "arena_table", 1, 1),
    ("comparia.jsonl", "arena", 2, 0),
])  # fmt: skip
def test_it_recognises_and_reads_every_format(name, format, n_records, n_refused):
    assert formats.detect(SAMPLES / name) == format
    found = read(name)
    assert [item.number for item in found] == list(range(1, n_records + n_refused + 1))
    assert sum(isinstance(item, Record) for item in found) == n_records


def test_it_has_a_sample_of_every_format():
    assert {formats.detect(path) for path in SAMPLES.iterdir()} == set(formats.FORMATS)


def test_it_reads_its_own_lines():
    prompt_only, pair, judged, ranking, both_bad, thumb = read("lines.jsonl")
    assert (prompt_only.answers, prompt_only.domain) == ((), "garden")
    assert [(answer.text, answer.generator) for answer in pair.answers] == [("Seven.", "small"), ("Nine.", "")]
    assert judged.messages[0] == {"role": "system", "content": "Answer briefly."}
    assert said(judged) == [("preference", (1, 2), "ida"), ("tie", (1, 1), "otto")]
    assert (judged.votes[0].strength, judged.votes[0].rationale) == (3, "Whales breathe air.")
    assert said(ranking) == [("preference", (1, 2, 2), "ida")]
    assert said(both_bad) == [("both_bad", (), "ida")]
    assert said(thumb) == [("bad", (), "")]


def test_it_reads_a_table_with_quotes_and_line_breaks():
    first, tie, unjudged, both_bad = read("table.csv")
    assert first.messages == [{"role": "user", "content": 'Say "hi", twice'}]
    assert texts(first) == ["Hi!\nHi!", "Hi."]
    assert (first.votes[0].strength, first.votes[0].rationale, first.domain) == (2, "It counts, too.", "talk")
    assert [said(record) for record in (tie, unjudged, both_bad)] == [
        [("tie", (1, 1), "otto")],
        [],
        [("both_bad", (), "ida")],
    ]


def test_it_finds_the_prompt_that_trl_leaves_implicit():
    plain, conversation = read("trl_implicit.jsonl")
    assert (plain.messages[0]["content"], texts(plain)) == ("The sky is", ["blue.", "black."])
    assert texts(conversation) == ["In the east.", "In the sea."]
    assert said(conversation) == [("preference", (1, 2), "")]


def test_it_takes_a_soft_label_of_one_half_for_a_tie():
    assert [said(record)[0][0] for record in read("trl_preference.jsonl")] == ["preference"] * 3 + ["tie"]


def test_it_reads_conversations_of_hh_rlhf_and_refuses_those_that_part_early():
    first, refused = read("hh.jsonl")
    assert [turn["role"] for turn in first.messages] == ["user", "assistant", "user"]
    assert texts(first) == ["Mix a little into the soil.", "No idea."]
    assert "differ before their last turn" in refused.why


def test_it_reads_pairwise_and_ranker_results_of_label_studio():
    pair, ranking, buckets, unjudged = read("label_studio.json")
    assert said(pair) == [("preference", (1, 2), "ida@company.test"), ("preference", (2, 1), "4")]  # one was cancelled
    assert pair.votes[0].rationale == "Mars is small."
    assert (texts(ranking)[0], said(ranking)) == ("A linen bag.", [("preference", (2, 1, 3), "3")])
    assert "buckets" in buckets.why
    assert (len(unjudged.answers), unjudged.votes) == (2, ())
    right, tie = read("label_studio_min.json")
    assert said(right) == [("preference", (2, 1), "3")]
    assert (said(tie), tie.votes[0].rationale) == ([("tie", (1, 1), "3")], "A matter of taste.")


def test_it_reads_rankings_choices_and_ratings_of_argilla():
    ranking, rating = read("argilla_2.json")
    assert said(ranking) == [("preference", (2, 1), "u-1"), ("preference", (1, 2), "u-2")]
    assert [vote.rationale for vote in ranking.votes] == ["A stone cannot fly.", ""]
    assert said(rating) == [("tie", (1, 1), "u-1")]
    assert said(read("argilla_2_flat.jsonl")[0]) == [("preference", (2, 1), "u-1")]  # the other is a draft
    assert said(read("argilla_1.jsonl")[0]) == [("preference", (1, 2), "u-1")]  # the other was discarded
    assert [said(record) for record in read("argilla_1_rows.jsonl")] == [
        [("preference", (2, 1), "u-1")],
        [("preference", (1, 2), "u-1"), ("tie", (1, 1), "u-2")],
    ]


def test_it_takes_a_thumb_of_open_webui_for_one_response_and_not_for_a_win_over_its_siblings():
    up, down, without_chat = read("open_webui.json")
    assert [turn["content"] for turn in up.messages] == ["Which herb goes with fish?", "Dill.", "And with lamb?"]
    assert [(answer.text, answer.generator) for answer in up.answers] == [("Rosemary.", "small:1b")]
    assert said(up) == [("good", (), "person-1")]
    assert said(down) == [("bad", (), "person-2")]
    assert "no snapshot" in without_chat.why


def test_it_reads_battles():
    won, both_bad, two_turns, parts = read("arena.jsonl")
    assert [answer.generator for answer in won.answers] == ["alpha-7b", "beta-13b"]
    assert said(won) == [("preference", (2, 1), "arena_user_1")]
    assert said(both_bad) == [("both_bad", (), "arena_user_2")]
    assert "whole conversations" in two_turns.why
    assert (texts(parts), said(parts)) == (["Yes.", "Quite."], [("tie", (1, 1), "s-9")])
    assert [said(record) for record in read("comparia.jsonl")] == [
        [("preference", (2, 1), "v-1")],
        [("tie", (1, 1), "v-2")],
    ]
    one, two = read("arena_table.csv")
    assert (one.messages[0]["content"], said(one)) == ("What is salt?", [("preference", (1, 2), "")])
    assert "2 turns" in two.why


@pytest.mark.parametrize("name", ["lines.jsonl", "trl_preference.jsonl", "argilla_1_rows.jsonl", "arena.jsonl"])
def test_it_reads_the_same_from_parquet_and_from_a_json_list(name, tmp_path):
    """Lines of one kind each, as a Parquet file's columns have one type."""
    lines = [json.loads(line) for line in (SAMPLES / name).read_text().splitlines()][:1]
    expected = read(name)[:1]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "x.parquet")
    (tmp_path / "x.json").write_text(json.dumps(lines, indent=2), encoding="utf-8-sig")
    (tmp_path / "x.jsonl").write_text(json.dumps(lines[0], indent=2))  # objects may go over lines
    for path in tmp_path.iterdir():
        assert list(formats.read(path, formats.detect(path))) == expected, path


def test_it_goes_on_after_a_record():
    path = SAMPLES / "lines.jsonl"
    assert [item.number for item in formats.read(path, "lines", after=4)] == [5, 6]


def test_it_takes_the_format_that_a_person_chose():
    [first, *_] = formats.read(SAMPLES / "lines.jsonl", "preference")
    assert isinstance(first, Refusal)
    assert first.why == "The field 'chosen' is missing."
