"""What goes out is what was said: preferences, ties, both-bad, edits, decisions, and every row with its provenance."""

import csv
import io
import json
import uuid
from typing import Any

import pyarrow.parquet as pq
import pytest

from labeling import choices, exports, exports_files, formats, intake, judgments
from labeling.formats.records import Vote, ranked
from labeling.formats.records import make as make_record
from labeling.models import Campaign, Comparison, Judgment, Purpose
from labeling.provenance import LEAVE_OUT, SOFT, Options
from tests.labeling import make

pytestmark = pytest.mark.django_db
PLAIN = Options()


def rows(campaign: Campaign, kind: str, options: Options = PLAIN) -> list[dict[str, Any]]:
    return [row for batch in exports.KINDS[kind].rows(campaign, options) for row in batch]


def judged(
    campaign: Campaign, *votes: Vote, texts: tuple[str, ...] = ("So.", "Thus."), prompt: str = "Why?"
) -> Comparison:
    intake.store(campaign, [make_record(prompt, [(text, "") for text in texts], votes)])
    return Comparison.objects.latest("pk")


def said(name: str, *order: int, strength: int | None = None) -> Vote:
    return ranked(order, annotator=name, strength=strength)


def text(turns: list[dict[str, str]]) -> str:
    return turns[-1]["content"]


def test_it_exports_a_pair_with_the_share_number_and_strength_of_its_votes():
    campaign = make.campaign()
    judged(campaign, said("a", 1, 2, strength=3), said("b", 1, 2, strength=1), said("c", 2, 1, strength=2))
    [row] = rows(campaign, "preference")
    assert (text(row["prompt"]), text(row["chosen"]), text(row["rejected"])) == ("Why?", "So.", "Thus.")
    assert row["label"] == pytest.approx(2 / 3)
    assert (row["weight"], row["margin"], row["source"]) == (3.0, pytest.approx(2 / 3), "votes")


def test_it_leaves_ties_out_or_gives_them_a_label_of_one_half():
    campaign = make.campaign()
    judged(campaign, said("a", 1, 1))
    assert rows(campaign, "preference", Options(ties=LEAVE_OUT)) == []
    [row] = rows(campaign, "preference", Options(ties=SOFT))
    assert (row["label"], row["weight"], row["margin"]) == (0.5, 1.0, 0.0)
    assert rows(campaign, "unpaired") == []


def test_it_makes_two_negatives_of_both_bad_and_no_pair():
    campaign = make.campaign()
    judged(campaign, Vote("both_bad", annotator="a"))
    assert rows(campaign, "preference", Options(ties=SOFT)) == []
    assert [(text(row["completion"]), row["label"]) for row in rows(campaign, "unpaired")] == [
        ("So.", False),
        ("Thus.", False),
    ]


def test_it_makes_thumbs_of_preferences_rankings_and_thumbs():
    campaign = make.campaign()
    judged(campaign, said("a", 1, 2), said("b", 1, 2), said("c", 2, 1))
    judged(campaign, said("a", 1, 2, 3), texts=("x", "y", "z"), prompt="Rank.")
    judged(campaign, Vote("good", annotator="a"), texts=("Fine.",), prompt="One?")
    found = {(text(row["completion"]), row["label"], row["weight"]) for row in rows(campaign, "unpaired")}
    assert found == {
        ("So.", True, 1.0), ("Thus.", False, 1.0), ("x", True, 1.0), ("z", False, 1.0), ("Fine.", True, 1.0),
    }  # fmt: skip


def test_it_derives_all_pairs_of_a_ranking():
    campaign = make.campaign()
    judged(campaign, said("a", 2, 1, 2), texts=("x", "y", "z"))
    pairs = [(text(row["chosen"]), text(row["rejected"])) for row in rows(campaign, "preference")]
    assert pairs == [("y", "x"), ("y", "z")]


def edited(campaign: Campaign) -> Judgment:
    comparison = make.comparison(campaign)
    lease = make.lease(comparison, make.person("ida", campaign))
    choice = choices.Choice("preference", lease.order, lease.order[0], 2, edit="A cat purrs.")
    return judgments.record(lease, lease.annotator, uuid.uuid4(), choice, make.NOW)


