"""How a file is cut into values: JSON lines, a JSON list, CSV, Parquet. What the values mean is said elsewhere.

Files are hostile: a value is never larger in memory than MAX_BYTES allows, whatever the file claims, and whatever is
wrong with one value is a Refusal for that value. `Unreadable` is for a file of which nothing can be read.
"""

import codecs
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from labeling.formats.records import Refusal

MAX_BYTES = 16 * 1024 * 1024  # of one record; a chat export holds whole conversations
MAX_ROW_GROUP = 512 * 1024 * 1024  # unpacked; writers make them of 64 to 300 MB
MAX_COLUMNS = 1000
EXCERPT = 120
PIECE = 64 * 1024
ROWS = 64  # of a Parquet file, in memory at once
Value = tuple[int, object]
Values = Iterator[Value | Refusal]
_PACKED = {b"\x1f\x8b": "gzip", b"PK": "ZIP", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "Zstandard"}


class Unreadable(ValueError):
    """Nothing can be read of this file; the message says why and what to do."""


def kind(path: Path) -> str:
    """jsonl, json, csv or parquet, by what the file begins with; its name says nothing. Raises Unreadable."""
    with path.open("rb") as file:
        head = file.read(PIECE)
    for magic, packing in _PACKED.items():
        if head.startswith(magic):
            raise Unreadable(f"This file is packed ({packing}). Unpack it and upload what is inside.")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("This file is in UTF-16. Save it as UTF-8 and upload it again.")
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        raise Unreadable("This file is empty.")
    if text.startswith(b"["):
        return "json"
    if text.startswith(b"{"):
        return "json" if _is_spread_out(text) else "jsonl"
    if b"\x00" in head:
        raise Unreadable("This is not a text file. JSON, JSON lines, CSV and Parquet are taken.")
    return "csv"


def _is_spread_out(text: bytes) -> bool:
    """Whether an object goes on in the next line, as in indented JSON."""
    first, newline, rest = text.partition(b"\n")
    return bool(newline and rest.strip()) and first.strip().endswith((b"{", b"[", b",", b"{}"))


def values(path: Path) -> Values:
    """Each value of the file with its number from 1, in order: dictionaries, unless the file is odd."""
    reader: Callable[[Path], Values] = {"jsonl": _lines, "json": _elements, "csv": _rows, "parquet": _parquet}[
        kind(path)
    ]
    return reader(path)


