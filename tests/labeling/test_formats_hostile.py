"""Files that are broken, or made to break a reader: a reason for each, no crash, and memory that stays small."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling import formats
from labeling.formats import Record, Refusal, Unreadable
from labeling.formats import files as formats_files

GOOD = '{"prompt": "Why?", "responses": ["So.", "Thus."]}'
PAIR = {"prompt": "Why?", "responses": [{"text": "So."}, {"text": "Thus."}]}


def read(path: Path, content: bytes | str, name: str = "lines") -> list[Any]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return list(formats.read(path, name))


@pytest.mark.parametrize(("line", "why"), [
    ('{"prompt": ', "not valid JSON"),
    ("[" * 100_000, "nested too deeply"),
    ('{"a":' * 100_000, "nested too deeply"),
    ('{"prompt": "Why?", "responses": [NaN]}', "NaN is no JSON number"),
    ('{"prompt": "Why?", "domain": ' + "9" * 5000 + "}", "not valid JSON"),
    ('["Why?"]', "An object is wanted"),
    ("12", "An object is wanted"),
    ("null", "An object is wanted"),
    ('{"prompt": "Why?", "responses": ["\\ud83d", "b"]}', "lone surrogate"),
    ('{"prompt": "\\udfff", "responses": ["a", "b"]}', "lone surrogate"),
    ('{"prompt": ["Why?"]}', "Turn 1 must have"),
    ('{"prompt": {"content": "Why?"}}', "A prompt is a text"),
    ('{"prompt": 5}', "A prompt is a text"),
    ('{"prompt": null}', "A prompt is a text"),
    ('{"messages": [{"role": "tool", "content": "x"}]}', "has the role"),
    ('{"prompt": "Why?", "responses": {"text": "a"}}', "must be a list"),
    ('{"prompt": "Why?", "responses": ["a", "b", "c", "d", "e"]}', "2 to 4"),
    ('{"prompt": "Why?", "responses": ["a", null]}', "A response is an object"),
    ('{"prompt": "Why?", "responses": ["a", " a\\r\\n"]}', "same text"),
    ('{"prompt": "Why?", "responses": ["a", "\\u0000"]}', "A response is empty"),
    ('{"prompt": "Why?", "responses": ["a", "b"], "domain": []}', "domain must be a text"),
    ('{"prompt": "Why?", "responses": ["a", "b"], "judgments": {}}', "must be a list"),
    ('{"prompt": "Why?", "responses": ["a", "b"], "judgments": [7]}', "A judgment is an object"),
    ('{"prompt": "Why?", "responses": ["a", "b"], "judgments": [{"ranks": [1]}]}', "ranks 1 responses, but there are 2"),
    ('{"prompt": "Why?", "responses": ["a", "b"], "judgments": [{"ranks": ["1", "2"]}]}', "must be numbers"),
    ('{"prompt": "Why?", "responses": ["a", "b"], "judgments": [{"ranks": [true, 2]}]}', "must be numbers"),
    ('{"prompt": "Why?", "responses": ["a", "b"], "judgments": [{"ranks": [1, 1e999]}]}', "must be numbers"),
    ('{"prompt": "Why?", "responses": ["a", "b"], "judgments": [{"ranks": [1, 2], "strength": 9}]}', "strength must be"),
    ('{"prompt": "Why?", "responses": ["a", "b"], "judgments": [{"verdict": "great"}]}', "verdict is preference"),
    ('{"prompt": "Why?", "responses": ["a", "b"], "judgments": [{"verdict": "good"}]}', "exactly one"),
    ('{"prompt": "Why?", "responses": ["a"], "judgments": [{"verdict": "both_bad"}]}', "needs two"),
    ('{"prompt": "Why?", "responses": ["' + "x" * 200_000 + '", "b"]}', "200,000 characters"),
])  # fmt: skip
def test_it_refuses_a_line_with_a_reason_and_reads_the_next(line, why, tmp_path):
    before, refused, after = read(tmp_path / "x", f"{GOOD}\n{line}\n{GOOD}\n")
    assert [type(item) for item in (before, refused, after)] == [Record, Refusal, Record]
    assert [item.number for item in (before, refused, after)] == [1, 2, 3]
    assert why in refused.why
    assert len(refused.excerpt) <= formats_files.EXCERPT


def test_it_says_which_line_is_not_utf_8(tmp_path):
    refused, taken = read(tmp_path / "x", b'{"prompt": "caf\xe9"}\n' + GOOD.encode())
    assert refused.why == "Byte 16 of this line is not UTF-8."
    assert isinstance(taken, Record)


def test_it_takes_a_byte_order_mark_for_what_it_is(tmp_path):
    assert isinstance(read(tmp_path / "x", b"\xef\xbb\xbf" + GOOD.encode())[0], Record)
    csv = "\ufeffprompt,response_1,response_2\nWhy?,So.,Thus.\n"
    assert isinstance(read(tmp_path / "x", csv, "table")[0], Record)


def test_it_never_holds_a_line_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(formats_files, "MAX_BYTES", 1000)
    long = '{"prompt": "' + "x" * 5000 + '"}'
    refused, taken = read(tmp_path / "x", f"{long}\n{GOOD}")
    assert "larger than" in refused.why
    assert isinstance(taken, Record)
    [only] = read(tmp_path / "x", long.replace("\n", ""))
    assert "larger than" in only.why


@pytest.mark.parametrize(("content", "n_taken", "why"), [
    (f"[{GOOD}, {GOOD}", 2, "does not end"),
    (f"[{GOOD} {GOOD}]", 1, "A comma is missing"),
    (f"[{GOOD}, {{'a': 1}}]", 1, "not valid JSON"),
    (f"[{GOOD}, {'[' * 100_000}", 1, "nested too deeply"),
    (f"[{GOOD}, NaN]", 1, "NaN is no JSON number"),
    (f"[{GOOD},", 1, "not valid JSON"),
])  # fmt: skip
def test_it_reads_a_broken_list_up_to_where_it_breaks(content, n_taken, why, tmp_path):
    *taken, refused = read(tmp_path / "x", content)
    assert [isinstance(item, Record) for item in taken] == [True] * n_taken
    assert refused.number == n_taken + 1
    assert why in refused.why


def test_it_refuses_what_is_no_object_in_a_list_and_goes_on(tmp_path):
    one, two, three = read(tmp_path / "x", f'[12, "x", {GOOD}]')
    assert [type(item) for item in (one, two, three)] == [Refusal, Refusal, Record]


def test_it_reads_a_list_whose_characters_are_cut_by_the_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr(formats_files, "PIECE", 7)
    lines = [{**PAIR, "prompt": f"Ist das schön, 日本語 und 🙂{number}?"} for number in range(20)]
    found = read(tmp_path / "x", json.dumps(lines, ensure_ascii=False))
    assert [record.messages[0]["content"] for record in found] == [line["prompt"] for line in lines]


def test_it_refuses_the_element_of_a_list_that_is_not_utf_8(tmp_path):
    refused, taken = read(tmp_path / "x", b'[{"prompt": "caf\xe9"}, ' + GOOD.encode() + b"]")
    assert "not UTF-8" in refused.why
    assert isinstance(taken, Record)


HEADER = "prompt,response_1,response_2,choice\n"


@pytest.mark.parametrize(("row", "why"), [
    ("Why?,So.", "2 cells, but the header has 4"),
    ("Why?,So.,Thus.,1,more", "5 cells"),
    ("Why?,So.,Thus.,seven", "names no choice"),
    ("Why?,So.,,1", "this row has 1"),
    (",So.,Thus.,1", "A prompt is a text"),
    ('"Why?,So.,Thus.,1\n' + "x" * 200_000, "field larger"),
])  # fmt: skip
def test_it_refuses_a_row_with_a_reason(row, why, tmp_path):
    found = read(tmp_path / "x", HEADER + row, "table")
    refused = next(item for item in found if isinstance(item, Refusal))
    assert why in refused.why


def test_it_goes_on_after_a_quotation_mark_that_was_left_open(tmp_path):
    rows = ['"' + "x" * 140_000, "Why?,So.,Thus.,2"]
    found = read(tmp_path / "x", HEADER + "\n".join(rows), "table")
    assert isinstance(found[-1], Record)


def test_it_refuses_a_cell_that_is_not_utf_8(tmp_path):
    refused, taken = read(tmp_path / "x", HEADER.encode() + b"caf\xe9?,So.,Thus.,1\nWhy?,So.,Thus.,1\n", "table")
    assert "not UTF-8" in refused.why
    assert isinstance(taken, Record)


@pytest.mark.parametrize(("content", "why"), [
    (b"", "empty"),
    (b" \n\t", "empty"),
    (b"\x1f\x8b\x08\x00", "packed (gzip)"),
    (b"PK\x03\x04", "packed (ZIP)"),
    ("[1]".encode("utf-16"), "UTF-16"),
    (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text file"),
    (b"just words\nand more\n", "no CSV header"),
    (b"a,a\n1,2\n", "the same name"),
    (b"PAR1", "damaged"),
    (b"PAR1" + b"\xff" * 200 + b"PAR1", "damaged"),
    (b'{"unheard": 1}\n{"of": 2}\n', "No known format"),
    (b"[]", "No known format"),
])  # fmt: skip
def test_it_says_of_a_file_that_cannot_be_read_what_to_do(content, why, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(Unreadable, match=why.replace("(", r"\(").replace(")", r"\)")):
        formats.detect(tmp_path / "x")


@pytest.mark.parametrize("name", formats.FORMATS)
@pytest.mark.parametrize("value", [None, 0, True, "x", [], ["x"], {}, {"a": None}, [[{}]], "[", "{}", 1.5, [None]])
def test_it_survives_the_wrong_type_in_every_field(name, value, tmp_path):
    fields = ["prompt", "messages", "responses", "judgments", "domain", "chosen", "rejected", "label", "completion"]
    fields += ["data", "annotations", "snapshot", "meta", "fields", "conversation_a", "conversation_b", "winner"]
    fields += ["response_a", "response_b", "winner_model_a", "winner_model_b", "response_1", "response_2", "items"]
    fields += ["q.responses", "annotation_id", "annotator", "lead_time", "external_id", "metadata", "history", "choice"]
    nested: dict[str, Any] = {
        "data": {"rating": 1, "items": value, "prompt": value},
        "snapshot": {"chat": {"history": value}},
    }
    nested |= {"annotations": [{"result": value}, value], "fields": {"prompt": "p"}, "responses": {"q": value}}
    lines = [dict.fromkeys(fields, value), {**dict.fromkeys(fields, value), **nested}]
    lines += [{**dict.fromkeys(fields, "text"), field: value} for field in fields]
    found = read(tmp_path / "x", "\n".join(["{}", *map(json.dumps, lines)]), name)
    assert [item.number for item in found] == list(range(1, len(lines) + 2))


def test_it_refuses_a_chat_that_runs_in_a_circle(tmp_path):
    messages = {"m": {"role": "assistant", "content": "x", "parentId": "n"}}
    messages["n"] = {"role": "user", "content": "y", "parentId": "m"}
    chat = {"chat": {"chat": {"history": {"messages": messages}}}}
    feedback = {"data": {"rating": 1}, "meta": {"message_id": "m"}, "snapshot": chat}
    [refused] = read(tmp_path / "x", json.dumps(feedback), "open_webui")
    assert "circle" in refused.why


# --- Parquet ---------------------------------------------------------------------------------------------------------
def test_it_refuses_a_row_group_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(formats_files, "MAX_ROW_GROUP", 1_000_000)
    table = pa.table({"prompt": ["x" * 2_000_000], "chosen": ["a"], "rejected": ["b"]})
    pq.write_table(table, tmp_path / "x", compression="zstd")
    assert (tmp_path / "x").stat().st_size < 10_000
    with pytest.raises(Unreadable, match="smaller row groups"):
        list(formats.read(tmp_path / "x", "preference"))


def test_it_refuses_a_row_that_repeats_one_long_text_and_reads_the_others(tmp_path):
    """A dictionary holds the text once; written out, the row would take 20 GB."""
    turns = [{"role": "user", "content": "x" * 1_000_000}] * 20_000
    rows = [{"chosen": turns, "rejected": turns}, {"chosen": turns[:1], "rejected": turns[:1]}]
    kind = pa.list_(
        pa.struct(
            [("role", pa.dictionary(pa.int32(), pa.string())), ("content", pa.dictionary(pa.int32(), pa.string()))]
        )
    )
    table = pa.Table.from_pylist(rows, schema=pa.schema([("chosen", kind), ("rejected", kind)]))
    pq.write_table(table, tmp_path / "x")
    first, second = read(tmp_path / "x", (tmp_path / "x").read_bytes(), "preference")
    assert "larger than" in first.why
    assert "last turn" in second.why


def test_it_reads_a_large_file_in_little_memory(tmp_path):
    """200 MB of JSON in a process that may take 700 MB in all, of which the libraries take most."""
    line = json.dumps({**PAIR, "prompt": "x" * 90_000}) + ",\n"
    with (tmp_path / "x").open("w") as file:
        file.write("[")
        for _ in range(2200):
            file.write(line)
        file.write(GOOD + "]")
    program = (
        "import os, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'; django.setup()\n"
        "import resource, sys; from pathlib import Path; from labeling import formats\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = sum(1 for _ in formats.read(Path(sys.argv[1]), 'lines'))\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "x"], capture_output=True, text=True, check=True)
    n, grown = map(int, done.stdout.split())
    assert n == 2201
    assert grown * 1024 < 40_000_000
