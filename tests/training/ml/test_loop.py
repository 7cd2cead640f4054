import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.ml.cases import POLICY_METHODS, examples_for, make_learner, pair, read_metrics, shake, some_pairs
from tests.training.ml.test_scores import forward_passes
from training.ml import loop, policy, scores
from training.ml.data import Order, Pair
from training.ml.errors import Stopped, TrainingError
from training.ml.exams import Exams, Writer
from training.ml.loop import Learner
from training.ml.monitor import Monitor
from training.ml.progress import Progress
from training.ml.scores import Memory, Scores
from training.ml.watch import Watch


def one_batch(pairs: list[Pair], epochs: float = 1.0) -> Order:
    return Order(pairs, epochs=epochs, batch_pairs=len(pairs), seed=0)


def score_base(base: policy.Base, pairs: list[Pair], folder: Path, watch: Watch) -> Scores:
    return scores.score(base.model, pairs, Memory(folder, "base"), budget=512, watch=watch, progress=Progress())


def gradient(learner: Learner, pairs: list[Pair], watch: Watch) -> torch.Tensor:
    loop.accumulate(learner, pairs, watch)
    return torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_it_starts_dpo_at_ln_2(tiny_model_dir: Path, tmp_path: Path, watch: Watch, dtype: torch.dtype) -> None:
    pairs = some_pairs()
    base = policy.load_base(tiny_model_dir, dtype=dtype)
    learner, _ = make_learner(base, pairs, reference=score_base(base, pairs, tmp_path / "c", watch))
    metrics = loop.take_step(learner, one_batch(pairs), tmp_path, watch)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert (metrics["margin"], metrics["accuracy"]) == (0.0, 0.5)


def test_it_accumulates_eight_passes_of_one_pair_as_one_of_eight(base: policy.Base, watch: Watch) -> None:
    pairs = some_pairs(8)
    learner, model = make_learner(base, pairs)
    shake(model)
    with forward_passes(base.model) as seen:
        whole = gradient(learner, pairs, watch)
    assert len(seen) == 1
    learner.budget = 1
    with forward_passes(base.model) as seen:
        parts = gradient(learner, pairs, watch)
    assert len(seen) == 8
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-13)


