"""A reward model's rewards against a plain model's, and its loss against mathematics by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel

from tests.training.ml.cases import exact_norms, pair, shake, some_pairs
from training.catalog import RewardModel, TieDPO
from training.ml import policy
from training.ml.data import Pair
from training.ml.losses import PairLogps, rao_kupper
from training.ml.reward_head import (
    Head,
    Rewards,
    begin_ties,
    describe,
    first_theta,
    gather,
    loss_by,
    response_rewards,
    reward_model,
)
from training.ml.rows import pack

number = st.floats(-8, 8)
share = st.floats(0, 1)
PLAIN = RewardModel(centre=0.0)


def one(chosen: float, rejected: float, label: float = 1.0, tie_share: float = 0.0, margin: float = 0.0) -> Rewards:
    values = (chosen, rejected, label, tie_share, margin)
    return Rewards(*(torch.tensor([value], dtype=torch.float64) for value in values))


def loss(rewards: Rewards, params: RewardModel, theta: float | None = None) -> float:
    eta = None if theta is None else torch.tensor(math.log(theta), dtype=torch.float64)
    return reward_model(rewards, params, eta).item()


@given(number, number, share)
def test_it_is_bradley_and_terry_where_ties_count_half(chosen: float, rejected: float, label: float) -> None:
    wins = math.exp(chosen) / (math.exp(chosen) + math.exp(rejected))
    expected = -label * math.log(wins) - (1 - label) * math.log(1 - wins)
    assert loss(one(chosen, rejected, label, 0.3), PLAIN) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(number, number, st.floats(1.01, 20), share, share)
def test_it_is_rao_and_kupper_with_a_threshold(a: float, b: float, theta: float, tied: float, of_rest: float) -> None:
    first, second = math.exp(a), math.exp(b)
    wins, loses = first / (first + theta * second), second / (second + theta * first)
    ties = first * second * (theta**2 - 1) / ((first + theta * second) * (second + theta * first))
    assert wins + loses + ties == pytest.approx(1)
    won = (1 - tied) * of_rest
    expected = -won * math.log(wins) - (1 - tied - won) * math.log(loses) - tied * math.log(ties)
    found = loss(one(a, b, won + tied / 2, tied), PLAIN, theta)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)


@given(number, number, st.floats(0, 3), st.floats(0, 2), st.floats(0, 1))
def test_it_asks_for_the_margin_and_keeps_rewards_centred(
    a: float, b: float, margin: float, scale: float, centre: float
) -> None:
    params = RewardModel(margin_scale=scale, centre=centre)
    expected = math.log1p(math.exp(-(a - b - scale * margin))) + centre * (a + b) ** 2
    assert loss(one(a, b, margin=margin), params) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("label", [0.9, 0.1, 0.6])
def test_it_divides_the_votes_as_the_tie_aware_policies_do(label: float) -> None:
    """Also where a label and its share of ties contradict each other: 0.9 with half of the votes for neither."""
    scores = dict(zip(("policy_chosen", "policy_rejected"), torch.tensor([[1.5], [0.5]]).double(), strict=True))
    zero, ones = torch.zeros(1).double(), torch.ones(1).double()
    said = {"label": label * ones, "tie_share": 0.5 * ones, "margin": zero}
    pairs = PairLogps(**scores, reference_chosen=zero, reference_rejected=zero, n_chosen=ones, n_rejected=ones, **said)
    expected = rao_kupper(pairs, TieDPO(beta=1.0, nu=2.0)).item()
    assert loss(one(1.5, 0.5, label, 0.5), PLAIN, 2.0) == pytest.approx(expected)


def test_it_begins_with_the_threshold_that_equal_responses_tie_at() -> None:
    pairs = [pair([3], [4], [5], tie_share=0.5, weight=2.0), pair([3], [6], [7], weight=2.0)]
    theta = first_theta(pairs)
    assert (theta - 1) / (theta + 1) == pytest.approx((1 + 0.5) / 5)
    assert first_theta([replace(pairs[1], weight=1e6)]) > 1


@pytest.mark.parametrize(("ties", "n_trained"), [("learned", 2), ("given", 1), ("half", 1)])
def test_it_learns_the_threshold_or_takes_it_as_given(ties: str, n_trained: int) -> None:
    head = Head(4, dtype=torch.float64)
    pairs = [pair([3], [4], [5], tie_share=0.125, weight=3.0), pair([3], [4], [5], tie_share=0.125)]
    begin_ties(head, RewardModel(ties=ties, tie_theta=2.5), pairs)
    assert len(head.trained()) == n_trained
    found = None if head.eta is None else pytest.approx(head.eta.exp().item())
    assert found == {"learned": first_theta(pairs), "given": 2.5, "half": None}[ties]


def test_it_learns_the_share_of_ties() -> None:
    """At equal rewards the threshold with the least loss ties as often as people do."""
    head = Head(2, dtype=torch.float64)
    head.set_theta(1.2, is_learned=True)
    people = one(0.0, 0.0, label=0.5, tie_share=0.4)
    optimizer = torch.optim.AdamW(head.trained(), lr=1e-3, weight_decay=0.0)
    for _step in range(400):
        optimizer.zero_grad()
        loss_by(head)(people, PLAIN).sum().backward()
        optimizer.step()
    assert head.eta is not None
    theta = head.eta.exp().item()
    assert (theta - 1) / (theta + 1) == pytest.approx(0.4, abs=0.01)


@pytest.fixture
def plain(tiny_model_dir: Path) -> PeftModel:
    model = AutoModel.from_pretrained(tiny_model_dir, dtype=torch.float64, attn_implementation="sdpa")
    return get_peft_model(
        exact_norms(model), LoraConfig(r=4, lora_alpha=32, use_rslora=True, target_modules="all-linear")
    )


def prepare(base: policy.Base, plain: PeftModel) -> tuple[PeftModel, Head, Head]:
    """The same adapter and head, twice."""
    ours = policy.add_adapter(base, RewardModel(lora_rank=4))
    shake(ours)
    values = {name.replace(".model.model.", ".model."): parameter for name, parameter in ours.named_parameters()}
    heads = Head(64, dtype=torch.float64), Head(64, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(values[name])
        for head in heads:
            head.weight.copy_(torch.randn(1, 64, generator=torch.Generator().manual_seed(2)))
    return ours, *heads


def plain_rewards(model: PeftModel, head: Head, pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """By the textbook: one sequence, the head on its last position."""

    def of(response: str) -> torch.Tensor:
        sequences = [torch.tensor([pair.prompt + getattr(pair, response)]) for pair in pairs]
        return torch.stack([model(ids, use_cache=False).last_hidden_state[0, -1] @ head.weight[0] for ids in sequences])

    return of("chosen"), of("rejected")


@pytest.mark.parametrize("budget", [20, 512])
def test_it_has_the_rewards_and_the_gradient_of_a_plain_model(base: policy.Base, plain: PeftModel, budget: int) -> None:
    pairs = [replace(one, label=0.8, tie_share=0.2, margin=1.0) for one in some_pairs()]
    ours, our_head, their_head = prepare(base, plain)
    params, eta = RewardModel(margin_scale=0.5), torch.tensor(0.3).double()
    total = torch.zeros((), dtype=torch.float64)
    for batch in pack(pairs, budget, keep_last=True):
        members = [pairs[i] for i in batch.items]
        rewards = gather(response_rewards(base.model, our_head, batch), batch, members, {}, total)
        for found, expected in zip(
            (rewards.chosen, rewards.rejected), plain_rewards(plain, their_head, members), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        part = reward_model(rewards, params, eta).sum()
        part.backward()
        total = total + part.detach()
    label, tie_share, margin = (torch.full((len(pairs),), value, dtype=torch.float64) for value in (0.8, 0.2, 1.0))
    expected = reward_model(
        Rewards(*plain_rewards(plain, their_head, pairs), label, tie_share, margin), params, eta
    ).sum()
    expected.backward()
    torch.testing.assert_close(total, expected.detach(), rtol=1e-10, atol=1e-10)
    assert our_head.weight.grad is not None
    torch.testing.assert_close(our_head.weight.grad, their_head.weight.grad, rtol=1e-9, atol=1e-10)
    theirs = dict(plain.named_parameters())
    compared = [
        (parameter.grad, theirs[name.replace(".model.model.", ".model.")].grad)
        for name, parameter in ours.named_parameters()
        if parameter.requires_grad
    ]
    assert len(compared) == 2 * 7 * 2
    for mine, wanted in compared:
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-10)


def test_it_starts_at_ln_2_and_tells_what_it_learns_from(base: policy.Base) -> None:
    pairs = [*some_pairs(4), replace(some_pairs(1)[0], label=0.5, tie_share=1.0)]
    (batch,) = pack(pairs, 512, keep_last=True)
    members = [pairs[i] for i in batch.items]
    policy.add_adapter(base, RewardModel(lora_rank=4))
    rewards = gather(response_rewards(base.model, Head(64), batch), batch, members, {}, torch.zeros(()))
    assert reward_model(rewards, RewardModel()).tolist() == pytest.approx([math.log(2)] * 5)
    told = describe(rewards, members, RewardModel().reward)
    assert told["accuracy"].tolist() == [0.5] * 4  # the tie has no right side
    assert set(told) == {"accuracy", "margin", "chosen_reward", "rejected_reward"}
