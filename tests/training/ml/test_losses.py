"""Every loss of the menu against the paper's formula in float64, and what must hold of all of them."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.training.ml import checks, formulas
from tests.training.ml.cases import POLICY_METHODS
from training import catalog
from training.catalog import DPO, IPO, KTO, APOZero, DavidsonDPO, FlippedDPO, TieDPO
from training.ml import batches, losses
from training.ml.losses import Logps, PairLogps, ResponseLogps

PAIRED = [name for name in POLICY_METHODS if batches.SOURCES[catalog.get(name).source] is batches.PAIRS]
ALONE = [name for name in POLICY_METHODS if name not in PAIRED]
ON_DECIDED = [name for name in PAIRED if catalog.get(name).source == "pairs"]
WITH_TIES = [name for name in PAIRED if catalog.get(name).source == "pairs_with_ties"]

logp = st.floats(-200, -0.1)
share = st.floats(0, 1)


def loss_of(method: str, **params: Any) -> Callable[[Any], Tensor]:
    parsed = catalog.parse(method, checks.FULL[method] | params)
    return lambda logps: getattr(losses, method)(logps, parsed)


def one(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float, label: float = 1.0, **changes: float):
    values = {"n_chosen": 5.0, "n_rejected": 5.0, "label": label, "tie_share": 0.0, "margin": 0.0} | changes
    parts = [chosen, rejected, ref_chosen, ref_rejected, *values.values()]
    return PairLogps(*(torch.tensor([value], dtype=torch.float64) for value in parts))


def alone(policy: float, reference: float, is_good: float, kl: float = 0.0) -> ResponseLogps:
    values = ([policy], [reference], [5.0], [is_good], kl)
    return ResponseLogps(*(torch.tensor(value, dtype=torch.float64) for value in values))


def swapped(logps: PairLogps) -> PairLogps:
    """The same judgments with the names of the responses exchanged."""
    return PairLogps(
        policy_chosen=logps.policy_rejected,
        policy_rejected=logps.policy_chosen,
        reference_chosen=logps.reference_rejected,
        reference_rejected=logps.reference_chosen,
        n_chosen=logps.n_rejected,
        n_rejected=logps.n_chosen,
        label=1 - logps.label,
        tie_share=logps.tie_share,
        margin=-logps.margin,
    )


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


# --- the formulas ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", POLICY_METHODS)
def test_it_has_the_values_and_gradients_of_the_papers_formula(method: str) -> None:
    checks.follows_its_formula(method)


@given(logp, logp, logp, logp, share, st.floats(0.01, 2))
def test_it_computes_dpo(c: float, r: float, rc: float, rr: float, label: float, beta: float) -> None:
    g = beta * ((c - rc) - (r - rr))
    expected = label * _minus_log_sigmoid(g) + (1 - label) * _minus_log_sigmoid(-g)
    assert losses.dpo(one(c, r, rc, rr, label), DPO(beta=beta)).tolist() == [pytest.approx(expected, rel=1e-9)]


def _minus_log_sigmoid(x: float) -> float:
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


@given(logp, logp, st.floats(0.01, 1))
def test_it_has_dpos_gradient(c: float, r: float, beta: float) -> None:
    """−β σ(−βh) for the chosen response, the opposite for the rejected one: Rafailov et al. 2023, section 4."""
    _, d_chosen, d_rejected = checks.gradients(lambda x: losses.dpo(x, DPO(beta=beta)), one(c, r, -50, -60))
    expected = -beta / (1 + math.exp(beta * ((c + 50) - (r + 60))))
    assert d_chosen.tolist() == [pytest.approx(expected, rel=1e-9)]
    assert d_rejected.tolist() == [pytest.approx(-expected, rel=1e-9)]


@pytest.mark.parametrize("method", POLICY_METHODS)
def test_it_stays_finite_far_from_the_reference(method: str) -> None:
    """Where the formula as written overflows."""
    if method in PAIRED:
        cases: list[Logps] = [one(-5000, -1e-9, -1e-9, -5000), one(-1e-9, -5000, -5000, -1e-9)]
    else:
        cases = [alone(-5000, -1e-9, 1.0), alone(-1e-9, -5000, 0.0)]
    for logps in cases:
        assert all(found.isfinite().all() for found in checks.gradients(loss_of(method), logps))


# --- what holds of all of them -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", formulas.START)
def test_it_starts_where_policy_and_reference_agree(method: str) -> None:
    logps = one(-3, -50, -3, -50, n_rejected=9) if method in PAIRED else alone(-3, -3, 1.0)
    loss = getattr(losses, method)(logps, catalog.parse(method, {}))
    assert loss.tolist() == [pytest.approx(formulas.START[method], rel=1e-12)]


def test_it_starts_every_loss_with_a_reference_somewhere_known() -> None:
    """SimPO, ORPO and SFT know no reference, RPO's NLL begins where the model is."""
    assert set(POLICY_METHODS) - set(formulas.START) == {"simpo", "orpo", "sft", "rpo"}