def test_it_puts_the_edited_response_before_the_chosen_and_the_rejected_one():
    campaign = make.campaign(allow_edit=True)
    order = edited(campaign).order
    [triple] = rows(campaign, "edits")
    names = dict(campaign.prompts.get().responses.values_list("pk", "text"))
    chosen, rejected = (names[pk] for pk in order)
    assert [text(triple[name]) for name in ("edited", "chosen", "rejected")] == ["A cat purrs.", chosen, rejected]
    pairs = [(text(row["chosen"]), text(row["rejected"]), row["source"]) for row in rows(campaign, "preference")]
    assert pairs == [
        (chosen, rejected, "votes"), ("A cat purrs.", chosen, "edit"), ("A cat purrs.", rejected, "edit"),
    ]  # fmt: skip
    assert ("A cat purrs.", True) in [(text(row["completion"]), row["label"]) for row in rows(campaign, "unpaired")]


def test_it_takes_a_reviewers_decision_for_what_was_disputed():
    campaign = make.campaign()
    comparison = judged(campaign, said("a", 1, 2), said("b", 1, 2), said("c", 2, 1))
    comparison.refresh_from_db()
    order = list(comparison.items.values_list("response_id", flat=True))
    choice = choices.Choice("preference", order, order[1], 3)
    judgments.add(comparison, make.person(), uuid.uuid4(), choice, make.NOW, purpose=Purpose.ADJUDICATION)
    [row] = rows(campaign, "preference")
    assert (text(row["chosen"]), row["label"], row["weight"], row["margin"]) == ("Thus.", 1.0, 1.0, 3.0)


def test_it_exports_nothing_that_measures_people_or_was_taken_back():
    campaign = make.campaign()
    gold = judged(campaign, said("a", 1, 2))
    Comparison.objects.filter(pk=gold.pk).update(gold_ranks={})
    lease = make.lease(make.comparison(campaign), make.person("ida", campaign))
    judgments.undo(make.judge(lease), make.NOW)
    for kind in ("preference", "implicit", "unpaired", "edits"):
        assert rows(campaign, kind) == []
    assert [row["is_in_force"] for row in rows(campaign, "judgments")] == [True, False, False]


def test_it_exports_only_the_campaign_asked_for():
    cats, dogs = make.campaign("cats"), make.campaign("dogs")
    judged(dogs, said("a", 1, 2))
    judged(cats, said("a", 1, 2))
    judged(dogs, said("a", 1, 2), prompt="Again?")
    for kind, n in (("preference", 1), ("implicit", 1), ("unpaired", 2), ("judgments", 1)):
        assert (len(rows(cats, kind)), len(rows(dogs, kind))) == (n, 2 * n)


def test_it_leaves_out_what_screening_warned_of():
    campaign = make.campaign()
    judged(campaign, said("a", 1, 2), texts=("I am ChatGPT, a model.", "Thus."))
    judged(campaign, said("a", 1, 2), prompt="Mail maria.kowalska@gmail.com?")
    judged(campaign, said("a", 1, 2), prompt="Fine?")
    options = Options(without_warned=True)
    assert [text(row["prompt"]) for row in rows(campaign, "preference", options)] == ["Fine?"]
    assert [text(row["prompt"]) for row in rows(campaign, "judgments", options)] == ["Fine?"]
    assert len(rows(campaign, "preference")) == 3


def test_it_tells_who_when_and_under_what_of_every_judgment():
    campaign = make.campaign(guidelines_version=4)
    lease = make.lease(make.comparison(campaign), make.person("ida", campaign))
    judgment = make.judge(lease)
    judgments.undo(judgment, make.NOW)
    first, undone = rows(campaign, "judgments")
    assert (first["judgment"], first["at"], first["response_ids"]) == (judgment.pk, make.NOW, lease.order)
    assert (first["verdict"], first["ranks"], first["strength"]) == ("preference", [1, 2], 2)
    assert (first["guidelines_version"], first["purpose"], first["is_in_force"]) == (4, "label", False)
    assert (undone["verdict"], undone["supersedes"]) == ("retracted", judgment.pk)
    assert first["responses"] == [lease.comparison.responses.get(pk=pk).text for pk in lease.order]
    assert first["annotator"] == undone["annotator"] != "ida"
    assert rows(campaign, "judgments", Options(with_names=True))[0]["annotator"] == "ida"


def test_it_gives_a_person_another_pseudonym_in_another_campaign():
    user = make.person("ida")
    names = set()
    for slug in ("cats", "dogs"):
        campaign = make.campaign(slug)
        make.judge(make.lease(make.comparison(campaign), user))
        names.add(rows(campaign, "judgments")[0]["annotator"])
    assert len(names) == 2


