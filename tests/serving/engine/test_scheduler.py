"""Batching, sharing, fairness and failure, on the tiny model, one step at a time."""

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.engine.admission import Overloaded
from serving.engine.cache import BLOCK, SequenceCache
from serving.engine.engine import Engine, Options, build
from serving.engine.sampler import SamplingParams
from serving.engine.scheduler import Limits, Stopped
from serving.engine.sequence import SCORED_TOKEN_COST, Sequence, State
from tests.serving.engine.conftest import Listener, drain, make_adapter, submit

PROMPT = list(range(100, 100 + 2 * BLOCK + 5))


@pytest.fixture(params=["torch", "native"])
def step(request: pytest.FixtureRequest) -> str:
    """Everything here holds for either. (A parameter of `tiny_model_dir` itself would have both made anew each time.)"""
    return request.param


@pytest.fixture
def tiny_model_dir(step: str, tiny_model_dir: Path, native_model_dir: Path) -> Path:
    return native_model_dir if step == "native" else tiny_model_dir


def texts(*listeners: Listener) -> list[str]:
    return [listener.text for listener in listeners]


def test_it_gives_each_sequence_the_same_tokens_alone_and_together(
    tiny: Engine, tiny_model_dir: Path, adapters_dir: Path
) -> None:
    make_adapter(adapters_dir / "one", tiny_model_dir)
    tiny.versions.load("x", "one", 0)
    jobs = [(PROMPT[:n], name, seed) for n in (1, 64, 65, 130) for name in ("base", "x") for seed in (None, 4)]
    alone, together = [], []
    for prompt, name, seed in jobs:
        sequence, listener = submit(tiny, prompt, name, max_tokens=12, temperature=seed is not None, seed=seed)
        drain(tiny, listener)
        alone.append(sequence.tokens)
    tiny.prefixes.drop(tiny.versions.base.uid)
    started = []
    for prompt, name, seed in jobs:  # arriving while the others run
        together.append(submit(tiny, prompt, name, max_tokens=12, temperature=seed is not None, seed=seed))
        tiny.scheduler.step()
        started.append(tiny.scheduler.counts()[0])
    drain(tiny, *(listener for _, listener in together))
    assert max(started) > 8
    assert [sequence.tokens for sequence, _ in together] == alone
    assert alone[0] != alone[2]


def test_it_computes_a_shared_prompt_once(tiny: Engine) -> None:
    both = [submit(tiny, PROMPT, temperature=1.0, seed=1, draw=draw, max_tokens=5) for draw in range(4)]
    drain(tiny, *(listener for _, listener in both))
    assert tiny.metrics.prompt_tokens_computed == len(PROMPT)
    assert sorted(s.n_cached for s, _ in both) == [0, len(PROMPT), len(PROMPT), len(PROMPT)]
    assert len({tuple(s.tokens) for s, _ in both}) > 1
    again, listener = submit(tiny, [*PROMPT[: 2 * BLOCK], 7])
    drain(tiny, listener)
    assert again.n_cached == 2 * BLOCK
    assert tiny.metrics.prompt_tokens_computed == len(PROMPT) + 1


def test_it_computes_a_short_prompt_once_when_it_arrives_twice_at_once(tiny: Engine) -> None:
    both = [submit(tiny, PROMPT[:9]) for _ in range(2)]
    drain(tiny, *(listener for _, listener in both))
    assert tiny.metrics.prompt_tokens_computed == 9
    assert both[0][0].tokens == both[1][0].tokens


def test_it_never_shares_between_versions(tiny: Engine, tiny_model_dir: Path, adapters_dir: Path) -> None:
    make_adapter(adapters_dir / "one", tiny_model_dir)
    tiny.versions.load("x", "one", 0)
    for name in ("base", "x"):
        sequence, listener = submit(tiny, PROMPT, name)
        drain(tiny, listener)
        assert sequence.n_cached == 0
    tiny.versions.unload("x")
    tiny.versions.load("x", "one", 0)
    sequence, listener = submit(tiny, PROMPT, "x")
    drain(tiny, listener)
    assert sequence.n_cached == 0


def test_it_keeps_decoding_while_a_long_prompt_is_read(tiny: Engine) -> None:
    short, short_listener = submit(tiny, [1, 2, 3], max_tokens=50, ignore_eos=True)
    tiny.scheduler.step()
    long, long_listener = submit(tiny, [i % 1000 for i in range(20 * BLOCK)], max_tokens=2)
    for _ in range(10):
        before = len(short.tokens)
        tiny.scheduler.step()
        assert len(short.tokens) == before + 1
    assert 0 < long.n_computed <= 11 * BLOCK
    late, late_listener = submit(tiny, [5, 6], max_tokens=2)
    tiny.scheduler.step()
    tiny.scheduler.step()
    assert late.tokens
    assert not long.tokens
    drain(tiny, short_listener, long_listener, late_listener)
    assert long.tokens