@pytest.mark.parametrize("method", PAIRED)
def test_it_falls_as_the_chosen_response_gains_on_the_rejected_one(method: str) -> None:
    loss = loss_of(method, beta=0.1) if "beta" in checks.FULL[method] else loss_of(method)
    values = [loss(one(c, r, -20, -20)).item() for c, r in ((-21, -19), (-20, -20), (-19, -21))]
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("method", PAIRED)
def test_it_pulls_the_chosen_response_up_and_pushes_no_response_the_wrong_way(method: str) -> None:
    logps = replace(checks.pair_logps(3), label=torch.ones(40).double(), tie_share=torch.zeros(40).double())
    starting = replace(logps, policy_chosen=logps.reference_chosen, policy_rejected=logps.reference_rejected)
    _, d_chosen, d_rejected = checks.gradients(loss_of(method, **_no_margin(method)), starting)
    assert (d_chosen < 0).all()
    assert (d_rejected > 0).all()


def _no_margin(method: str) -> dict[str, float]:
    return {"margin_scale": 0.0} if "margin_scale" in checks.FULL[method] else {}


@pytest.mark.parametrize("method", ALONE)
def test_it_pulls_good_responses_up_and_pushes_bad_ones_down(method: str) -> None:
    logps = checks.response_logps(3)
    _, d_policy = checks.gradients(loss_of(method), logps)
    assert (d_policy[logps.is_good == 1] < 0).all()
    assert (d_policy[logps.is_good == 0] >= 0).all()


@pytest.mark.parametrize("method", PAIRED)
def test_it_does_not_matter_which_response_is_called_chosen(method: str) -> None:
    logps = checks.pair_logps(4)
    loss, d_chosen, d_rejected = checks.gradients(loss_of(method), logps)
    there, d_second, d_first = checks.gradients(loss_of(method), swapped(logps))
    equal(there, loss)
    equal(d_first, d_chosen)
    equal(d_second, d_rejected)


@pytest.mark.parametrize("method", ON_DECIDED)
def test_it_gives_a_soft_label_the_loss_of_its_votes_one_by_one(method: str) -> None:
    """Seven of ten people prefer `chosen`."""
    loss, logps = loss_of(method), checks.pair_logps(5)
    soft, won, lost = (loss(replace(logps, label=torch.full_like(logps.label, p))) for p in (0.7, 1.0, 0.0))
    equal(10 * soft, 7 * won + 3 * lost)


@pytest.mark.parametrize("method", WITH_TIES)
def test_it_gives_votes_with_ties_their_loss_one_by_one(method: str) -> None:
    """Five of ten people prefer `chosen`, two the other, three call it a tie."""
    loss, logps = loss_of(method), checks.pair_logps(5)

    def of(label: float, tie_share: float) -> Tensor:
        shares = {"label": torch.full_like(logps.label, label), "tie_share": torch.full_like(logps.label, tie_share)}
        return loss(replace(logps, **shares))

    equal(10 * of(0.65, 0.3), 5 * of(1.0, 0.0) + 2 * of(0.0, 0.0) + 3 * of(0.5, 1.0))


@pytest.mark.parametrize("method", POLICY_METHODS)
def test_it_gives_each_example_its_own_loss(method: str) -> None:
    """One loss per example, which no other example of the batch changes."""
    loss, logps = loss_of(method), checks.logps_for(method, 6)
    whole = loss(logps)
    assert whole.shape == (40,)
    part = replace(logps, **{name: value[7:9] for name, value in vars(logps).items() if value.ndim})
    assert torch.equal(loss(part), whole[7:9])


@pytest.mark.parametrize("method", POLICY_METHODS)
def test_it_has_a_documented_loss_named_as_every_method_of_the_menu(method: str) -> None:
    """Formula, authors, year and, where there is one, paper: what docs/methods.md shows."""
    text = getattr(losses, method).__doc__
    assert any(f" {year}" in text for year in range(2017, 2030))
    assert "arXiv" in text or "A note on" in text
    assert catalog.get(method).params.__doc__
    assert catalog.get(method).source in batches.SOURCES


# --- single methods ----------------------------------------------------------------------------------------------------
@given(logp, logp, st.floats(0, 0.4), share)
def test_it_undoes_flips_on_average(c: float, r: float, flip_rate: float, label: float) -> None:
    """Robust DPO on judgments of which a share is flipped is DPO on the true ones."""
    params = FlippedDPO(flip_rate=flip_rate)
    kept, flipped = (losses.robust(one(c, r, -50, -60, p), params) for p in (label, 1 - label))
    torch.testing.assert_close(
        (1 - flip_rate) * kept + flip_rate * flipped, losses.dpo(one(c, r, -50, -60, label), DPO())
    )


