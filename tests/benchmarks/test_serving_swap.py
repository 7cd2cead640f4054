"""What the swap's load concludes: streams that changed version, and how long a flip held the engine."""

import math

import pytest

from benchmarks.serving_load import Answer, Prompt
from benchmarks.serving_peers import Server
from benchmarks.serving_swap import Load, Publication, Told, count_torn, held, timing

P = Prompt("p", (7,))
ALONE = {("adapter-0", P): "one two three", ("adapter-1", P): "one four five"}


def told(text: str, adapter: str = "adapter-0", error: str = "") -> Told:
    return Told("v0", adapter, P, Answer(0.0, [(1.0, text)], error=error))


def test_it_counts_streams_that_did_not_stay_on_their_version() -> None:
    kept = [told("one two three"), told("one four five", "adapter-1")]
    torn = [told("one two five"), told("one four five"), told("one two"), told("")]
    failed = [told("one two", error="cut off")]  # counted as failed, and cannot be compared
    assert count_torn([*kept, *torn, *failed], ALONE) == len(torn)


def test_it_takes_the_wait_that_the_streams_share() -> None:
    gaps = [(0.0, 1.0), (0.9, 4.0), (1.0, 3.0), (3.0, 5.0)]
    assert held(gaps, 0.5) == 1.0
    assert held(gaps, 2.0) == pytest.approx(2.55)  # between 3.1 and 2
    assert held(gaps, 9.0) == 0.0


def load(*streams: list[float]) -> Load:
    server = Server(lambda port: [], lambda prompt, n: {})
    answers = [Answer(times[0] - 0.5, [(at, "x") for at in times]) for times in streams]
    return Load(server, [P], 1, "v0", "adapter-0", [Told("v0", "adapter-0", P, answer) for answer in answers])


def test_it_measures_a_stall_beyond_a_usual_step() -> None:
    steps = [float(i) for i in range(20)]
    calm, swapped = load(steps, steps), load([*steps[:10], *(at + 3 for at in steps[10:])])
    first = Answer(9.5, [(12.5, "x")])
    swapped.publications = [Publication("v1", 8.5, 9.2, 9.4, 9.5, first, unloaded_at=9.6)]
    found = timing(calm, swapped)
    assert found["swap_stall_ms"] == pytest.approx(3000)  # a gap of 4 s where 1 s is usual
    assert found["publish_to_token_ms"] == pytest.approx(3100)  # the warm-up is in it
    assert (found["load_ms"], found["self_test_ms"]) == (pytest.approx(700), pytest.approx(200))
    assert found["itl_p99_swap_ratio"] > 3.5
    assert found["ttft_steady_ms"] == pytest.approx(500)


def test_it_finds_no_stall_where_nothing_waited() -> None:
    steps = [float(i) for i in range(20)]
    swapped = load(steps)
    swapped.publications = [Publication("v1", 8.5, 9.2, 9.4, 9.5, Answer(9.5, [(10.0, "x")]), unloaded_at=9.6)]
    found = timing(load(steps), swapped)
    assert found["swap_stall_ms"] == 0
    assert found["itl_p99_swap_ratio"] == 1


def test_it_has_no_figures_of_publications_that_did_not_happen() -> None:
    found = timing(load([0.0, 1.0]), load([0.0, 1.0]))
    assert math.isnan(found["swap_stall_ms"])