# --- JSON ------------------------------------------------------------------------------------------------------------
def parse(text: str) -> Any:
    """JSON without NaN and Infinity, which no other reader would take. Raises ValueError, with a sentence."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("It is nested too deeply.") from None


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number. Write null.")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _lines(path: Path) -> Values:
    with path.open("rb") as file:
        for number, raw in enumerate(_bounded_lines(file), 1):
            if raw is None:
                yield Refusal(number, _too_large())
            elif text := raw.strip():
                yield _line(number, text)


def _line(number: int, raw: bytes) -> Value | Refusal:
    try:
        return number, parse(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return Refusal(number, f"Byte {error.start + 1} of this line is not UTF-8.", excerpt(raw))
    except ValueError as error:
        return Refusal(number, f"This line is not valid JSON: {error}", excerpt(raw))


def _bounded_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """The lines; None for one that is longer than MAX_BYTES, which is never held in memory."""
    while raw := file.readline(MAX_BYTES + 1):
        if len(raw) <= MAX_BYTES:
            yield raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(PIECE)
        yield None


def _elements(path: Path) -> Values:
    """The elements of a list, or objects one after the other. One that is broken ends the file: where the next begins
    cannot be told.
    """
    with path.open("rb") as file:
        text = _Text(file)
        is_list = text.peek() == "["
        if is_list:
            text.take()
        number = 0
        while text.peek() not in ("", "]") and not text.is_lost:
            number += 1
            if is_list and number > 1 and not text.take_comma():
                yield Refusal(
                    number, "A comma is missing before this record, so the rest cannot be read.", text.excerpt()
                )
                return
            yield text.value(number)
        if is_list and not text.is_lost and text.peek() != "]":
            yield Refusal(number + 1, "The list does not end: the file seems to be cut off.")


class _Text:
    """The decoded text of a file, as much of it as the value under way needs. `is_lost`: the rest cannot be read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.buffer = ""
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.is_over = False
        self.is_lost = False

    def _fill(self, size: int) -> None:
        raw = self.file.read(size)
        self.is_over = not raw
        # What is not UTF-8 becomes lone surrogates, which records refuse: the records after it are still read.
        self.buffer += self.decoder.decode(raw, self.is_over)

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while not (stripped := self.buffer.lstrip()) and not self.is_over:
            self.buffer = ""
            self._fill(PIECE)
        self.buffer = stripped
        return stripped[:1]

    def take(self) -> None:
        self.buffer = self.buffer[1:]

    def take_comma(self) -> bool:
        if self.peek() != ",":
            return False
        self.take()
        self.peek()
        return True

    def excerpt(self) -> str:
        return excerpt(self.buffer)

    def value(self, number: int) -> Value | Refusal:
        """The value that begins here. The buffer is doubled until it holds the value, so that reading stays linear."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer)
            except RecursionError:
                return self._lose(number, "This record is nested too deeply.")
            except ValueError as error:
                is_cut_off = isinstance(error, json.JSONDecodeError) and not self.is_over
                if not is_cut_off or len(self.buffer) > MAX_BYTES:
                    why = (
                        _too_large()
                        if len(self.buffer) > MAX_BYTES
                        else f"From here on this is not valid JSON: {error}"
                    )
                    return self._lose(number, why)
            else:
                if end < len(self.buffer) or self.is_over:
                    self.buffer = self.buffer[end:]
                    return (number, value) if end <= MAX_BYTES else Refusal(number, _too_large())
            self._fill(max(PIECE, len(self.buffer)))

    def _lose(self, number: int, why: str) -> Refusal:
        self.is_lost = True
        return Refusal(number, why, self.excerpt())


# --- CSV -------------------------------------------------------------------------------------------------------------
def _rows(path: Path) -> Values:
    """One dictionary per row below the header; empty cells are left out."""
    with path.open("rb") as file:
        lines = _text_lines(file)
        header_line = next(lines)
        reader = csv.reader(_chain(header_line, lines), delimiter=_delimiter(header_line))
        header = _header(reader)
        number = 0
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Refusal(number, f"This row cannot be read: {error}. Is a quotation mark left open?")
                continue
            if not cells:
                number -= 1
            elif len(cells) != len(header):
                why = f"This row has {len(cells)} cells, but the header has {len(header)}."
                yield Refusal(number, why, excerpt(" ".join(cells)))
            else:
                yield number, {key: cell for key, cell in zip(header, cells, strict=True) if cell.strip()}


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _text_lines(file: BinaryIO) -> Iterator[str]:
    """Lines in which bytes that are not UTF-8 stand as lone surrogates: records refuse them, cell by cell."""
    is_first = True
    for raw in _bounded_lines(file):
        if raw is None:
            raise Unreadable(f"A line is longer than {MAX_BYTES // 2**20} MB. Is this really a CSV file?")
        yield raw.decode("utf-8-sig" if is_first else "utf-8", "surrogateescape")
        is_first = False


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _header(reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [cell.strip().lower() for cell in next(reader)]
    except csv.Error as error:
        raise Unreadable(f"The first line cannot be read as a CSV header: {error}") from error
    if len(header) < 2 or len(header) > MAX_COLUMNS:
        raise Unreadable(
            "This is neither JSON nor Parquet, and its first line is no CSV header of several columns. "
            "JSON, JSON lines, CSV with a header, and Parquet are taken."
        )
    if len(set(header)) < len(header):
        raise Unreadable("Two columns have the same name in the header. Give each its own.")
    return header


# --- Parquet ---------------------------------------------------------------------------------------------------------
def _parquet(path: Path) -> Values:
    try:
        file = _open_parquet(path)
        number = 0
        for batch in file.iter_batches(batch_size=ROWS, use_threads=False):
            yield from _batch(batch, number)
            number += len(batch)
    except (pa.ArrowException, OSError, RecursionError) as error:
        raise Unreadable(
            f"This Parquet file is damaged, or of a kind that cannot be read: {str(error)[:200]}"
        ) from error


def _open_parquet(path: Path) -> pq.ParquetFile:
    """The file, with texts as dictionaries: one long text that a million rows share is held once."""
    described = pq.read_metadata(path)
    for group in range(described.num_row_groups):
        if described.row_group(group).total_byte_size > MAX_ROW_GROUP:
            raise Unreadable(
                f"Row group {group + 1} unpacks to more than {MAX_ROW_GROUP // 2**20} MB. "
                "Write the file with smaller row groups (row_group_size=10000)."
            )
    columns = [described.schema.column(index) for index in range(len(described.schema))]
    if len(columns) > MAX_COLUMNS:
        raise Unreadable(f"The file has {len(columns)} columns; at most {MAX_COLUMNS} are read.")
    shared = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(path, read_dictionary=shared, pre_buffer=False, buffer_size=2**20)


def _batch(batch: pa.RecordBatch, before: int) -> Values:
    is_small = _weight(batch.to_struct_array()) <= MAX_BYTES
    for index in range(len(batch)):
        row = batch.slice(index, 1)
        if not is_small and _weight(row.to_struct_array()) > MAX_BYTES:
            yield Refusal(before + index + 1, _too_large())
        else:
            yield before + index + 1, _without_none(row.to_pylist()[0])


def _weight(array: pa.Array) -> int:
    """Bytes that the values take once they are written out, shared texts each time that they occur."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.take(_lengths(array.dictionary), array.indices)
        return (pc.sum(lengths).as_py() or 0) + 64 * len(array)
    if pa.types.is_struct(array.type):
        return 64 * len(array) + sum(_weight(field) for field in array.flatten())
    if pa.types.is_map(array.type):
        return 64 * len(array) + _weight(array.keys) + _weight(array.items)
    if any(is_a(array.type) for is_a in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        return 64 * len(array) + _weight(array.flatten())
    return array.nbytes + 64 * len(array)


def _lengths(texts: pa.Array) -> pa.Array:
    if pa.types.is_null(texts.type) or not len(texts):
        return pa.array([0] * len(texts), pa.int64())
    return pc.cast(pc.binary_length(texts), pa.int64())


def _without_none(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def excerpt(value: bytes | str) -> str:
    """The start of what was refused, in one line."""
    text = value[: 4 * EXCERPT].decode("utf-8", "replace") if isinstance(value, bytes) else value[: 4 * EXCERPT]
    return " ".join(text.encode("utf-8", "replace").decode().replace("\x00", "").split())[:EXCERPT]


def _too_large() -> str:
    return f"This record is larger than {MAX_BYTES // 2**20} MB."
