import pytest
import torch

from training.ml import attention
from training.ml.attention import SharedPromptAttention
from training.ml.errors import TrainingError
from training.ml.rows import Segment

SEGMENTS = [Segment(0, 4, 0, 0), Segment(4, 6, 0, 4), Segment(6, 9, 0, 4), Segment(9, 11, 9, 9)]


def heads(n: int, length: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(length, n, 8, generator=torch.Generator().manual_seed(n), dtype=dtype)


@pytest.mark.parametrize("chunk", [2, 128], ids=["in chunks", "whole"])
@pytest.mark.parametrize("keep", [0, attention.KEEP], ids=["computed again", "kept"])
def test_it_has_the_gradient_that_finite_differences_give(
    keep: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "KEEP", keep)
    monkeypatch.setattr(attention, "CHUNK", chunk)
    q = heads(4, 11).requires_grad_()
    k, v = heads(2, 11).requires_grad_(), (heads(2, 11) * 0.7 + 0.1).requires_grad_()
    plan = attention.plan(SEGMENTS, 4, 2, q)
    assert torch.autograd.gradcheck(lambda *qkv: SharedPromptAttention.apply(*qkv, plan, 0.3), (q, k, v))


@pytest.mark.parametrize("chunk", [2, 128])
def test_it_is_masked_attention_over_prompt_and_self(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK", chunk)
    q, k, v = (x.transpose(0, 1) for x in (heads(4, 11), heads(2, 11), heads(2, 11) * 0.5))
    allowed = torch.zeros(11, 11, dtype=torch.bool)
    for s in SEGMENTS:
        allowed[s.start : s.end, s.prompt_start : s.prompt_end] = True
        allowed[s.start : s.end, s.start : s.end] = torch.ones(s.end - s.start, s.end - s.start).tril().bool()
    expected = torch.nn.functional.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=allowed, enable_gqa=True
    )
    plan = attention.plan(SEGMENTS, 4, 2, q)
    found, _ = attention.attend(torch.nn.Module(), q[None], k[None], v[None], None, plan=plan)
    torch.testing.assert_close(found.transpose(1, 2), expected, rtol=1e-12, atol=1e-12)


def test_it_computes_a_segment_alike_whatever_it_is_packed_with() -> None:
    q, k, v = (heads(n, 11, torch.bfloat16) for n in (4, 2, 2))
    alone, _ = attention.forward(q[9:], k[9:], v[9:], attention.plan([Segment(0, 2, 0, 0)], 4, 2, q), 0.3)
    packed, _ = attention.forward(q, k, v, attention.plan(SEGMENTS, 4, 2, q), 0.3)
    assert torch.equal(packed[9:], alone)


@pytest.mark.parametrize("options", [{"softcap": 30.0}, {"s_aux": torch.ones(4)}, {"sliding_window": 5}])
def test_it_refuses_attention_that_it_does_not_compute(options: dict[str, object]) -> None:
    q, k = (heads(n, 11).transpose(0, 1)[None] for n in (4, 2))
    with pytest.raises(TrainingError, match="cannot do"):
        attention.attend(torch.nn.Module(), q, k, k, None, plan=attention.plan(SEGMENTS, 4, 2, q), **options)  # type: ignore[arg-type]
