"""Checks of the mathematics as plain functions: the tests call them, and test_mutations calls them on planted mistakes."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from tests.training.ml import formulas
from tests.training.ml.cases import POLICY_METHODS, examples_for, make_learner, shake, some_pairs, write_snapshot
from tests.training.ml.cases import line as case_line
from training import catalog
from training.ml import batches, data, logprobs, loop, losses, policy, rows, scores
from training.ml.data import Example, Pair, Single
from training.ml.losses import Logps, PairLogps, ResponseLogps
from training.ml.progress import Progress
from training.ml.rows import Tokens
from training.ml.scores import Memory
from training.ml.watch import Watch

# Parameters that leave nothing of a loss out, beside the defaults.
FULL: dict[str, dict[str, Any]] = {
    "dpo": {"margin_scale": 0.3, "beta": 0.4},
    "cdpo": {"margin_scale": 0.3, "flip_rate": 0.25},
    "robust": {"margin_scale": 0.3, "flip_rate": 0.25},
    "ipo": {"per_token": True, "beta": 0.7},
    "hinge": {"margin_scale": 0.3},
    "rpo": {"margin_scale": 0.3, "nll_weight": 1.5},
    "dpo_norm": {"beta": 3.0},
    "simpo": {"beta": 2.5, "gamma": 1.4},
    "orpo": {"odds_weight": 0.7},
    "rao_kupper": {"beta": 0.3, "nu": 1.7},
    "davidson": {"beta": 0.3, "nu": 0.6},
    "kto": {"beta": 0.3, "good_weight": 1.3, "bad_weight": 0.7},
    "apo_zero": {"beta": 0.3, "good_weight": 1.3, "bad_weight": 0.7},
    "sft": {},
}


def parameters(method: str) -> list[catalog.Common]:
    return [catalog.parse(method, {}), catalog.parse(method, FULL[method])]


def pair_logps(seed: int, n: int = 40) -> PairLogps:
    """n pairs of random log-probabilities, lengths, labels, ties and grades, in float64."""
    rng = random.Random(seed)
    n_chosen, n_rejected = ([rng.randint(1, 30) for _ in range(n)] for _ in range(2))

    def logps(lengths: list[int]) -> list[float]:
        return [-length * rng.uniform(0.1, 3) for length in lengths]

    ties = [rng.choice([0.0, 1.0, rng.random()]) for _ in range(n)]
    labels = [tie / 2 + rng.choice([0.0, 1.0, rng.random()]) * (1 - tie) for tie in ties]
    grades = [rng.uniform(-3, 3) for _ in range(n)]
    parts = [logps(n_chosen), logps(n_rejected), logps(n_chosen), logps(n_rejected)]
    values = [*parts, n_chosen, n_rejected, labels, ties, grades]
    return PairLogps(*(torch.tensor(value, dtype=torch.float64) for value in values))


def response_logps(seed: int, n: int = 40) -> ResponseLogps:
    """n responses, good and bad, and a KL."""
    pairs = pair_logps(seed, n)
    is_good = torch.tensor([float(random.Random(seed + i).random() < 0.5) for i in range(n)], dtype=torch.float64)
    kl = torch.tensor(1.3, dtype=torch.float64)
    return ResponseLogps(pairs.policy_chosen, pairs.reference_chosen, pairs.n_chosen, is_good, kl)


def logps_for(method: str, seed: int = 0, n: int = 40) -> Logps:
    is_paired = batches.SOURCES[catalog.get(method).source] is batches.PAIRS
    return pair_logps(seed, n) if is_paired else response_logps(seed, n)


def policy_fields(logps: Logps) -> list[str]:
    return [name for name in vars(logps) if name.startswith("policy")]


def gradients(f: Callable[[Any], torch.Tensor], logps: Logps) -> list[torch.Tensor]:
    """The loss (B,) and its derivatives (B,) by each of the policy's log-probabilities."""
    found = {name: getattr(logps, name).clone().requires_grad_() for name in policy_fields(logps)}
    loss = f(replace(logps, **found))
    d_logps = torch.autograd.grad(loss.sum(), list(found.values()), allow_unused=True, materialize_grads=True)
    return [loss.detach(), *d_logps]