def test_it_exports_rationales_with_what_was_chosen():
    campaign = make.campaign()
    judged(campaign, ranked((1, 2), annotator="a", rationale="Because."), said("b", 1, 2))
    [row] = rows(campaign, "rationales")
    assert (row["rationale"], row["responses"], row["ranks"]) == ("Because.", ["So.", "Thus."], [1, 2])


def test_it_needs_four_queries_a_page(django_assert_num_queries, monkeypatch):
    campaign = make.campaign()
    for number in range(6):
        judged(campaign, said("a", 1, 2), prompt=f"Why {number}?")
    monkeypatch.setattr(exports, "PAGE", 3)
    with django_assert_num_queries(9):  # two pages, and the look for a third
        assert len(rows(campaign, "preference")) == 6


def written(campaign: Campaign, kind: str, format: str, options: Options = PLAIN) -> bytes:
    return b"".join(exports_files.write(exports.KINDS[kind], format, campaign, options)[0])


def whole(campaign: Campaign) -> None:
    """A campaign with something of everything."""
    judged(campaign, said("a", 1, 2, strength=3), said("b", 2, 1), said("c", 1, 2), prompt="=1+1")
    judged(campaign, said("a", 1, 1), prompt="Tie?")
    judged(campaign, Vote("both_bad", annotator="a", rationale="@no\u2028way"), prompt="Bad?")
    edited(campaign)


@pytest.mark.parametrize("kind", exports.KINDS)
def test_it_writes_the_same_in_every_format(kind):
    campaign = make.campaign(allow_edit=True)
    whole(campaign)
    lines = [json.loads(line) for line in written(campaign, kind, "jsonl").splitlines()]
    table = list(csv.DictReader(io.StringIO(written(campaign, kind, "csv").decode("utf-8-sig"), newline="")))
    columns = pq.read_table(io.BytesIO(written(campaign, kind, "parquet"))).to_pylist()
    assert len(lines) == len(table) == len(columns) > 0
    for line, cells, column in zip(lines, table, columns, strict=True):
        assert list(line) == list(cells) == list(column) == exports.KINDS[kind].schema.names
        assert json.loads(json.dumps(column, default=lambda at: at.isoformat())) == line
        if "prompt" in line:
            assert json.loads(cells["prompt"]) == line["prompt"]


@pytest.mark.parametrize("kind", exports.KINDS)
@pytest.mark.parametrize("format", exports_files.WRITERS)
def test_it_writes_a_file_without_rows(kind, format):
    content = written(make.campaign(), kind, format)
    assert format != "parquet" or pq.read_table(io.BytesIO(content)).num_rows == 0
    assert format != "jsonl" or content == b""


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "=cmd|' /C calc'!A0", "－1"])
def test_it_writes_no_cell_that_a_spreadsheet_would_run(start):
    _header, line = exports_files.csv_table(
        iter([[{"a": f"{start}x", "b": -1.5, "c": [f"{start}x"]}]]), ["a", "b", "c"]
    )
    row = next(csv.reader(io.StringIO(line.decode(), newline="")))
    assert row[0] == f"'{start}x"
    assert row[1] == "-1.5"
    assert row[2].startswith("[")


async def test_it_yields_a_chunk_at_a_time():
    made: list[int] = []

    def chunks():
        for number in range(3):
            made.append(number)
            yield bytes([number])

    async for chunk in exports_files.asynchronously(chunks()):
        assert made == list(range(chunk[0] + 1))


@pytest.mark.parametrize("kind", ["preference", "implicit", "unpaired"])
def test_it_reads_again_what_it_wrote(kind, tmp_path):
    """Into another campaign and out again: the same lines, but for the ids and for who said it how often."""
    here, there = make.campaign("here"), make.campaign("there")
    for number in range(3):
        judged(here, said("a", 1, 2), prompt=f"Why {number}?")
    (tmp_path / "x").write_bytes(written(here, kind, "parquet"))
    intake.store(
        there,
        [
            item
            for item in formats.read(tmp_path / "x", formats.detect(tmp_path / "x"))
            if isinstance(item, formats.Record)
        ],
    )
    keys = ("prompt", "chosen", "rejected", "completion", "label", "prompt_sha256")
    first, second = ([{key: row.get(key) for key in keys} for row in rows(where, kind)] for where in (here, there))
    assert sorted(first, key=repr) == sorted(second, key=repr)
    assert len(first) >= 3
