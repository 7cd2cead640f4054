"""Rows become bytes of a file, as they come: JSON lines, CSV and Parquet."""

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from asgiref.sync import sync_to_async

from labeling.exports import Kind
from labeling.models import Campaign
from labeling.provenance import Options

Rows = Iterator[list[dict[str, Any]]]
# A cell that begins so is run as a formula by spreadsheets (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def jsonl(batches: Rows, _schema: pa.Schema | None = None) -> Iterator[bytes]:
    """ASCII only: line separators inside a text would be taken for the end of the line by some readers."""
    for batch in batches:
        yield "".join(f"{json.dumps(row, default=_plain)}\n" for row in batch).encode()


def csv_table(batches: Rows, columns: Sequence[str]) -> Iterator[bytes]:
    """Lists and objects as JSON; a text that a spreadsheet would run as a formula begins with an apostrophe."""
    # The mark at the start is what makes Excel read UTF-8.
    yield ("\ufeff" + _csv_lines([list(columns)])).encode()
    for batch in batches:
        yield _csv_lines([[_cell(row[name]) for name in columns] for row in batch]).encode()


def _csv_lines(rows: list[list[object]]) -> str:
    target = io.StringIO()
    csv.writer(target).writerows(rows)
    return target.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, datetime):
        return value.isoformat()
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def parquet(batches: Rows, schema: pa.Schema) -> Iterator[bytes]:
    """A row group per batch."""
    sink = _Sink()
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        for batch in batches:
            if batch:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                yield sink.take()
    yield sink.take()


class _Sink(io.RawIOBase):
    """A file that is only written to, and whose bytes are taken away as they come."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.pieces.append(bytes(data))
        self.position += len(self.pieces[-1])
        return len(self.pieces[-1])

    def tell(self) -> int:
        return self.position

    def take(self) -> bytes:
        pieces, self.pieces = self.pieces, []
        return b"".join(pieces)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no place in JSON")


# Format → (how it is written, content type)
WRITERS: dict[str, tuple[Callable[[Rows, pa.Schema], Iterator[bytes]], str]] = {
    "jsonl": (jsonl, "application/jsonl"),
    "csv": (lambda batches, schema: csv_table(batches, schema.names), "text/csv; charset=utf-8"),
    "parquet": (parquet, "application/vnd.apache.parquet"),
}


def write(kind: Kind, format: str, campaign: Campaign, options: Options) -> tuple[Iterator[bytes], str]:
    """An export as bytes, made as they are taken, and their content type."""
    writer, content_type = WRITERS[format]
    return writer(kind.rows(campaign, options), kind.schema), content_type


async def asynchronously(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The same chunks; each is made in the request's own thread, so that the event loop answers others meanwhile.

    All in one thread, unlike what serving.database runs: they come from one cursor of that thread's connection, which on
    PostgreSQL is the download's until it ends.
    """
    take = sync_to_async(partial(next, chunks, None))
    while (chunk := await take()) is not None:
        if chunk:
            yield chunk