def test_it_never_starves_a_long_prompt(tiny: Engine) -> None:
    long, listener = submit(tiny, [i % 1000 for i in range(6 * BLOCK)], max_tokens=1)
    n_steps = 0
    while not listener.has_ended:
        submit(tiny, [n_steps % 500 + i for i in range(BLOCK)], max_tokens=1)
        tiny.scheduler.step()
        n_steps += 1
        assert n_steps < 40
    assert long.tokens


def test_it_refuses_more_than_its_queue_holds(tiny_model_dir: Path) -> None:
    engine = build(Options(model=tiny_model_dir, limits=Limits(max_running=2, max_waiting=3)))
    listeners = [submit(engine, [1, 2])[1] for _ in range(3)]
    with pytest.raises(Overloaded):
        submit(engine, [1, 2])
    engine.scheduler.step()
    assert engine.scheduler.counts() == (2, 1)
    drain(engine, *listeners)


def test_it_admits_within_its_memory(tiny_model_dir: Path) -> None:
    engine = build(Options(model=tiny_model_dir, limits=Limits(max_tokens=100)))
    assert engine.model.context == 100
    (_, one), (_, two) = submit(engine, [1] * 50, max_tokens=40), submit(engine, [2] * 5, max_tokens=20)
    engine.scheduler.step()
    assert engine.scheduler.counts() == (1, 1)
    drain(engine, one, two)


def test_it_drops_cancelled_sequences_and_their_pins(tiny: Engine) -> None:
    running, _ = submit(tiny, [1, 2, 3], max_tokens=500, ignore_eos=True)
    tiny.scheduler.step()
    waiting, _ = submit(tiny, [1, 2])
    tiny.scheduler.cancel([running, waiting])
    tiny.scheduler.step()
    tiny.scheduler.cancel([running, waiting])
    tiny.scheduler.step()
    assert tiny.scheduler.counts() == (0, 0)
    assert (running.state, waiting.state) == (State.ENDED, State.ENDED)
    assert tiny.versions.base.n_users == 0
    assert running.cache is None
    assert tiny.metrics.endings["cancelled"] == 2


def test_it_ends_at_eos_at_stop_tokens_and_at_the_limit(tiny: Engine) -> None:
    sequence, listener = submit(tiny, [1, 2, 3], max_tokens=5)
    drain(tiny, listener)
    first = sequence.tokens[0]
    assert listener.done
    assert (listener.done.reason, listener.done.n_tokens) == ("length", 5)
    _, listener = submit(tiny, [1, 2, 3], stop_token_ids=frozenset({first}))
    drain(tiny, listener)
    assert listener.done
    assert (listener.done.reason, listener.done.stop_reason, listener.text) == ("stop", first, "")
    _, listener = submit(tiny, [1, 2, 3], logit_bias={2: 100.0})
    drain(tiny, listener)
    assert listener.done
    assert (listener.done.reason, listener.done.stop_reason, listener.text) == ("stop", None, "")
    _, listener = submit(tiny, [1, 2, 3], logit_bias={2: 100.0}, ignore_eos=True)
    drain(tiny, listener)
    assert listener.done
    assert listener.done.reason == "length"


def test_it_stops_at_a_string_that_spans_tokens(tiny: Engine) -> None:
    _, listener = submit(tiny, [1, 2, 3], max_tokens=12)
    drain(tiny, listener)
    pieces = [piece.text for piece in listener.pieces]
    whole = "".join(pieces)
    assert len(pieces) > 4
    stop = pieces[2][-1:] + pieces[3][:1]
    _, stopped = submit(tiny, [1, 2, 3], max_tokens=12, stop=(stop,))
    drain(tiny, stopped)
    assert stopped.done
    assert (stopped.done.reason, stopped.done.stop_reason) == ("stop", stop)
    assert stopped.text == whole[: whole.index(stop)]


def test_it_harms_only_the_sequence_that_fails(tiny: Engine) -> None:
    good = [submit(tiny, [i, 2, 3], max_tokens=12) for i in (1, 5)]
    bad, bad_listener = submit(tiny, [9, 9], max_tokens=12)
    tiny.scheduler.step()
    bad.cache = SequenceCache(2, 2, 8, 20, torch.float32, torch.device("cpu"))  # does not fit the model
    drain(tiny, bad_listener, *(listener for _, listener in good))
    assert bad_listener.failed
    assert all(listener.done for _, listener in good)
    again = [submit(tiny, [i, 2, 3], max_tokens=12) for i in (1, 5)]
    drain(tiny, *(listener for _, listener in again))
    assert [s.tokens for s, _ in again] == [s.tokens for s, _ in good]
    assert tiny.versions.base.n_users == 0


