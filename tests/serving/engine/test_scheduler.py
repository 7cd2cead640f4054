"""Batching, sharing, fairness and failure, on the tiny model, one step at a time."""

import threading
from pathlib import Path

import pytest
import torch

from serving.engine.cache import BLOCK, SequenceCache
from serving.engine.engine import Engine, Options, build
from serving.engine.scheduler import Limits, Overloaded, Stopped
from serving.engine.sequence import State
from tests.serving.engine.conftest import Listener, drain, make_adapter, submit

PROMPT = list(range(100, 100 + 2 * BLOCK + 5))


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