@pytest.mark.parametrize("flip_rate", [0.05, 0.3])
def test_it_stops_conservative_dpo_at_the_assumed_certainty(flip_rate: float) -> None:
    params = FlippedDPO(beta=0.1, flip_rate=flip_rate)
    best = math.log((1 - flip_rate) / flip_rate) / 0.1
    _, d_chosen, _ = checks.gradients(lambda x: losses.cdpo(x, params), one(-20 + best, -20, -20, -20))
    assert d_chosen.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "nothing"), [("cdpo", {"flip_rate": 0.0}), ("robust", {"flip_rate": 0.0}), ("rpo", {"nll_weight": 0.0})]
)
def test_it_is_dpo_without_what_it_adds(method: str, nothing: dict[str, float]) -> None:
    logps = checks.pair_logps(7)
    equal(getattr(losses, method)(logps, catalog.parse(method, nothing)), losses.dpo(logps, DPO()))


def test_it_asks_more_of_a_pair_with_a_higher_grade() -> None:
    """The optimum moves by margin_scale per step of the grade: at βh = δm the loss is that of no evidence."""
    params = DPO(beta=0.1, margin_scale=0.5)
    assert losses.dpo(one(-5, -20, -20, -20, margin=3.0), params).tolist() == [pytest.approx(math.log(2))]
    assert losses.dpo(one(-5, -20, -20, -20, margin=0.0), params).item() < math.log(2)


def test_it_gives_ipos_least_loss_at_half_of_one_over_beta() -> None:
    assert losses.ipo(one(-5, -20, -10, -20), IPO(beta=0.1)).tolist() == [0.0]
    assert losses.ipo(one(-10, -20, -20, -20, n_chosen=2.0), IPO(beta=0.1, per_token=True)).tolist() == [0.0]


@given(st.floats(-20, 20), st.floats(1.05, 20))
def test_it_gives_the_outcomes_of_a_pair_probabilities_that_sum_to_one(h: float, nu: float) -> None:
    for name, params in (("rao_kupper", TieDPO(beta=1.0, nu=nu)), ("davidson", DavidsonDPO(beta=1.0, nu=nu))):
        outcomes = (1.0, 0.0), (0.0, 0.0), (0.5, 1.0)
        logps = [one(h - 50, -50, -50, -50, label, tie_share=tie) for label, tie in outcomes]
        assert sum(math.exp(-getattr(losses, name)(x, params).item()) for x in logps) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("method", "nu"), [("rao_kupper", 1.01), ("davidson", 0.01)])
def test_it_comes_near_dpo_where_ties_are_rare(method: str, nu: float) -> None:
    logps = replace(checks.pair_logps(8), tie_share=torch.zeros(40).double())
    found = getattr(losses, method)(logps, catalog.parse(method, {"nu": nu}))
    torch.testing.assert_close(found, losses.dpo(logps, DPO()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("method", WITH_TIES)
def test_it_draws_tied_responses_together(method: str) -> None:
    """A tie is no evidence for either side: the loss is least, and flat, at no gap, and a wide gap is pulled in."""
    loss = loss_of(method)
    tie = {"label": 0.5, "tie_share": 1.0}
    _, apart, _ = checks.gradients(loss, one(-10, -20, -20, -20, **tie))
    _, together, _ = checks.gradients(loss, one(-20, -20, -20, -20, **tie))
    assert apart.item() > 0.01
    assert together.item() == pytest.approx(0, abs=1e-12)


def test_it_believes_a_label_and_a_tie_share_that_contradict_each_other_in_part() -> None:
    """Labels may come from a model of the people; the shares of votes are made to sum to one."""
    label, tie_share = torch.tensor([1.0, 0.9]).double(), torch.tensor([1.0, 0.5]).double()
    wins, ties, defeats = losses.outcomes(label, tie_share)
    assert (wins + ties + defeats).tolist() == pytest.approx([1.0, 1.0])
    assert wins.tolist() == pytest.approx([0.5 / 1.5, 0.65 / 1.15])
    assert defeats.tolist() == [0, 0]


@given(st.floats(0, 1), st.floats(0, 1))
def test_it_divides_the_votes(label: float, tied: float) -> None:
    found = losses.outcomes(torch.tensor(label).double(), torch.tensor(tied).double())
    won, neither, lost = (share.item() for share in found)
    assert won + neither + lost == pytest.approx(1)
    assert min(won, neither, lost) >= 0
    if tied / 2 <= label <= 1 - tied / 2:
        assert won + neither / 2 == pytest.approx(label)


def test_it_is_apo_zeros_loss_of_a_pair_on_its_halves() -> None:
    """(1 − σ(β log-ratio(c))) + σ(β log-ratio(r)): eq. 7 of the paper is written for pairs."""
    good, bad = alone(-3, -5, 1.0), alone(-9, -4, 0.0)
    found = losses.apo_zero(good, APOZero()) + losses.apo_zero(bad, APOZero())
    assert found.tolist() == [pytest.approx(1 - 1 / (1 + math.exp(-0.2)) + 1 / (1 + math.exp(0.5)))]


def test_it_values_a_response_by_how_far_it_is_beyond_the_kl() -> None:
    at_kl = losses.kto(alone(-3, -5, 1.0, kl=2.0), KTO())
    assert at_kl.tolist() == [0.5]
    assert losses.kto(alone(-3, -5, 1.0, kl=0.0), KTO()).item() < 0.5
    assert losses.kto(alone(-3, -5, 0.0, kl=0.0), KTO()).item() > 0.5
