"""Packed rows, our layers and the completion-only head against a plain model: peft's layers, torch's attention, all logits."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.training.ml.cases import make_learner, some_pairs
from tests.training.ml.checks import scores_responses_as_alone
from training.ml import logprobs, policy
from training.ml.logprobs import TokenLogps
from training.ml.rows import pack


def test_it_differentiates_the_head() -> None:
    hidden = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    weight, targets = torch.randn(11, 6, dtype=torch.float64), torch.tensor([0, 10, 3, 3, 7])
    assert torch.autograd.gradcheck(lambda h: TokenLogps.apply(h, weight, targets), hidden)


def test_it_works_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = torch.randn(7, 6), torch.randn(11, 6), torch.arange(7)
    whole = TokenLogps.apply(hidden, weight, targets)
    monkeypatch.setattr(logprobs, "CHUNK", 3)
    torch.testing.assert_close(TokenLogps.apply(hidden, weight, targets), whole)


@pytest.mark.parametrize("budget", [20, 512])
def test_it_scores_like_a_plain_model(base: policy.Base, plain: PeftModel, budget: int) -> None:
    scores_responses_as_alone(base, plain, budget)


def test_it_computes_in_a_wider_dtype_on_request(tiny_model_dir: Path) -> None:
    base = policy.load_base(tiny_model_dir, dtype=torch.bfloat16)
    make_learner(base, some_pairs())
    batch = pack(some_pairs(), 512)[0]
    found = logprobs.token_logps(base.model, batch, torch.float32)
    narrow = logprobs.token_logps(base.model, batch)
    wide = logprobs.token_logps(base.model.float(), batch)
    torch.testing.assert_close(found, wide, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(narrow, wide, rtol=1e-5, atol=1e-5)
