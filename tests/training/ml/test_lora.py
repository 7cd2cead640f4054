import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora as stock

from tests.training.ml.cases import make_learner, shake, some_pairs
from training.ml import policy
from training.ml.logprobs import response_logps
from training.ml.lora import Linear, LoraProduct
from training.ml.rows import pack


@pytest.mark.parametrize("has_bias", [True, False])
def test_it_has_the_gradient_that_finite_differences_give(has_bias: bool) -> None:
    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    x, a, b = matrix(5, 6).requires_grad_(), matrix(2, 6).requires_grad_(), matrix(7, 2).requires_grad_()
    weight, bias = matrix(7, 6), matrix(7) if has_bias else None
    assert torch.autograd.gradcheck(lambda x, a, b: LoraProduct.apply(x, weight, bias, a, b, 1.5), (x, a, b))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.03)])
def test_it_computes_what_pefts_own_layer_does(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, init_lora_weights=False)
    linear = torch.nn.Linear(16, 24, dtype=dtype).requires_grad_(False)
    ours = Linear(linear, "default", config, r=4, lora_alpha=8)
    theirs = stock.Linear(linear, "default", config, r=4, lora_alpha=8)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 16, dtype=dtype)
    torch.testing.assert_close(ours(x), theirs(x), rtol=tolerance, atol=tolerance)


def test_it_is_the_base_exactly_with_the_adapter_off(base32: policy.Base) -> None:
    batch = pack(some_pairs(), 512)[0]
    before = response_logps(base32.model, batch)
    _, model = make_learner(base32, some_pairs())
    shake(model)
    with model.disable_adapter():
        assert torch.equal(response_logps(base32.model, batch), before)
    assert not torch.allclose(response_logps(base32.model, batch), before)


def test_it_changes_nothing_when_new(base32: policy.Base) -> None:
    batch = pack(some_pairs(), 512)[0]
    before = response_logps(base32.model, batch)
    make_learner(base32, some_pairs())
    assert torch.equal(response_logps(base32.model, batch), before)


def test_it_keeps_fp32_parameters_beside_a_bf16_base(tiny_model_dir) -> None:
    narrow = policy.load_base(tiny_model_dir, dtype=torch.bfloat16)
    learner, _ = make_learner(narrow, some_pairs())
    assert {p.dtype for p in learner.parameters} == {torch.float32}
    assert len(learner.parameters) == 2 * 2 * 7  # A and B of seven linear layers in each of two blocks
