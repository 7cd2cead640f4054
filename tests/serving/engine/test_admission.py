"""Turns between callers: a flood delays its own caller only, shares hold, and the books always balance."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine import admission as books
from serving.engine.admission import Admission, Crowded, Limits, Overloaded, Oversized
from serving.engine.engine import Engine, Options, build
from serving.engine.sampler import SamplingParams
from serving.engine.sequence import Sequence
from tests.serving.engine.conftest import drain, submit


@pytest.fixture(scope="module")
def engine(tiny_model_dir: Path) -> Engine:
    return build(Options(model=tiny_model_dir))


def asked(engine: Engine, caller: str, n_prompt: int = 10, n_answer: int = 10) -> Sequence:
    params = SamplingParams(max_tokens=n_answer)
    return Sequence(engine.versions.base, [1] * n_prompt, params, engine.tokenizer, lambda _: None, caller=caller)


def callers(admission: Admission, n: int) -> str:
    """Who gets the next n places, each given back at once."""
    found = ""
    for _ in range(n):
        sequence = admission.take()
        assert sequence
        sequence.tokens = [1] * sequence.params.max_tokens
        admission.settle(sequence)
        found += sequence.caller
    return found


def test_it_gives_turns_to_callers_and_not_to_requests(engine: Engine) -> None:
    admission = Admission(Limits())
    for _ in range(150):
        admission.add([asked(engine, "a")])
    assert callers(admission, 50) == "a" * 50
    for _ in range(5):
        admission.add([asked(engine, "b")])
    assert callers(admission, 10).count("b") == 5


def test_it_counts_tokens_and_not_requests(engine: Engine) -> None:
    admission = Admission(Limits())
    for _ in range(60):
        admission.add([asked(engine, "a", 10, 90)])
        admission.add([asked(engine, "b", 10, 10)])
    assert callers(admission, 48).count("b") == 40


def test_it_counts_what_was_answered_and_not_what_might_have_been(engine: Engine) -> None:
    admission = Admission(Limits())
    for _ in range(60):
        admission.add([asked(engine, "a", 10, 1000)])
        admission.add([asked(engine, "b", 10, 10)])
    order = ""
    for _ in range(40):
        sequence = admission.take()
        assert sequence
        sequence.tokens = [1] * 10
        admission.settle(sequence)
        order += sequence.caller
    assert order.count("a") == 20


def test_it_gives_nothing_for_time_away(engine: Engine) -> None:
    admission = Admission(Limits())
    for _ in range(100):
        admission.add([asked(engine, "a")])
    callers(admission, 50)
    for _ in range(50):
        admission.add([asked(engine, "b")])
    assert callers(admission, 20).count("a") == 10


def test_it_remembers_what_a_caller_had_who_pauses(engine: Engine) -> None:
    """One large request at a time beside a backlog of small ones: both get the same number of tokens."""
    admission = Admission(Limits())
    for _ in range(150):
        admission.add([asked(engine, "a", 5, 5)])
    n_given = {"a": 0, "b": 0}
    admission.add([asked(engine, "b", 500, 500)])
    for _ in range(150):
        sequence = admission.take()
        assert sequence
        sequence.tokens = [1] * sequence.params.max_tokens
        admission.settle(sequence)
        n_given[sequence.caller] += sequence.n_reserved
        if sequence.caller == "b":
            admission.add([asked(engine, "b", 500, 500)])
    assert n_given == {"a": 1480, "b": 2000}


def test_it_forgets_what_callers_had_when_nobody_is_left(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "MAX_DEBTS", 3)
    admission = Admission(Limits())
    admission.add([asked(engine, "stays", 100, 100)])
    stays = admission.take()
    assert stays
    for i in range(6):
        admission.add([asked(engine, f"caller {i}", 10, 60 - 10 * i)])
        callers(admission, 1)
    assert sorted(admission._debts) == ["caller 0", "caller 1", "caller 2"]
    admission.settle(stays)
    assert not admission._debts
    assert not admission._accounts


def test_it_keeps_room_for_others_from_a_caller_with_a_name(engine: Engine) -> None:
    admission = Admission(Limits(max_running=8, max_waiting=100))
    for _ in range(20):
        admission.add([asked(engine, "a")])
    taken = [admission.take() for _ in range(8)]
    assert [s.caller for s in taken if s] == ["a"] * 6
    admission.add([asked(engine, "b")])
    late = admission.take()
    assert late
    assert late.caller == "b"
    nameless = Admission(Limits(max_running=8))
    for _ in range(20):
        nameless.add([asked(engine, "")])
    assert all(nameless.take() for _ in range(8))


def test_it_lets_a_caller_have_one_request_however_large(engine: Engine) -> None:
    admission = Admission(Limits(max_tokens=1000))
    admission.add([asked(engine, "a", 500, 490)])
    admission.add([asked(engine, "b", 5, 6)])
    admission.add([asked(engine, "b", 5, 5)])
    large = admission.take()
    assert large
    assert large.caller == "a"
    assert admission.take() is None  # the next one waits for room, and is not overtaken by one that would fit
    admission.settle(large)
    assert callers(admission, 2) == "bb"


def test_it_bounds_the_queue_for_all_and_for_each(engine: Engine) -> None:
    admission = Admission(Limits(max_waiting=8))
    admission.add([asked(engine, "a") for _ in range(6)])
    with pytest.raises(Crowded, match="of yours"):
        admission.add([asked(engine, "a")])
    admission.add([asked(engine, "b")])
    with pytest.raises(Overloaded, match="7 requests"):
        admission.add([asked(engine, "c"), asked(engine, "c")])
    admission.add([asked(engine, "c")])
    assert len(admission) == 8


@pytest.mark.parametrize(("caller", "most"), [("a", 6), ("", 8)])
def test_it_refuses_for_good_what_could_never_wait(engine: Engine, caller: str, most: int) -> None:
    admission = Admission(Limits(max_waiting=8))
    with pytest.raises(Oversized, match=f"at most {most} choices"):
        admission.add([asked(engine, caller) for _ in range(most + 1)])
    admission.add([asked(engine, caller) for _ in range(most)])
    with pytest.raises(Overloaded):
        admission.add([asked(engine, caller)])


def test_it_does_not_starve_a_caller_beside_200_requests_of_another(tiny_model_dir: Path) -> None:
    engine = build(Options(model=tiny_model_dir, limits=Limits(max_running=4, max_waiting=300)))
    flood = [submit(engine, [i + 1, 2, 3], caller="a", max_tokens=4) for i in range(200)]
    for _ in range(3):
        engine.scheduler.step()
    small = [submit(engine, [7, i + 1], caller="b", max_tokens=4) for i in range(3)]
    drain(engine, *(listener for _, listener in small))
    assert sum(listener.has_ended for _, listener in flood) < 30
    engine.scheduler.cancel([sequence for sequence, _ in flood])
    engine.scheduler.step()
    assert engine.scheduler.counts() == (0, 0)
    assert not engine.scheduler._admission._accounts
    assert engine.versions.base.n_users == 0


def with_prompt_of(size: int) -> Callable[[Sequence], bool]:
    return lambda sequence: len(sequence.prompt) == size


MOVE = st.tuples(
    st.sampled_from("adtr"), st.sampled_from(["", "ann", "bob", "cy"]), st.integers(1, 60), st.integers(0, 10)
)


@given(moves=st.lists(MOVE, max_size=60))
@settings(max_examples=150, deadline=None)
def test_it_keeps_its_books_and_its_limits(engine: Engine, moves: list[tuple[str, str, int, int]]) -> None:
    limits = Limits(max_running=5, max_waiting=9, max_tokens=100)
    admission, running = Admission(limits), list[Sequence]()
    for move, caller, size, place in moves:
        if move == "a":
            try:
                admission.add([asked(engine, caller, size, 20) for _ in range(1 + place % 3)])
            except (Overloaded, Oversized):
                continue
        elif move == "t" and (sequence := admission.take()):
            running.append(sequence)
        elif move == "d" and running:
            admission.settle(running.pop(place % len(running)))
        elif move == "r":
            admission.remove(with_prompt_of(size))
        assert admission.n_held == sum(s.n_reserved for s in running) <= limits.max_tokens
        assert len(running) <= limits.max_running
        assert len(admission) == sum(len(a.waiting) for a in admission._accounts.values()) <= limits.max_waiting
        for name, account in admission._accounts.items():
            own = [s for s in running if s.caller == name]
            assert (account.n_running, account.n_held) == (len(own), sum(s.n_reserved for s in own))
    for sequence in running:
        admission.settle(sequence)
    while sequence := admission.take():  # whoever is left gets a turn: nothing blocks for ever
        admission.settle(sequence)
    assert len(admission) == 0
    assert not admission._accounts
    assert not admission._debts