def follows_its_formula(method: str) -> None:
    """Values and gradients of a loss are those of the formula written by hand."""
    for seed, params in enumerate(parameters(method)):
        logps = logps_for(method, seed)
        ours = gradients(partial(getattr(losses, method), params=params), logps)
        theirs = gradients(partial(getattr(formulas, method), params=params), logps)
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def all_follow_their_formulas() -> None:
    for method in POLICY_METHODS:
        follows_its_formula(method)


def copy_adapter(source: PeftModel, target: PeftModel) -> None:
    values = dict(source.named_parameters())
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(values[name])


def plain_logp(model: PeftModel, prompt: Tokens, response: Tokens) -> torch.Tensor:
    """log P(response | prompt) by the model's own forward pass on this sequence alone, in float64."""
    ids = torch.tensor([prompt + response])
    logps = model(ids).logits[0].log_softmax(-1)
    return sum(logps[len(prompt) + i - 1, token] for i, token in enumerate(response))


def plain_loss(
    model: PeftModel, examples: list[Example], method: str, params: catalog.Common, reference: float
) -> torch.Tensor:
    """The step's loss: every sequence alone, the formula by hand, weights, the mean."""

    def column(values: list[Any]) -> torch.Tensor:
        return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values])

    def scores(responses: list[tuple[Tokens, Tokens]]) -> torch.Tensor:
        return torch.stack([plain_logp(model, *sequence) for sequence in responses])

    logps: Logps
    if isinstance(examples[0], Single):
        singles: list[Any] = examples
        with torch.no_grad():
            others = [scores([(x.prompt, x.mismatch)]) - reference for x in singles if x.mismatch]
            kl = torch.cat(others).mean() if others else torch.zeros(())
            assert kl > 1 or not others
        policy_logps = scores([(x.prompt, x.response) for x in singles])
        lengths, good = column([len(x.response) for x in singles]), column([x.is_good for x in singles])
        logps = ResponseLogps(policy_logps, torch.full_like(lengths, reference), lengths, good, kl.clamp(min=0))
    else:
        pairs: list[Any] = examples
        chosen, rejected = (
            scores([(x.prompt, x.chosen) for x in pairs]),
            scores([(x.prompt, x.rejected) for x in pairs]),
        )
        base = torch.full_like(chosen, reference)
        n_chosen, n_rejected = column([len(x.chosen) for x in pairs]), column([len(x.rejected) for x in pairs])
        labels, ties, margins = (column([getattr(x, name) for x in pairs]) for name in ("label", "tie_share", "margin"))
        logps = PairLogps(chosen, rejected, base, base - 1, n_chosen, n_rejected, labels, ties, margins)
    return (column([x.weight for x in examples]) * getattr(formulas, method)(logps, params)).mean()


def reference_of(examples: list[Example], value: float) -> dict[tuple[Tokens, Tokens], float]:
    """`value`, and one less for a rejected response: a reference that is taken for the other one shows."""
    found = {}
    for example in examples:
        for one in (example, *example.others):
            for i, response in enumerate(one.responses):
                found[one.prompt, response] = value - i
    return found


def has_the_plain_gradient(base: policy.Base, plain: PeftModel, method: str, watch: Watch, budget: int = 60) -> None:
    """Loss and gradient of packed, shared-prompt rows are those of every sequence alone and the formula by hand.

    `plain` is the same model with the same adapter's shape, as transformers and peft make it.
    """
    examples = apart(examples_for(method))
    value = -60.0 if isinstance(examples[0], Single) else -20.0  # so low that KTO's estimate of the KL is not 0
    learner, ours = make_learner(base, examples, method=method, reference=reference_of(examples, value), **FULL[method])
    shake(ours)
    copy_adapter(ours, plain)
    learner.budget = budget
    metrics = loop.accumulate(learner, examples, watch)
    loss = plain_loss(plain, examples, method, learner.params, value)
    loss.backward()
    torch.testing.assert_close(metrics["loss"], loss.item(), rtol=1e-9, atol=1e-12)
    for found, expected in zip(policy.parameters(ours), policy.parameters(plain), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-7, atol=1e-11)


