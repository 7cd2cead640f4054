"""The load client reads what servers stream, whatever the borders of the network's packets, and times it by its last byte."""

import asyncio
import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import serving_load
from benchmarks.serving_load import Answer
from benchmarks.site import free_port

USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
TEXTS = ["Schöne", " Grüße"]


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


EVENTS = [
    *(event({"choices": [{"text": text}], "usage": None}) for text in TEXTS),
    event({"choices": [], "usage": USAGE}),
]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"".join(map(chunk, [*EVENTS, b"data: [DONE]\n\n", b""]))
WHOLE = HEAD + BODY


def pieces_of(borders: list[int]) -> list[tuple[float, bytes]]:
    """WHOLE in packets cut there; each comes a second after the one before."""
    cuts = [0, *sorted(set(borders)), len(WHOLE)]
    return [(float(second), WHOLE[a:b]) for second, (a, b) in enumerate(pairwise(cuts), 1)]


@given(st.lists(st.integers(1, len(WHOLE) - 1)))
def test_it_reads_the_same_whatever_the_packets(borders: list[int]) -> None:
    answer = serving_load.read(0.0, pieces_of(borders))
    assert (answer.error, [text for _, text in answer.pieces]) == ("", TEXTS)
    assert (answer.n_prompt, answer.n_tokens) == (3, 2)


def test_it_times_a_piece_by_the_last_byte_of_its_chunk() -> None:
    first = WHOLE.index(EVENTS[0]) + len(EVENTS[0])
    second = WHOLE.index(EVENTS[1]) + len(EVENTS[1])
    answer = serving_load.read(0.0, pieces_of([first - 1, second - 1]))
    assert [at for at, _ in answer.pieces] == [2.0, 3.0]
    assert answer.gaps == [(2.0, 3.0)]


def test_it_reads_events_that_share_a_chunk_or_lie_across_two() -> None:
    joined = b"".join(EVENTS)
    for cut in range(1, len(joined)):
        raw = HEAD + chunk(joined[:cut]) + chunk(joined[cut:]) + chunk(b"")
        assert serving_load.read(0.0, [(1.0, raw)]).text == "".join(TEXTS)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "silence"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\nnot yet", "503"),
        (HEAD + chunk(event({"error": {"message": "no memory"}})) + chunk(b""), "no memory"),
        (HEAD + chunk(EVENTS[0]), "cut off"),
        (WHOLE[:-5], "cut off"),
    ],
    ids=["nothing", "refused", "error event", "no end", "no last chunk"],
)
def test_it_says_what_went_wrong(raw: bytes, said: str) -> None:
    assert said in serving_load.read(0.0, [(1.0, raw)] if raw else []).error


async def test_it_asks_a_server_and_leaves_when_the_answer_ends() -> None:
    asked: list[bytes] = []
    has_left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        n_body = int(head.lower().partition(b"content-length:")[2].split()[0])
        asked.append(head + await reader.readexactly(n_body))
        writer.write(WHOLE)
        await reader.read()  # until the client hangs up; this server never does
        has_left.set()
        writer.close()

    server = await asyncio.start_server(serve, serving_load.HOST, 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        (answer,) = await serving_load.complete_together(port, [{"prompt": "Hallo"}], "a-token")
        await asyncio.wait_for(has_left.wait(), 10)
    assert (answer.text, answer.error) == ("".join(TEXTS), "")
    assert 0 < answer.sent_at < answer.pieces[0][0]
    assert b"POST /v1/completions" in asked[0]
    assert b"Bearer a-token" in asked[0]
    assert json.loads(asked[0].partition(b"\r\n\r\n")[2]) == {"prompt": "Hallo"}


async def test_it_says_that_nobody_listens() -> None:
    assert "no connection" in (await serving_load.complete(free_port(), {})).error


def stream(sent_at: float, *times: float, n_prompt: int = 3, error: str = "") -> Answer:
    return Answer(sent_at, [(at, "x") for at in times], n_prompt, len(times), error)


def test_it_counts_tokens_from_the_first_request_to_the_last_token() -> None:
    found = serving_load.figures([stream(0.0, 1.0, 1.5, 3.0), stream(0.5, 2.5, 3.0, 4.0)], 3, 3)
    assert found["tok_s"] == pytest.approx(6 / 4)
    assert found["ttft_ms"] == pytest.approx(1500)
    assert found["itl_ms"] == pytest.approx(750)
    assert 1400 < found["itl_p99_ms"] <= 1500
    assert found["ms_per_token"] == pytest.approx(875)
    assert found["failed"] == 0


def test_it_counts_what_is_written_while_all_write() -> None:
    early, late = stream(0.0, 1.0, 2.0, 3.0, 4.0, 5.0), stream(0.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    assert serving_load.writing_rate([early, late]) == pytest.approx(4 / 2)  # at 4 and 5, both
    assert math.isnan(serving_load.writing_rate([stream(0.0, 1.0, 2.0), stream(0.0, 3.0, 4.0)]))
    batches = Answer(0.0, [(1.0, "x"), (2.0, "yz"), (3.0, "uv")], 3, 6)  # more than a token in a piece
    assert serving_load.writing_rate([batches]) == pytest.approx(4 / 2)


def test_it_counts_no_tokens_of_streams_that_are_not_as_agreed() -> None:
    good = stream(0.0, 1.0, 2.0)
    bad = [stream(0.0, 1.0), stream(0.0, 1.0, 9.0, n_prompt=4), stream(0.0, 1.0, 9.0, error="cut off"), stream(0.0)]
    found = serving_load.figures([good, *bad], 3, 2)
    assert (found["tok_s"], found["failed"]) == (1.0, 4)
    assert serving_load.figures(bad, 3, 2) == {"failed": 4}
    said = serving_load.faults([good, *bad], 3, 2)
    assert said == [
        "3 tokens in, 0 out, 0 pieces",
        "3 tokens in, 1 out, 1 pieces",
        "4 tokens in, 2 out, 2 pieces",
        "cut off",
    ]
