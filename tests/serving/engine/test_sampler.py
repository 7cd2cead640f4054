"""Sampling: filters keep what they should, frequencies follow the distribution, a seed decides everything."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine.sampler import FIRST_CANDIDATES, Sampler, SamplingParams, _candidates, draw, token_logprob

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0, 0.5])


def sampler(prompt: list[int] | None = None, stream: int = 0, **params: Any) -> Sampler:
    return Sampler(SamplingParams(**{"max_tokens": 10, **params}), prompt or [], stream)


def tokens(logits: torch.Tensor, n: int, **params: Any) -> list[int]:
    one = sampler(**params)
    return [choose(one, logits) for _ in range(n)]


def choose(one: Sampler, logits: torch.Tensor) -> int:
    token = draw(one.adjusted(logits), one.params, one.uniform())
    assert token is not None
    one.count(token)
    return token


def test_it_takes_the_best_token_at_temperature_zero() -> None:
    assert tokens(LOGITS, 3, temperature=0.0) == [4, 4, 4]


def test_it_draws_as_often_as_the_distribution_says() -> None:
    n, temperature = 20_000, 1.5
    counts = Counter(tokens(LOGITS, n, temperature=temperature, seed=1))
    expected = torch.softmax(LOGITS / temperature, 0)
    for token, p in enumerate(expected.tolist()):
        assert abs(counts[token] / n - p) < 4 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 1}, {4}),
        ({"top_k": 2}, {4, 0}),
        ({"top_p": 0.01}, {4}),
        ({"top_p": 0.62}, {4, 0}),
        ({"min_p": 0.9}, {4}),
        ({"min_p": 0.3}, {4, 0}),
        ({"top_k": 3, "top_p": 0.99, "min_p": 0.3}, {4, 0}),
        ({"top_p": 0.62, "min_p": 0.3}, {4}),  # top-p counts what min-p left, as in vLLM
    ],
)
def test_it_draws_only_what_the_filters_leave(params: dict[str, Any], allowed: set[int]) -> None:
    assert set(tokens(LOGITS, 300, seed=2, **params)) == allowed


@given(
    seed=st.integers(0, 2**31),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 60),
    min_p=st.floats(0, 1),
    temperature=st.floats(0.05, 2),
)
@settings(max_examples=60, deadline=None)
def test_it_keeps_the_smallest_set_that_reaches_top_p(
    seed: int, top_p: float, top_k: int, min_p: float, temperature: float
) -> None:
    logits = 3 * torch.randn(50, generator=torch.Generator().manual_seed(seed))
    found = set(tokens(logits, 30, seed=seed, top_p=top_p, top_k=top_k, min_p=min_p, temperature=temperature))
    probs = torch.softmax(logits / temperature, 0)
    order = probs.argsort(descending=True)
    best = order[: top_k or 50]
    best = best[probs[best] >= min_p * probs.max() - 1e-6]
    share = probs[best] / probs[best].sum()
    before = share.cumsum(0) - share
    allowed = {int(t) for t, b in zip(best, before, strict=True) if b < top_p + 1e-4}
    assert found <= allowed


def test_it_looks_beyond_its_first_candidates_when_it_must() -> None:
    n = 4 * FIRST_CANDIDATES
    probs = torch.full((n,), 1 / n)
    for params, expected in (
        ({"top_p": 0.75}, 3 * n // 4),
        ({"min_p": 0.5}, n),
        ({"min_p": 0.5, "top_p": 0.1}, n // 10),
        ({"top_k": n // 2}, n // 2),
        ({"top_k": n // 2, "top_p": 0.1}, n // 20),
    ):
        kept, ids = _candidates(probs, SamplingParams(max_tokens=1, **params))
        assert ids is not None
        assert abs(len(kept) - expected) <= 1
        assert len(ids.unique()) == len(ids)


def test_it_gives_the_same_tokens_for_the_same_seed_and_others_for_another_draw() -> None:
    logits = torch.zeros(1000)
    assert tokens(logits, 20, seed=7) == tokens(logits, 20, seed=7)
    assert tokens(logits, 20, seed=7) != tokens(logits, 20, seed=8)
    assert tokens(logits, 20, seed=7) != tokens(logits, 20, seed=7, stream=1)
    assert tokens(logits, 20) != tokens(logits, 20)


def test_it_penalises_what_was_said() -> None:
    assert tokens(torch.tensor([1.0, 0.9, 0.0]), 2, temperature=0.0, presence_penalty=0.5) == [0, 1]
    assert tokens(torch.tensor([1.0, 0.5]), 4, temperature=0.0, frequency_penalty=0.3) == [0, 0, 1, 0]
    repeated = sampler([0], temperature=0.0, repetition_penalty=2.0)
    assert choose(repeated, torch.tensor([1.0, 0.6, -1.0])) == 1
    negative = sampler([0], temperature=0.0, repetition_penalty=2.0)
    assert choose(negative, torch.tensor([-1.0, -1.5, -3.0])) == 1


def test_it_applies_a_logit_bias() -> None:
    assert tokens(LOGITS, 1, temperature=0.0, logit_bias={3: 100.0}) == [3]
    assert 4 not in tokens(LOGITS, 200, seed=0, logit_bias={4: -100.0})


def test_it_reports_logprobs_and_ranks() -> None:
    expected = torch.log_softmax(LOGITS, 0)
    found = token_logprob(expected, 0, 2)
    assert (found.token, found.rank) == (0, 2)
    assert found.logprob == pytest.approx(float(expected[0]))
    assert [t for t, _ in found.top] == [4, 0]
    assert token_logprob(expected, 4, 0).rank == 1


def test_it_draws_nothing_from_logits_that_are_not_finite() -> None:
    for bad in (math.nan, math.inf):
        for temperature in (0.0, 1.0):
            params = SamplingParams(max_tokens=1, temperature=temperature)
            assert draw(torch.tensor([0.0, bad, 1.0]), params, 0.5) is None


def test_it_leaves_logits_alone_that_it_does_not_change() -> None:
    assert sampler().adjusted(LOGITS) is LOGITS
    assert not torch.equal(sampler(logit_bias={0: 1.0}).adjusted(LOGITS), LOGITS)
    assert LOGITS[0] == 2.0


def test_it_draws_by_the_same_number_until_the_token_is_counted() -> None:
    one, same = sampler(seed=3), sampler(seed=3)
    first = one.uniform()
    assert one.uniform() == first == same.uniform()  # a step that failed is done again
    one.count(0)
    assert one.uniform() != first


def test_it_takes_the_best_token_at_the_smallest_temperature() -> None:
    logits = torch.tensor([5.0, 30.0, 1.0, -20.0])
    assert {draw(logits, SamplingParams(max_tokens=1, temperature=t), 0.999) for t in (1e-38, 1e-45, 1e-4)} == {1}
