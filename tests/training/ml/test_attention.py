import pytest
import torch

from training.ml import attention
from training.ml.attention import SharedPromptAttention
from training.ml.errors import TrainingError
from training.ml.rows import Segment

SEGMENTS = [Segment(0, 4, 0, 0), Segment(4, 6, 0, 4), Segment(6, 9, 0, 4), Segment(9, 11, 9, 9)]


def heads(n: int, length: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, length, 8, generator=torch.Generator().manual_seed(n), dtype=dtype)


def test_it_has_the_gradient_that_finite_differences_give() -> None:
    q = heads(4, 11).view(2, 2, 11, 8).requires_grad_()
    k, v = heads(2, 11).requires_grad_(), (heads(2, 11) * 0.7 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *qkv: SharedPromptAttention.apply(*qkv, SEGMENTS, 0.3), (q, k, v))


def test_it_is_masked_attention_over_prompt_and_self() -> None:
    q, k, v = heads(4, 11), heads(2, 11), heads(2, 11) * 0.5
    allowed = torch.zeros(11, 11, dtype=torch.bool)
    for s in SEGMENTS:
        allowed[s.start : s.end, s.prompt_start : s.prompt_end] = True
        allowed[s.start : s.end, s.start : s.end] = torch.ones(s.end - s.start, s.end - s.start).tril().bool()
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=allowed, enable_gqa=True
    )
    found, _ = attention.attend(torch.nn.Module(), q[None], k[None], v[None], None, segments=SEGMENTS)
    torch.testing.assert_close(found.transpose(1, 2), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"softcap": 30.0}, {"s_aux": torch.ones(4)}, {"sliding_window": 5}])
def test_it_refuses_attention_that_it_does_not_compute(options: dict[str, object]) -> None:
    q, k = heads(4, 11)[None], heads(2, 11)[None]
    with pytest.raises(TrainingError, match="cannot do"):
        attention.attend(torch.nn.Module(), q, k, k, None, segments=SEGMENTS, **options)  # type: ignore[arg-type]
