import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.ml.cases import make_learner, some_pairs
from training import catalog
from training.ml import optim, policy

PEAK = 1e-4


def rates(n_steps: int, **params: object) -> list[float]:
    parsed = catalog.parse("dpo", {"learning_rate": PEAK} | params)
    return [optim.learning_rate(parsed, step, n_steps) / PEAK for step in range(1, n_steps + 1)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [0.5, 1, 1, 1]), ("linear", [0.5, 1, 2 / 3, 1 / 3]), ("cosine", [0.5, 1, 0.75, 0.25])],
)
def test_it_warms_up_and_falls(schedule: str, expected: list[float]) -> None:
    assert rates(4, schedule=schedule, warmup=0.25) == pytest.approx(expected)


@given(st.integers(1, 60), st.floats(0, 0.9), st.sampled_from(sorted(optim.SCHEDULES)))
def test_it_wastes_no_step_on_a_rate_of_zero_or_above_the_peak(n_steps: int, warmup: float, schedule: str) -> None:
    assert all(0 < rate <= 1 for rate in rates(n_steps, warmup=warmup, schedule=schedule))


def test_it_has_the_schedules_of_the_menu() -> None:
    assert set(catalog.Common.__dataclass_fields__["schedule"].metadata["choices"]) == set(optim.SCHEDULES)


def test_it_steps_as_adamw_is_written() -> None:
    params = catalog.parse("dpo", {"learning_rate": 0.01, "weight_decay": 0.1})
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    expected, m, v = weight.detach().clone(), torch.zeros(2), torch.zeros(2)
    adamw = optim.optimizer([weight], params)
    for t, gradient in enumerate((torch.tensor([0.5, 0.1]), torch.tensor([-0.3, 0.2])), start=1):
        weight.grad = gradient.clone()
        adamw.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected = expected * (1 - 0.01 * 0.1)
        expected = expected - 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected)


def test_it_has_the_optimizers_of_the_menu() -> None:
    assert set(catalog.Common.__dataclass_fields__["optimizer"].metadata["choices"]) == set(optim.OPTIMIZERS)


def test_it_steps_as_schedule_free_adamw_is_written() -> None:
    """Defazio et al. 2024, arXiv 2405.15682, algorithm 1, line by line in float64, with warm-up."""
    gamma, decay, beta1, beta2, n_warmup = 0.05, 0.1, 0.9, 0.999, 2
    params = catalog.parse("dpo", {"learning_rate": gamma, "weight_decay": decay, "optimizer": "schedule_free"})
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    weight = torch.nn.Parameter(start.clone())
    optimizer = optim.optimizer([weight], params)
    z, x, v, sum_of_squares = start.clone(), start.clone(), torch.zeros(3, dtype=torch.float64), 0.0
    for t in range(1, 7):
        y = (1 - beta1) * z + beta1 * x
        torch.testing.assert_close(weight.detach(), y)
        gradient = 2 * y + torch.tensor([0.3, -0.1, t / 10], dtype=torch.float64)
        v = beta2 * v + (1 - beta2) * gradient**2
        gamma_t = gamma * (1 - beta2**t) ** 0.5 * min(1, t / n_warmup)
        z = z - gamma_t * gradient / (v.sqrt() + 1e-8) - gamma_t * decay * y
        sum_of_squares += gamma_t**2
        c = gamma_t**2 / sum_of_squares
        x = (1 - c) * x + c * z
        weight.grad = gradient.clone()
        optim.set_rate(optimizer, gamma * min(1, t / n_warmup))
        optimizer.step()
    before = weight.detach().clone()
    with optim.result_of(optimizer):
        torch.testing.assert_close(weight.detach(), x)
    assert torch.equal(weight.detach(), before)
    optim.finish(optimizer)
    optim.finish(optimizer)
    torch.testing.assert_close(weight.detach(), x)


def test_it_leaves_parameters_of_other_optimizers_as_they_are() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    adamw = optim.optimizer([weight], catalog.parse("dpo", {}))
    weight.grad = torch.ones(2)
    adamw.step()
    before = weight.detach().clone()
    with optim.result_of(adamw):
        assert torch.equal(weight.detach(), before)
    optim.finish(adamw)
    assert torch.equal(weight.detach(), before)


def test_it_keeps_the_rate_at_its_peak_where_an_average_takes_the_schedules_place() -> None:
    assert rates(4, optimizer="schedule_free", schedule="cosine", warmup=0.25) == pytest.approx([0.5, 1, 1, 1])


@pytest.mark.parametrize("rank", [4, 256])
def test_it_moves_b_sixteen_times_as_fast_with_lora_plus(base32: policy.Base, rank: int) -> None:
    """Also where the rank is larger than a layer, whose matrices no shape tells apart then."""
    learner, model = make_learner(base32, some_pairs(), optimizer="lora_plus", lora_rank=rank)
    optim.set_rate(learner.optimizer, 1e-3)
    rate_of = {id(p): group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}
    found = {name: rate_of[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert len(found) == len(learner.parameters) > 0
    assert all(rate == pytest.approx(0.016 if "lora_B" in name else 0.001) for name, rate in found.items())
