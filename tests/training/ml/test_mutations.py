"""Mistakes planted one at a time in losses, masks and borders: the suite's own checks must catch each of them.

A mutant is the text of a function with a piece replaced, compiled and put in the function's place for as long as the
check runs. The unchanged functions pass the same checks in the other tests of this folder.
"""

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.training.ml import checks
from training.ml import attention, batches, block, data, logprobs, loop, losses, rows, scores
from training.ml.losses import PairLogps


class Bench:
    """What checks may need, made when it is asked for."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.get = request.getfixturevalue


Check = Callable[[Bench], None]


def formulas(bench: Bench) -> None:
    checks.all_follow_their_formulas()


def borders(bench: Bench) -> None:
    checks.predicts_each_token_from_the_one_before()


def alone(bench: Bench) -> None:
    checks.scores_responses_as_alone(bench.get("base"), bench.get("plain"))


def plain(bench: Bench, method: str = "dpo") -> None:
    checks.has_the_plain_gradient(bench.get("base"), bench.get("plain"), method, bench.get("watch"))


def ties(bench: Bench) -> None:
    plain(bench, "davidson")


def thumbs(bench: Bench) -> None:
    plain(bench, "kto")


def packing(bench: Bench) -> None:
    checks.does_not_depend_on_packing(bench.get("base"), "dpo", bench.get("watch"))


def weights(bench: Bench) -> None:
    checks.weighs_examples(bench.get("base"), "dpo", bench.get("watch"))


def in_chunks(bench: Bench) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "CHUNK", 2)
        alone(bench)


def texts(bench: Bench) -> None:
    checks.reads_what_people_saw(bench.get("tmp_path"), bench.get("tokenizer"))


def start(bench: Bench) -> None:
    checks.starts_at_ln_2(bench.get("base"), bench.get("tmp_path"), bench.get("watch"))


@contextmanager
def mutated(function: Any, *changes: tuple[str, str]) -> Iterator[None]:
    """The function with pieces of its text replaced, each of which must be there exactly once."""
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in changes:
        assert source.count(old) == 1, f"{old!r} is not in {function.__name__} once: plant the mistake anew"
        source = source.replace(old, new)
    space = dict(function.__globals__)
    exec(compile(source, f"<mutant of {function.__name__}>", "exec"), space)  # noqa: S102
    made = space[function.__name__]
    mutant: Any = getattr(made, "fget", None) or getattr(made, "__func__", made)
    original, function.__code__ = function.__code__, mutant.__code__
    try:
        yield
    finally:
        function.__code__ = original


gap, chosen_ratio, mean_gap, mean_chosen = (
    getattr(PairLogps, name).fget for name in ("logratio_gap", "chosen_logratio", "mean_logratio_gap", "mean_chosen")
)

# What went wrong, where, the check that must fail, the text and its mutant (and once more).
MISTAKES: list[tuple[Any, ...]] = [
    # losses
    ("sign of the gap", losses._sigmoid_loss, formulas, "_mix(p, -logsigmoid(gap)", "_mix(p, -logsigmoid(-gap)"),
    ("label ignored by the loss", losses._mix, formulas, "p * right + (1 - p) * wrong", "right"),
    ("rejected response added", gap, formulas, "- self.rejected_logratio", "+ self.rejected_logratio"),
    ("the other one's reference", chosen_ratio, formulas, "self.reference_chosen", "self.reference_rejected"),
    ("the other one's length", mean_gap, formulas, "/ self.n_rejected", "/ self.n_chosen"),
    ("a sum for a mean", mean_chosen, formulas, " / self.n_chosen", ""),
    ("IPO's target", losses.ipo, formulas, "1 / (2 * params.beta)", "1 / params.beta"),
    ("robust DPO's normalisation", losses.robust, formulas, "/ (1 - 2 * flip_rate)", "/ (1 - flip_rate)"),
    ("sign of the margin", losses._reward_gap, formulas, "- params.margin_scale", "+ params.margin_scale"),
    ("probability of a tie", losses.nll_with_ties, formulas, "torch.expm1(2 * eta)", "torch.expm1(eta)"),
    ("half of the ties", losses.davidson, formulas, "math.log(2 * params.nu)", "math.log(params.nu)"),
    ("sign of the KL", losses.kto, formulas, "- logps.kl", "+ logps.kl"),
    ("good taken for bad", losses._one_sided, formulas, "(1 - 2 * is_good)", "(2 * is_good - 1)"),
    # from scores to losses
    (
        "chosen and rejected exchanged", batches.gather_pairs, plain,
        'policy_chosen=of("chosen")', 'policy_chosen=of("rejected")',
        'policy_rejected=of("rejected")', 'policy_rejected=of("chosen")',
    ),
    ("one reference for both", batches.gather_pairs, plain, "pair.prompt, pair.rejected]", "pair.prompt, pair.chosen]"),
    ("label ignored", batches.gather_pairs, plain, "[pair.label for", "[1.0 for"),
    ("grade ignored", batches.gather_pairs, plain, "[pair.margin for", "[0.0 for"),
    ("ties ignored", batches.gather_pairs, ties, "[pair.tie_share for", "[0.0 for"),
    ("verdict ignored", batches.gather_responses, thumbs, "float(single.is_good)", "1.0"),
    # the step
    ("weight ignored", loop._gradient, weights, "[example.weight for", "[1.0 for"),
    ("mean over the pack, not the step", loop._gradient, packing, "losses.sum() / len(examples)", "losses.mean()"),
    ("gradient of the last step kept", loop._accumulate, weights, "learner.optimizer.zero_grad()", "pass"),
    ("a KL of part of the step", loop.mismatch_kl, thumbs, "in examples for", "in examples[:1] for"),
    ("a gradient through the KL", loop.mismatch_kl, thumbs, "torch.no_grad()", "torch.enable_grad()"),
    ("scores in another order", scores._compute, start, "zip(batch.order,", "zip(reversed(batch.order),"),
    # rows, masks, positions
    ("off by one at the prompt's border", rows._lay, borders, "[end - 1, *range(first", "[end - 2, *range(first"),
    (
        "off by one within the response", rows._lay, borders,
        "range(first, first + len(response) - 1)", "range(first + 1, first + len(response))",
    ),
    (
        "last token dropped", rows._lay, borders,
        "targets += response", "targets += response[:-1]",
        "[len(order)] * len(response)", "[len(order)] * (len(response) - 1)",
        "*range(first, first + len(response) - 1)]", "*range(first, first + len(response) - 1)][:-1]",
    ),
    (
        "positions after the response before", rows._lay, borders,
        "range(len(row.prompt), len(row.prompt) + n_inputs)", "range(first - start, first - start + n_inputs)",
    ),
    ("responses that see each other", rows._lay, alone, "len(ids), start, end)", "len(ids), start, first)"),
    ("responses without a prompt", rows._lay, alone, "len(ids), start, end)", "len(ids), start, start)"),
    ("tokens that see the next one", attention._bias, alone, "triu_(1)", "triu_(2)"),
    ("tokens that do not see themselves", attention._bias, alone, "triu_(1)", "triu_(0)"),
    ("a later chunk that sees no earlier one", attention._looks, in_chunks, "segment.start, end)))", "start, end)))"),
    ("positions that turn the wrong way", block.rotate, plain, "value=sign)", "value=-sign)"),
    ("sign of the norm's gradient", block.normalise_back, plain, "value=-1", "value=1"),
    ("scale missing in a gradient", block.Adapters.back, plain, ".mul_(scale).T", ".T"),
    ("sign of the head's gradient", logprobs.TokenLogps.forward, plain, "- p @ weight", "+ p @ weight"),
    ("a token counted twice", logprobs.response_logps, alone, "owners, logps)", "owners, logps).add(logps[0])"),
    # the data
    ("no end of turn", data.Tokenise._sequences, texts, "[*responses[text], self.end_of_turn]", "responses[text]"),
    ("exchanged in reading", data.Tokenise.pairs, texts, "(chosen, rejected)) in zip", "(rejected, chosen)) in zip"),
    (
        "halves of a pair exchanged", data.split, texts,
        "(pair.chosen, True), (pair.rejected, False)", "(pair.chosen, False), (pair.rejected, True)",
    ),
    ("no turn to answer", data.Tokenise._render, texts, "add_generation_prompt=True", "add_generation_prompt=False"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_it_catches_a_planted_mistake(request: pytest.FixtureRequest, mistake: tuple[Any, ...]) -> None:
    _, function, check, *pieces = mistake
    changes = list(zip(pieces[::2], pieces[1::2], strict=True))
    bench = Bench(request)
    if check not in (
        formulas,
        borders,
        texts,
    ):  # loading a model checks the rows as well, and would refuse some mutants
        bench.get("base"), bench.get("plain")
    with mutated(function, *changes), pytest.raises(AssertionError):
        check(bench)


@pytest.mark.parametrize(
    "check", [formulas, borders, alone, plain, ties, thumbs, packing, weights, texts, start, in_chunks]
)
def test_it_accepts_what_nobody_tampered_with(request: pytest.FixtureRequest, check: Check) -> None:
    check(Bench(request))


def test_it_puts_the_function_back() -> None:
    before = losses._mix.__code__
    with mutated(losses._mix, ("p * right", "p * wrong")):
        assert losses._mix.__code__ is not before
    assert losses._mix.__code__ is before
