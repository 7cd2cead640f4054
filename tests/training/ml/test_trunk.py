"""Adapters on the top layers only: what lies below is computed once and changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.ml.cases import make_learner, shake, some_pairs
from training.ml import exams, trunk
from training.ml.exams import Writer
from training.ml.logprobs import response_logps
from training.ml.policy import Base, parameters
from training.ml.rows import pack
from training.ml.trunk import Trunk


def top(base: Base) -> Any:
    """The base with a shaken adapter on the upper of its two layers."""
    _, model = make_learner(base, some_pairs(), layers="top_half")
    shake(model)
    return model


def test_it_adapts_the_top_layers_only(base: Base) -> None:
    names = [name for name, p in top(base).named_parameters() if p.requires_grad]
    assert len(names) == 2 * 7
    assert all(".layers.1." in name for name in names)


@pytest.mark.parametrize(("part", "n"), [("attention", 4), ("mlp", 3)])
def test_it_adapts_the_modules_that_are_asked_for(base: Base, part: str, n: int) -> None:
    _, model = make_learner(base, some_pairs(), target_modules=part)
    assert len(parameters(model)) == 2 * n * 2


def test_it_gives_the_scores_and_gradients_of_the_whole_model(base: Base, tmp_path: Path) -> None:
    model = top(base)
    packs = pack(some_pairs(), 64)
    assert len(packs) > 1
    kept = Trunk(base.model, 1, tmp_path)
    direction = torch.randn(64, dtype=torch.float64)

    def learn(memory: Trunk | None) -> list[torch.Tensor]:
        total = sum(response_logps(base.model, b, memory) @ direction[: b.n_responses] for b in packs)
        total.backward()  # type: ignore[union-attr]
        found = [total.detach(), *(p.grad.clone() for p in parameters(model))]  # type: ignore[union-attr]
        model.zero_grad()
        return found

    expected = learn(None)
    for found in (learn(kept), learn(kept)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert kept.n_computed == sum(b.n_tokens for b in packs)  # the second time nothing was


def test_it_serves_the_reference_too(base: Base, tmp_path: Path) -> None:
    model = top(base)
    (batch,) = pack(some_pairs(), 4096)
    kept = Trunk(base.model, 1, tmp_path)
    with model.disable_adapter(), torch.no_grad():
        plain = response_logps(base.model, batch)
        torch.testing.assert_close(response_logps(base.model, batch, kept), plain)
    assert kept.n_computed == batch.n_tokens
    response_logps(base.model, batch, kept)
    assert kept.n_computed == batch.n_tokens


def test_it_serves_the_monitors_exams(base: Base, tmp_path: Path) -> None:
    pairs = some_pairs()
    learner, model = make_learner(base, pairs, layers="top_half")
    kept = Trunk(base.model, 1, tmp_path)
    with torch.no_grad():
        plain = exams.heldout(learner, pairs, Writer(model, base.tokenizer))
        found = exams.heldout(learner, pairs, Writer(model, base.tokenizer, kept))
    assert kept.n_computed > 0
    assert found["heldout_scores"] == pytest.approx(plain["heldout_scores"], abs=1e-12)


def test_it_remembers_rows_that_are_packed_otherwise_the_next_time(base: Base, tmp_path: Path) -> None:
    top(base)
    kept, pairs = Trunk(base.model, 1, tmp_path), some_pairs()
    for batch in pack(pairs, 64):
        response_logps(base.model, batch, kept)
    before = kept.n_computed
    (batch,) = pack(pairs, 4096)
    torch.testing.assert_close(response_logps(base.model, batch, kept), response_logps(base.model, batch))
    assert kept.n_computed == before


def test_it_steps_aside_where_an_adapter_lies_below(base: Base, tmp_path: Path) -> None:
    _, model = make_learner(base, some_pairs())
    shake(model)
    (batch,) = pack(some_pairs(), 4096)
    kept = Trunk(base.model, 1, tmp_path)
    torch.testing.assert_close(response_logps(base.model, batch, kept), response_logps(base.model, batch))
    assert kept.n_computed == 0


def test_it_computes_what_it_has_no_room_for(base: Base, tmp_path: Path) -> None:
    top(base)
    (batch,) = pack(some_pairs(), 4096)
    kept = Trunk(base.model, 1, tmp_path, max_bytes=10 * 32 * 8)
    for _ in range(2):
        torch.testing.assert_close(response_logps(base.model, batch, kept), response_logps(base.model, batch))
    assert kept.n_computed == 2 * batch.n_tokens


def test_it_knows_the_lowest_adapter_even_while_it_is_off(base: Base) -> None:
    model = top(base)
    layers = base.model.get_decoder().layers
    with model.disable_adapter():
        assert trunk.first_adapted(layers) == 2
        assert trunk.first_adapted(layers, counts_disabled=True) == 1
