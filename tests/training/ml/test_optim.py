import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import catalog
from training.ml import optim

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
