"""Each loss against the paper's formula, written out in plain Python."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import catalog
from training.catalog import DPO, IPO, RPO
from training.ml import losses
from training.ml.losses import PairLogps

logp = st.floats(-200, -0.1)
share = st.floats(0, 1)


def logps(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float, label: float = 1.0, n: int = 5):
    values = (chosen, rejected, ref_chosen, ref_rejected, float(n), float(n), label, 0.0, 0.0)
    return PairLogps(*(torch.tensor([value], dtype=torch.float64) for value in values))


def minus_log_sigmoid(x: float) -> float:
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


@given(logp, logp, logp, logp, share, st.floats(0.01, 2), st.floats(0, 0.49))
def test_it_computes_dpo(c: float, r: float, rc: float, rr: float, label: float, beta: float, eps: float) -> None:
    h = (c - rc) - (r - rr)
    p = label * (1 - eps) + (1 - label) * eps
    expected = p * minus_log_sigmoid(beta * h) + (1 - p) * minus_log_sigmoid(-beta * h)
    found = losses.dpo(logps(c, r, rc, rr, label), DPO(beta=beta, label_smoothing=eps))
    assert found.tolist() == [pytest.approx(expected, rel=1e-9, abs=1e-9)]


@given(logp, logp, logp, logp, st.floats(0.01, 2))
def test_it_computes_ipo(c: float, r: float, rc: float, rr: float, beta: float) -> None:
    h = math.log(math.exp(0)) + (c - r) - (rc - rr)
    found = losses.ipo(logps(c, r, rc, rr), IPO(beta=beta))
    assert found.tolist() == [pytest.approx((h - 1 / (2 * beta)) ** 2, rel=1e-9, abs=1e-9)]


@given(logp, logp, logp, logp, st.floats(0, 3), st.integers(1, 500))
def test_it_computes_rpo(c: float, r: float, rc: float, rr: float, alpha: float, n: int) -> None:
    expected = minus_log_sigmoid(0.1 * ((c - rc) - (r - rr))) - alpha * c / n
    found = losses.rpo(logps(c, r, rc, rr, n=n), RPO(nll_weight=alpha))
    assert found.tolist() == [pytest.approx(expected, rel=1e-9, abs=1e-9)]


def test_it_gives_ln_2_where_policy_and_reference_agree() -> None:
    assert losses.dpo(logps(-3, -50, -3, -50), DPO()).tolist() == [math.log(2)]


def test_it_gives_ipos_least_loss_at_half_of_one_over_beta() -> None:
    assert losses.ipo(logps(-5, -20, -10, -20), IPO(beta=0.1)).tolist() == [0.0]


@pytest.mark.parametrize("name", catalog.METHODS)
def test_it_falls_as_the_chosen_response_gains_on_the_rejected_one(name: str) -> None:
    loss, params = getattr(losses, name), catalog.parse(name, {})
    values = [loss(logps(c, r, -20, -20), params).item() for c, r in ((-21, -19), (-20, -20), (-19, -21))]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_it_takes_a_label_of_zero_for_the_swapped_pair(name: str) -> None:
    loss, params = getattr(losses, name), catalog.parse(name, {})
    assert loss(logps(-3, -9, -4, -8, label=0.0), params) == loss(logps(-9, -3, -8, -4, label=1.0), params)


@pytest.mark.parametrize("name", catalog.METHODS)
def test_it_gives_one_loss_per_pair(name: str) -> None:
    two = PairLogps(*(torch.cat([value, value * 2]) for value in vars(logps(-3, -9, -4, -8)).values()))
    assert getattr(losses, name)(two, catalog.parse(name, {})).shape == (2,)


def test_it_has_a_loss_named_as_every_method_of_the_menu() -> None:
    assert all(callable(getattr(losses, name)) for name in catalog.METHODS)
