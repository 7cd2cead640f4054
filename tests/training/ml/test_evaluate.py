import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from tests.training import rows
from tests.training.ml.cases import pair
from training import catalog, guards
from training.catalog import Reward
from training.heldout import compare
from training.ml import batches, evaluate
from training.ml.conduct import Question
from training.ml.data import end_of_turn
from training.ml.evaluate import Version
from training.ml.rows import pack
from training.ml.scores import Alone, Scores
from training.rules import Rules

PAIRS = [pair([1], [2], [3], id="a", n_chars_chosen=20, n_chars_rejected=7), pair([1], [3], [2], id="b", weight=0.5)]
REFERENCE: Scores = {((1,), (2,)): -10.0, ((1,), (3,)): -20.0}
POLICY: Scores = {((1,), (2,)): -8.0, ((1,), (3,)): -25.0}


def test_it_measures_how_much_more_the_policy_prefers_the_chosen_response_than_the_reference_does() -> None:
    assert evaluate.margins(PAIRS, POLICY, REFERENCE, Reward(0.1)) == pytest.approx([0.1 * (2 + 5), -0.1 * (2 + 5)])


def test_it_measures_by_the_token_where_the_method_does() -> None:
    pairs = [pair([1], [2, 2, 2, 2], [3])]
    reference: Scores = {((1,), (2, 2, 2, 2)): -10.0, ((1,), (3,)): -20.0}
    policy: Scores = {((1,), (2, 2, 2, 2)): -6.0, ((1,), (3,)): -18.0}
    assert evaluate.margins(pairs, policy, reference, Reward(5.0, per_token=True)) == [5.0 * (4 / 4 - 2)]


@pytest.mark.parametrize("method", ["dpo_norm", "simpo"])
def test_it_lets_the_gate_see_rewards_per_token_on_their_own_scale(method: str) -> None:
    """Right for 65 of 100 pairs, by 0.1 nats a token: of 60 tokens the sum would be sure of all of them."""
    pairs = [pair([i], [1] * 60, [2] * 60, prompt_sha256=str(i)) for i in range(100)]
    reference: Scores = {(one.prompt, response): -90.0 for one in pairs for response in one.responses}
    moved = {(one.prompt, one.chosen): 0.1 * 60 * (1 if i < 65 else -1) for i, one in enumerate(pairs)}
    policy = {key: score + moved.get(key, 0.0) for key, score in reference.items()}
    margins = evaluate.margins(pairs, policy, reference, catalog.parse(method, {}).reward)
    score = compare(np.array(margins), np.zeros(100), [one.prompt_sha256 for one in pairs])
    found = guards.check(guards.read(rows.POLICY), score, Rules())
    assert {guard.name for guard in found if guard.passed} >= {"brier", "excess"}


def test_it_finds_no_margin_where_policy_and_reference_agree() -> None:
    assert evaluate.margins(PAIRS, REFERENCE, REFERENCE, Reward(0.1)) == [0.0, 0.0]


def test_it_reports_both_adapters_beside_each_pair() -> None:
    first, second = evaluate.report(PAIRS, [0.7, -0.7], [0.1, 0.2])
    assert (first["pair"], first["margin"], first["incumbent_margin"]) == ("a", 0.7, 0.1)
    assert (first["chars_chosen"], first["chars_rejected"]) == (20, 7)
    assert (second["pair"], second["margin"], second["weight"]) == ("b", -0.7, 0.5)


def test_it_measures_as_the_steps_do_how_likely_chosen_responses_have_become() -> None:
    pairs = [pair([1], [2, 2, 2], [3]), pair([4], [5], [6])]
    reference: Scores = {((1,), (2, 2, 2)): -10.0, ((4,), (5,)): -3.0}
    policy: Scores = {((1,), (2, 2, 2)): -14.0, ((4,), (5,)): -1.0}
    assert evaluate.kl_chosen(pairs, policy, reference) == pytest.approx((-4 / 3 + 2) / 2)
    (batch,) = pack(pairs, 64)
    members = [pairs[i] for i in batch.items]
    reference |= {((1,), (3,)): 0.0, ((4,), (6,)): 0.0}
    scores = torch.tensor([(reference | policy)[key] for key in batch.order])
    step = batches.describe_pairs(batches.gather_pairs(scores, batch, members, reference), members, Reward())
    assert evaluate.kl_chosen(pairs, policy, reference) == pytest.approx(step["kl_chosen"].mean().item())
    assert evaluate.kl_chosen([], policy, reference) is None


def test_it_describes_every_version_and_puts_their_answers_side_by_side(tokenizer: PreTrainedTokenizerBase) -> None:
    end = end_of_turn(tokenizer)

    def said(*texts: str) -> list[list[int]]:
        return [[*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts]

    asked = [Question([{"role": "user", "content": text}], (1, 2), text == "fixed") for text in ("fixed", "theirs")]
    looping = said("It is. " * 6, "Sure.")
    looping[0].pop()
    found = evaluate.describe(
        {
            "new": Version({}, looping, 21.0),
            "base": Version({}, said("I can't help with that.", "I can't help with that."), 20.0),
        },
        asked,
        tokenizer,
    )
    assert found["perplexity"] == {"new": 21.0, "base": 20.0}
    assert found["refusal_rate"] == {"new": 0.0, "base": 1.0}
    assert found["unfinished"] == {"new": 0.5, "base": 0.0}
    assert found["repetition"]["new"] > 0.5
    assert found["repetition"]["base"] == 0
    first, second = found["samples"]
    assert first["prompt"] == [{"role": "user", "content": "fixed"}]
    assert (first["base"], second["new"]) == ("I can't help with that.", "Sure.")
    assert (first["is_fixed"], second["is_fixed"]) == (True, False)
    assert first["n_tokens"]["new"] == len(looping[0])


def test_it_compares_rewards_of_answers_to_the_same_prompt() -> None:
    new, other = [Alone((1,), (5, 2)), Alone((3,), (6, 2))], [Alone((1,), (7, 2)), Alone((3,), (8, 2))]
    rewards: Scores = {((1,), (5, 2)): 1.0, ((1,), (7, 2)): 0.0, ((3,), (6, 2)): -2.0, ((3,), (8, 2)): -1.0}
    assert evaluate.compare(new, other, rewards)["win_rate"] == pytest.approx(0.5)  # σ(1) and σ(−1)