def test_it_scales_a_pairs_gradient_by_its_weight(base: policy.Base, watch: Watch) -> None:
    first, second = pair([3, 4], [5, 6], [7]), pair([3, 9], [5], [8, 8])
    learner, model = make_learner(base, [first, second])
    shake(model)
    alone = gradient(learner, [first], watch)
    heavy = pair([3, 4], [5, 6], [7], weight=3.0)
    none = pair([3, 9], [5], [8, 8], weight=0.0)
    torch.testing.assert_close(gradient(learner, [heavy, none], watch), 1.5 * alone, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("method", POLICY_METHODS)
def test_it_lowers_every_methods_own_loss(base32: policy.Base, tmp_path: Path, watch: Watch, method: str) -> None:
    examples = examples_for(method)
    reference = score_base(base32, [*examples, *(other for x in examples for other in x.others)], tmp_path / "c", watch)
    gently: dict[str, Any] = {"learning_rate": 0.0005, "schedule": "constant", "warmup": 0.0}
    learner, _ = make_learner(base32, examples, method=method, reference=reference, **gently)
    order = one_batch(examples, epochs=6)
    losses = [loop.take_step(learner, order, tmp_path, watch)["loss"] for _ in range(6)]
    assert losses[-1] < losses[1] < losses[0]
    assert learner.metrics["accuracy"] > 0.5
    assert learner.metrics["margin"] > 0


def test_it_writes_a_line_of_metrics_per_step(base32: policy.Base, tmp_path: Path, watch: Watch) -> None:
    pairs = some_pairs()
    learner, _ = make_learner(base32, pairs)
    loop.train(learner, Order(pairs, epochs=2, batch_pairs=3, seed=0), tmp_path, {}, watch, Progress())
    lines = read_metrics(tmp_path)
    assert [one["step"] for one in lines] == [1, 2, 3, 4, 5, 6]
    assert [one["n_pairs"] for one in lines] == [3, 3, 3, 3, 3, 1]
    assert lines[-1] == learner.metrics
    assert {"loss", "learning_rate", "grad_norm", "accuracy", "margin", "chosen_reward", "rejected_reward"} < set(
        lines[0]
    )
    assert lines[0].keys() > {"logp_chosen", "tokens", "seconds"}


def test_it_loses_no_line_of_metrics_to_a_signal_during_a_step(
    base32: policy.Base, tmp_path: Path, watch: Watch
) -> None:
    pairs = some_pairs()
    learner, _ = make_learner(base32, pairs)
    learner.optimizer.register_step_post_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with watch, pytest.raises(Stopped):
        loop.train(learner, one_batch(pairs), tmp_path, {}, watch, Progress())
    assert learner.step == 1  # what the checkpoint written next says
    assert [one["step"] for one in read_metrics(tmp_path)] == [1]


def test_it_skips_a_step_that_is_not_finite(base32: policy.Base, tmp_path: Path, watch: Watch) -> None:
    pairs = some_pairs()
    learner, _ = make_learner(base32, [*pairs])
    learner.reference = learner.reference | {(pairs[4].prompt, pairs[4].chosen): float("nan")}
    before = [p.detach().clone() for p in learner.parameters]
    metrics = loop.take_step(learner, one_batch(pairs), tmp_path, watch)
    assert (metrics["is_skipped"], metrics["loss"], metrics["grad_norm"]) == (True, None, None)
    assert (learner.step, learner.n_skipped) == (1, 1)
    assert all(map(torch.equal, before, learner.parameters))


def test_it_does_not_keep_a_last_update_that_breaks_the_model(
    base32: policy.Base, tmp_path: Path, watch: Watch
) -> None:
    pairs = some_pairs()
    learner, model = make_learner(base32, pairs)
    learner.exams = Exams(pairs, [], Writer(model, base32.tokenizer), heldout_every=1, fresh_every=9)
    learner.monitor = Monitor(examines=True)

    def spoil(*_: Any) -> None:
        if learner.step == 1:
            with torch.no_grad():
                learner.parameters[0][0] = float("nan")

    learner.optimizer.register_step_post_hook(spoil)
    loop.train(learner, one_batch(pairs, epochs=2), tmp_path, {}, watch, Progress())
    assert all(parameter.isfinite().all() for parameter in learner.parameters)
    assert [(alarm["signal"], alarm["action"]) for alarm in read_metrics(tmp_path)[-1]["alarms"]] == [
        ("broken", "roll_back")
    ]


def test_it_ends_the_run_after_five_such_steps_in_a_row(base32: policy.Base, tmp_path: Path, watch: Watch) -> None:
    pairs = some_pairs()
    learner, _ = make_learner(base32, pairs)
    with torch.no_grad():
        learner.parameters[0][0] = float("nan")
    with pytest.raises(TrainingError, match="not a finite number in 5 steps in a row; lower the learning rate"):
        loop.train(learner, one_batch(pairs, epochs=9), tmp_path, {}, watch, Progress())
    assert learner.step == 5
    assert [one["is_skipped"] for one in read_metrics(tmp_path)] == [True] * 5


def test_it_forgives_skipped_steps_after_a_finite_one(base32: policy.Base, tmp_path: Path, watch: Watch) -> None:
    pairs = some_pairs()
    learner, _ = make_learner(base32, pairs)
    learner.n_skipped = learner.n_non_finite = 4
    loop.take_step(learner, one_batch(pairs), tmp_path, watch)
    assert (learner.n_skipped, learner.n_non_finite) == (4, 0)


def test_it_tries_smaller_packs_when_out_of_memory(base: policy.Base, watch: Watch) -> None:
    pairs = some_pairs()
    learner, model = make_learner(base, pairs)
    shake(model)
    whole = gradient(learner, pairs, watch)

    def allocate(n_tokens: int) -> None:
        if n_tokens > 64:
            raise MemoryError

    with forward_passes(base.model, allocate):
        parts = gradient(learner, pairs, watch)
    assert learner.budget == 64
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-13)


def test_it_clips_gradients(base32: policy.Base, tmp_path: Path, watch: Watch) -> None:
    pairs = some_pairs()
    learner, model = make_learner(base32, pairs, max_grad_norm=0.01)
    shake(model)
    metrics = loop.take_step(learner, one_batch(pairs), tmp_path, watch)
    norm = torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None]).norm().item()
    assert metrics["grad_norm"] > 0.01
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_it_trains_on_whatever_scores_forward_gives(base: policy.Base, watch: Watch) -> None:
    pairs = some_pairs(3)
    learner, model = make_learner(base, pairs)
    shake(model)
    usual = gradient(learner, pairs, watch)
    response_logps = learner.forward
    learner.forward = lambda batch: response_logps(batch) + 7.0  # a constant cancels out of every gap
    torch.testing.assert_close(gradient(learner, pairs, watch), usual, rtol=1e-9, atol=1e-13)
    learner.forward = lambda batch: 0.0 * response_logps(batch)
    assert not gradient(learner, pairs, watch).any()
