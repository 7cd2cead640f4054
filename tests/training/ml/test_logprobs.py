"""Packed rows, our layers and the completion-only head against a plain model: peft's layers, torch's attention, all logits."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.training.ml.cases import exact_norms, make_learner, shake, some_pairs
from training.ml import logprobs, loop, losses, policy
from training.ml.data import Pair
from training.ml.logprobs import TokenLogps, response_logps
from training.ml.losses import PairLogps
from training.ml.rows import Tokens, pack
from training.ml.watch import Watch


@pytest.fixture
def plain(tiny_model_dir: Path) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64, attn_implementation="sdpa")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32, use_rslora=True, target_modules="all-linear")
    return get_peft_model(exact_norms(model), config)


def plain_logp(model: PeftModel, prompt: Tokens, response: Tokens) -> torch.Tensor:
    """By the textbook: one sequence, the whole softmax at every position."""
    logps = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(logps[len(prompt) + i - 1, token] for i, token in enumerate(response))


def copy_adapter(source: PeftModel, target: PeftModel) -> None:
    values = dict(source.named_parameters())
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(values[name])


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
    pairs = some_pairs()
    _, ours = make_learner(base, pairs)
    shake(ours)
    copy_adapter(ours, plain)
    for batch in pack(pairs, budget):
        expected = torch.stack([plain_logp(plain, *sequence) for sequence in batch.order])
        torch.testing.assert_close(response_logps(base.model, batch), expected, rtol=1e-10, atol=1e-10)


def plain_loss(model: PeftModel, pairs: list[Pair], reference: float) -> torch.Tensor:
    def scores(response: str) -> torch.Tensor:
        return torch.stack([plain_logp(model, pair.prompt, getattr(pair, response)) for pair in pairs])

    value, ones = torch.full((len(pairs),), reference), torch.ones(len(pairs), dtype=torch.float64)
    logps = PairLogps(scores("chosen"), scores("rejected"), value, value, ones, ones, ones, 0 * ones, 0 * ones)
    return losses.dpo(logps, losses.DPO()).mean()


@pytest.mark.parametrize("budget", [20, 512])
def test_it_has_the_gradient_of_a_plain_model(base: policy.Base, plain: PeftModel, watch: Watch, budget: int) -> None:
    pairs = some_pairs()
    learner, ours = make_learner(base, pairs)
    shake(ours)
    copy_adapter(ours, plain)
    learner.budget = budget
    metrics = loop.accumulate(learner, pairs, watch)
    loss = plain_loss(plain, pairs, -20.0)
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-10)
    for found, expected in zip(policy.parameters(ours), policy.parameters(plain), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-8, atol=1e-12)


def test_it_computes_in_a_wider_dtype_on_request(tiny_model_dir: Path) -> None:
    base = policy.load_base(tiny_model_dir, dtype=torch.bfloat16)
    make_learner(base, some_pairs())
    batch = pack(some_pairs(), 512)[0]
    found = logprobs.token_logps(base.model, batch, torch.float32)
    narrow = logprobs.token_logps(base.model, batch)
    wide = logprobs.token_logps(base.model.float(), batch)
    torch.testing.assert_close(found, wide, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(narrow, wide, rtol=1e-5, atol=1e-5)