def apart(examples: list[Any]) -> list[Any]:
    """Without the pair whose chosen response is rejected in another: reference_of can give it only one value."""
    return [example for i, example in enumerate(examples) if i != 1 or isinstance(example, Single)]


def gradient(learner: loop.Learner, examples: list[Any], watch: Watch) -> torch.Tensor:
    loop.accumulate(learner, examples, watch)
    return torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])


def does_not_depend_on_packing(base: policy.Base, method: str, watch: Watch) -> None:
    """Eight passes of one example leave the gradient of one pass of eight."""
    examples = examples_for(method)
    learner, model = make_learner(base, examples, method=method, **FULL[method])
    shake(model)
    learner.budget = 4096
    whole = gradient(learner, examples, watch)
    learner.budget = 1
    torch.testing.assert_close(gradient(learner, examples, watch), whole, rtol=1e-9, atol=1e-13)


def predicts_each_token_from_the_one_before() -> None:
    """Of every response of a pack: its predictors stand before its tokens, its positions go on where the prompt ends."""
    items = some_pairs()
    for batch in rows.pack(items, 60):
        ids, positions = batch.input_ids[0], batch.position_ids[0]
        for (prompt, response), owner in batch.order.items():
            predictors = batch.predictors[batch.owners == owner]
            assert batch.targets[batch.owners == owner].tolist() == list(response)
            assert ids[predictors].tolist() == [prompt[-1], *response[:-1]]
            assert positions[predictors].tolist() == list(range(len(prompt) - 1, len(prompt) + len(response) - 1))


def scores_responses_as_alone(base: policy.Base, plain: PeftModel, budget: int = 512) -> None:
    """A response's log-probability in a pack of many is that of the plain model on its sequence alone."""
    _, ours = make_learner(base, some_pairs())
    shake(ours)
    copy_adapter(ours, plain)
    for batch in rows.pack(some_pairs(), budget):
        with torch.no_grad():
            found = logprobs.response_logps(base.model, batch)
            expected = torch.stack([plain_logp(plain, *sequence) for sequence in batch.order])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def weighs_examples(base: policy.Base, method: str, watch: Watch) -> None:
    """An example of weight 3 beside one of weight 0 has one and a half times the gradient it has alone."""
    first, second = (replace(x, weight=1.0) for x in examples_for(method)[2:4])
    if isinstance(first, Single):  # the KL is of all responses of a step: here of none
        first, second = replace(first, mismatch=None), replace(second, mismatch=None)
    learner, model = make_learner(base, [first, second], method=method, **FULL[method])
    shake(model)
    alone = gradient(learner, [first], watch)
    assert alone.any()
    weighed = gradient(learner, [replace(first, weight=3.0), replace(second, weight=0.0)], watch)
    torch.testing.assert_close(weighed, 1.5 * alone, rtol=1e-9, atol=1e-13)


def reads_what_people_saw(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Prompt and response are the tokens of the chat template, up to the end of the turn, and nobody changes sides."""
    line = case_line(1, prompt="Hello there", chosen="Good morning.", rejected="Go away.")
    (found,) = data.read(write_snapshot(folder, [line], []), tokenizer, 512).train
    assert isinstance(found, Pair)
    for text, tokens in (("Good morning.", found.chosen), ("Go away.", found.rejected)):
        turns = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": text}]
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
        assert [*found.prompt, *tokens] == whole[: len(found.prompt) + len(tokens)]
        assert tokens[-1] == tokenizer.eos_token_id
    halves = {half.response: half.is_good for half in data.split(found)}
    assert halves == {found.chosen: True, found.rejected: False}


def starts_at_ln_2(base: policy.Base, folder: Path, watch: Watch) -> None:
    """With a new adapter policy and reference agree to the last bit, whatever they are packed with."""
    pairs = some_pairs()
    memory = Memory(folder, "base")
    known = scores.score(base.model, pairs, memory, budget=40, watch=watch, progress=Progress())
    learner, _ = make_learner(base, pairs, reference=known)
    assert abs(loop.accumulate(learner, pairs, watch)["loss"] - math.log(2)) < 1e-7