def test_it_harms_only_the_sequence_whose_listener_fails(tiny: Engine) -> None:
    sequence, listener = submit(tiny, [1, 2, 3], max_tokens=12)
    other, _ = submit(tiny, [5, 2, 3], max_tokens=12)
    other._detokenizer = None  # type: ignore[assignment]
    drain(tiny, listener)
    assert len(sequence.tokens) == 12
    assert other.state is State.ENDED


@pytest.mark.parametrize("is_late", [False, True])
def test_it_ends_a_sequence_whose_end_fails(tiny: Engine, is_late: bool) -> None:
    sequence, listener = submit(tiny, [1, 2, 3], max_tokens=9 if is_late else 1, ignore_eos=True)

    def broken() -> str:
        raise MemoryError

    sequence._detokenizer.flush = broken  # type: ignore[method-assign]
    tiny.scheduler.step()
    if is_late:
        sequence.end_by = 0.0
    drain(tiny, listener)
    assert listener.failed
    assert (tiny.versions.base.n_users, tiny.scheduler.n_held) == (0, 0)


class Panic(BaseException):
    """As tokenizers raises it."""


def test_it_survives_what_is_no_exception(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    step, panics = tiny.scheduler._admit, iter([Panic])

    def admit() -> None:
        step()
        for panic in panics:
            raise panic

    monkeypatch.setattr(tiny.scheduler, "_admit", admit)
    tiny.start()
    _, unlucky = submit(tiny, [1, 2, 3], max_tokens=2)
    assert unlucky.wait().failed
    _, next_one = submit(tiny, [1, 2, 3], max_tokens=2)
    assert next_one.wait().done
    tiny.stop()
    tiny.join(10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_it_answers_nobody_with_silence_when_its_thread_dies(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    fail, calls = tiny.scheduler._fail, itertools.count()

    def fail_first(*args: Any) -> None:
        if next(calls) == 0:
            raise Panic
        fail(*args)

    monkeypatch.setattr(tiny.scheduler, "_sweep", lambda now: 1 / 0)
    monkeypatch.setattr(tiny.scheduler, "_fail", fail_first)
    tiny.start()
    _, listener = submit(tiny, [1, 2, 3], max_tokens=2)
    assert listener.wait().failed
    tiny.join(10)
    assert not tiny.scheduler.is_alive
    with pytest.raises(Stopped):
        submit(tiny, [1, 2, 3], max_tokens=2)


def test_it_scores_a_prompt(tiny: Engine) -> None:
    sequence, listener = submit(tiny, PROMPT, max_tokens=1, prompt_logprobs=2)
    drain(tiny, listener)
    assert listener.done
    found = listener.done.prompt_logprobs
    assert found is not None
    assert [item.token for item in found] == PROMPT[1:]
    assert all(item.logprob <= item.top[0][1] and len(item.top) == 2 for item in found)
    cached, _ = submit(tiny, PROMPT, max_tokens=1)
    drain(tiny, _)
    assert cached.tokens == sequence.tokens
    assert (sequence.n_cached, cached.n_cached) == (0, 0)


def submit_together(engine: Engine, prompts: list[list[int]], **params: Any) -> tuple[list[Sequence], list[Listener]]:
    """As one request."""
    how, listeners = SamplingParams(max_tokens=1, temperature=0.0, **params), [Listener() for _ in prompts]
    sequences = [
        Sequence(engine.versions.acquire("base"), ids, how, engine.tokenizer, listener, index=i)
        for i, (ids, listener) in enumerate(zip(prompts, listeners, strict=True))
    ]
    engine.scheduler.submit(sequences)
    return sequences, listeners


@pytest.mark.parametrize("is_same", [True, False])
def test_it_takes_the_prompts_of_a_request_for_one_long_one(tiny: Engine, is_same: bool) -> None:
    """Twelve texts to score must not hold up a question that comes after them, be it twelve times the same text."""
    texts = [[7 if is_same else 7 + i, *PROMPT[: BLOCK - 1]] for i in range(12)]
    scored, listeners = submit_together(tiny, texts, prompt_logprobs=1)
    for _ in range(2):
        tiny.scheduler.step()
    asked, listener = submit(tiny, PROMPT[:BLOCK], max_tokens=3)
    n_ended = sum(one.has_ended for one in listeners)
    while not asked.tokens:
        tiny.scheduler.step()
    assert sum(one.has_ended for one in listeners) - n_ended <= 1
    drain(tiny, listener, *listeners)
    assert all(one.done for one in listeners)
    assert [one.n_blocks for one in scored] == list(
        range(SCORED_TOKEN_COST, 12 * SCORED_TOKEN_COST + 1, SCORED_TOKEN_COST)
    )


def test_it_scores_less_in_a_step_than_it_computes_of_a_prompt(tiny: Engine) -> None:
    """Their products are dearer, and on two versions at once nothing is shared."""
    _, first = submit(tiny, PROMPT[:BLOCK], max_tokens=1, prompt_logprobs=1)
    _, second = submit(tiny, [9, *PROMPT], max_tokens=1, prompt_logprobs=1)
    computed = [0]
    while not (first.has_ended and second.has_ended):
        tiny.scheduler.step()
        computed.append(tiny.metrics.prompt_tokens_computed)
    assert max(after - before for before, after in itertools.pairwise(computed)) == BLOCK // SCORED_TOKEN_COST
    assert computed[-1] == BLOCK + len(PROMPT) + 1


def test_it_leaves_nothing_out_of_a_score_that_failed_once(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        monkeypatch.undo()
        raise MemoryError

    (_, whole), (_, beside) = submit(tiny, PROMPT, max_tokens=1, prompt_logprobs=1), submit(tiny, PROMPT[:5])
    drain(tiny, whole)
    _, again = submit(tiny, PROMPT, max_tokens=1, prompt_logprobs=1)
    monkeypatch.setattr(tiny.model, "rank", failing)
    drain(tiny, again, beside)
    assert (again.done and again.done.prompt_logprobs) == (whole.done and whole.done.prompt_logprobs)


def test_it_counts_a_prompt_once_whose_choices_share_it(tiny: Engine) -> None:
    sequences, listeners = submit_together(tiny, [PROMPT, PROMPT, PROMPT[:-1], PROMPT[:-1]])
    assert [one.n_blocks for one in sequences] == [3, 3, 6, 6]
    drain(tiny, *listeners)


def test_it_counts_a_requests_steps_from_its_beginning(tiny_model_dir: Path) -> None:
    """Where places are few, a text is not put off again by those of its own request that are done."""
    engine = build(Options(model=tiny_model_dir, limits=Limits(max_running=2)))
    sequences, listeners = submit_together(engine, [PROMPT[i:] for i in range(8)], prompt_logprobs=1)
    drain(engine, *listeners)
    assert {one.deadline - one.n_blocks for one in sequences} == {1}


def test_it_scores_nothing_by_numbers_that_are_not_finite(
    tiny: Engine, tiny_model_dir: Path, adapters_dir: Path
) -> None:
    make_adapter(adapters_dir / "huge", tiny_model_dir, size=1e18)
    tiny.versions.load("huge", "huge", 0)
    long, of_long = submit(tiny, PROMPT, "huge", max_tokens=1, prompt_logprobs=1)
    short, of_short = submit(tiny, PROMPT[:BLOCK], "huge", max_tokens=1, prompt_logprobs=1)
    _, whole = submit(tiny, PROMPT, max_tokens=1, prompt_logprobs=1)
    drain(tiny, of_long, of_short, whole)
    for sequence, listener in ((long, of_long), (short, of_short)):
        assert sequence.n_computed == BLOCK // SCORED_TOKEN_COST  # it ended there, not where a token was to be drawn
        assert listener.failed
        assert "not finite" in listener.failed.message
    assert (long.tokens, short.tokens, short.hidden) == ([], [], None)
    assert whole.done
    assert tiny.scheduler.counts() == (0, 0)
    assert tiny.scheduler.n_held == 0


def test_it_ends_everything_when_it_stops(tiny: Engine) -> None:
    tiny.start()
    listeners = [submit(tiny, [i, 2, 3], max_tokens=5000, ignore_eos=True)[1] for i in range(3)]
    tiny.stop()
    tiny.join(10)
    assert not tiny.scheduler.is_alive
    assert all(listener.wait().failed for listener in listeners)
    with pytest.raises(Stopped):
        submit(tiny, [1])


def test_it_works_from_many_threads(tiny: Engine) -> None:
    tiny.start()
    found: list[Listener] = []
    threads = [
        threading.Thread(target=lambda i=i: found.append(submit(tiny, [i, 2, 3], max_tokens=5)[1].wait()))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tiny.stop()
    tiny.join(10)
    assert len(found) == 12
    assert all(listener.done for listener in found)
