"""Faults planted into whole runs on the tiny model: caught, survived, and fatal without the monitor.

What is to be learned: responses of words from one list are better than those of words from another, of any length, with
15 % of the judgments wrong. `benchmarks.faults` does the same with the real model.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import injection
from tests.training.ml.cases import make_learner, pair, read_metrics
from tests.training.ml.test_scores import forward_passes
from training.ml import behaviour, checkpoint, evaluate, exams, loop, policy, scores
from training.ml.data import Order, Pair, end_of_turn
from training.ml.errors import TrainingError
from training.ml.exams import Exams, Writer
from training.ml.monitor import Monitor
from training.ml.progress import Progress
from training.ml.scores import Memory
from training.ml.watch import Watch

N_STEPS, BATCH, BUDGET = 44, 8, 2048
N_WORDS = 40_000  # that prompts are made of
FEW_WORDS = 4096  # three quarters of a run go into scores of the whole vocabulary: a calm run needs no more of it
GOOD, BAD = range(1000, 1040), range(2000, 2040)
CAUGHT_WITHIN = 12  # steps, where exams come every fifth
AT = {"nan_gradient": 24, "huge_gradient": 6, "fast_rate": 24, "flipped_labels": 24, "length_hack": 24}


@dataclass
class Outcome:
    score: float  # mean probability given to the better response of unseen pairs; 0 where the model is broken
    lines: list[dict[str, Any]]
    stopped: str | None

    @property
    def alarms(self) -> list[tuple[int, str, str]]:
        return [(one["step"], alarm["signal"], alarm["action"]) for one in self.lines for alarm in one["alarms"]]


def pairs(n: int, seed: int, end: int, noise: float = 0.0, n_words: int = N_WORDS) -> list[Pair]:
    rng = random.Random(seed)

    def response(words: range) -> list[int]:
        return [*(rng.choice(words) for _ in range(rng.randint(3, 14))), end]

    made = []
    for _ in range(n):
        prompt = [rng.randrange(3, n_words) for _ in range(rng.randint(3, 8))]
        one = pair(prompt, response(GOOD), response(BAD))
        made.append(injection.flip(one) if rng.random() < noise else one)
    return made


Train = Callable[..., Outcome]


@pytest.fixture(scope="module")
def memories(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Memory]:
    """One cache for all runs of as many words: they have the same pairs but for the seeds'."""
    return {n_words: Memory(tmp_path_factory.mktemp("cache"), "base") for n_words in (N_WORDS, FEW_WORDS)}


@pytest.fixture
def train(tiny_model_dir: Path, tmp_path: Path, memories: dict[int, Memory]) -> Train:
    def run(fault: str = "clean", mode: str = "act", seed: int = 0, n_words: int = N_WORDS) -> Outcome:
        folder = tmp_path / f"{fault}-{mode}-{seed}"
        folder.mkdir()
        watch = Watch(folder, token=1)
        base = policy.load_base(tiny_model_dir, dtype=torch.float32)
        if n_words == FEW_WORDS:
            base.model.resize_token_embeddings(FEW_WORDS)
        end = end_of_turn(base.tokenizer)
        seen = pairs(N_STEPS * BATCH, seed, end, 0.15, n_words)
        unseen, test = pairs(24, 500, end, n_words=n_words), pairs(48, 900, end, n_words=n_words)
        learner, model = make_learner(
            base, seen, learning_rate=0.005, schedule="constant", max_grad_norm=1000.0, seed=seed
        )
        learner.budget = BUDGET
        with model.disable_adapter():
            learner.reference = scores.score(
                base.model, [*seen, *unseen, *test], memories[n_words], budget=BUDGET, watch=watch, progress=Progress()
            )
        writer = Writer(model, base.tokenizer)
        learner.exams = Exams(unseen, [one.prompt for one in unseen[:4]], writer, heldout_every=5, fresh_every=20)
        learner.monitor = Monitor(mode, examines=True)
        order = Order(seen, epochs=1, batch_pairs=BATCH, seed=seed)
        order = injection.FAULTS.get(fault, injection.clean)(learner, order, AT.get(fault, 0))
        try:
            loop.train(learner, order, folder, {}, watch, Progress())
        except TrainingError as error:
            learner.stopped = str(error)
        with torch.no_grad():
            found = exams.heldout(learner, test, writer).get("heldout_scores", [0.0])
        return Outcome(sum(found) / len(found), read_metrics(folder), learner.stopped)

    return run


@pytest.fixture(scope="module")
def clean_scores() -> dict[int, float]:
    return {}


@pytest.mark.parametrize("fault", injection.FAULTS)
def test_it_survives_what_is_fatal_without_it(train: Train, clean_scores: dict[int, float], fault: str) -> None:
    if 0 not in clean_scores:
        clean_scores[0] = train(mode="off").score
    clean = clean_scores[0]
    watched, control = train(fault), train(fault, "off")
    assert watched.score >= 0.95 * clean
    assert control.score < 0.95 * clean
    assert next(step - AT[fault] for step, _, _ in watched.alarms if step >= AT[fault]) <= CAUGHT_WITHIN
    assert control.alarms == []


def test_it_raises_at_most_one_false_alarm_in_ten_clean_runs(train: Train) -> None:
    outcomes = [train(seed=seed, n_words=FEW_WORDS) for seed in range(1, 11)]
    assert sum(bool(outcome.alarms) for outcome in outcomes) <= 1, [outcome.alarms for outcome in outcomes]
    assert min(outcome.score for outcome in outcomes) > 0.6


def test_it_changes_nothing_in_a_calm_run(train: Train) -> None:
    same = ("step", "loss", "grad_norm", "learning_rate", "margin", "kl_chosen", "is_skipped")
    outcomes = [train(mode=mode, seed=2, n_words=FEW_WORDS) for mode in ("act", "off")]
    found = [[{name: one[name] for name in same} for one in outcome.lines] for outcome in outcomes]
    assert found[0] == found[1]
    assert len(found[0]) == N_STEPS


def test_it_goes_back_exactly(base32: policy.Base, tmp_path: Path, watch: Watch) -> None:
    some = pairs(16, 0, end_of_turn(base32.tokenizer))
    learner, _ = make_learner(base32, some, optimizer="schedule_free")
    learner.monitor = Monitor("off")  # the reference is made up
    order = Order(some, epochs=4, batch_pairs=4, seed=0)
    for _ in range(3):
        loop.take_step(learner, order, tmp_path, watch)
    good = checkpoint.remember(learner)
    kept = [parameter.detach().clone() for parameter in learner.parameters]
    first = [loop.take_step(learner, order, tmp_path, watch)["loss"] for _ in range(3)]
    for _ in range(2):  # a second time too: what is remembered is not used up
        checkpoint.go_back(learner, good)
        assert all(map(torch.equal, learner.parameters, kept))
        learner.step = 3
        assert [loop.take_step(learner, order, tmp_path, watch)["loss"] for _ in range(3)] == first


def test_it_examines_with_smaller_packs_when_out_of_memory(base32: policy.Base) -> None:
    some = pairs(12, 0, end_of_turn(base32.tokenizer))
    learner, model = make_learner(base32, some)
    learner.exams = Exams(some, [], Writer(model, base32.tokenizer), heldout_every=1, fresh_every=1)
    whole = loop.examine(learner, 1)

    def allocate(n_tokens: int) -> None:
        if n_tokens > 64:
            raise MemoryError

    with forward_passes(base32.model, allocate):
        parts = loop.examine(learner, 1)
    assert learner.budget <= 64
    assert parts["heldout_scores"] == pytest.approx(whole["heldout_scores"], abs=1e-5)


@pytest.mark.parametrize("method", ["dpo", "dpo_norm", "simpo", "orpo"])
def test_it_examines_by_the_methods_reward(base32: policy.Base, method: str) -> None:
    some = pairs(8, 3, end_of_turn(base32.tokenizer))
    learner, model = make_learner(base32, some, method=method)
    found = exams.heldout(learner, some, Writer(model, base32.tokenizer))
    items = [exams.Alone(one.prompt, response) for one in some for response in one.responses]
    said: scores.Scores = {}
    for batch in exams.pack(items, 512):
        said |= dict(zip(batch.order, exams.response_logps(base32.model, batch).tolist(), strict=True))
    margins = evaluate.margins(some, said, learner.reference, learner.params.reward)
    assert found["heldout_scores"] == pytest.approx([1 / (1 + math.exp(-margin)) for margin in margins], abs=1e-5)


def test_it_reads_ends_and_entropy_off_what_the_model_says(base32: policy.Base) -> None:
    """The last token's log-probability and the mean surprise, against the model's own softmax."""
    end = end_of_turn(base32.tokenizer)
    some = pairs(8, 3, end)
    learner, model = make_learner(base32, some)
    found = exams.heldout(learner, some, Writer(model, base32.tokenizer))
    expected = []
    for prompt, response in sorted({(one.prompt, r) for one in some for r in one.responses}):
        batch = exams.pack([exams.Alone(prompt, response)], 512)[0]
        with torch.no_grad():
            expected.append(exams.token_logps(base32.model, batch)[-1].item())
    assert found["end_logps"] == pytest.approx(expected, abs=1e-4)
    fresh = exams.fresh(learner, [some[0].prompt], Writer(model, base32.tokenizer))
    assert fresh["kl_fresh"] == pytest.approx(0.0, abs=1e-6)  # a new adapter changes nothing
    (written,) = exams.samples.generate(base32.model, base32.tokenizer, [some[0].prompt], exams.N_TOKENS, exams.SEED)
    assert fresh["repetition"] == behaviour.repetition([written])  # what the gate asks about
    assert 5 < fresh["entropy"] < 11  # ln of a vocabulary of 49,152 is 10.8


def test_it_tells_that_a_broken_model_writes_nothing(base32: policy.Base) -> None:
    some = pairs(8, 3, end_of_turn(base32.tokenizer))
    learner, model = make_learner(base32, some)
    with torch.no_grad():
        learner.parameters[0].fill_(math.nan)
        learner.parameters[1].fill_(math.nan)
    assert exams.fresh(learner, [some[0].prompt], Writer(model, base32.tokenizer)) == {"kl_fresh": math.inf}


def test_it_asks_no_more_than_its_share(base32: policy.Base) -> None:
    end = end_of_turn(base32.tokenizer)
    many, few = pairs(800, 0, end), pairs(16, 0, end)
    writer = Writer(base32.model, base32.tokenizer)  # type: ignore[arg-type]  # writes nothing here
    large = exams.prepare(Order(many, epochs=1, batch_pairs=8, seed=0), pairs(100, 1, end), writer, BUDGET)
    small = exams.prepare(Order(few, epochs=1, batch_pairs=8, seed=0), pairs(100, 1, end), writer, BUDGET)
    assert len(large.pairs) == exams.N_PAIRS
    cost = exams.count_tokens(large.pairs, BUDGET) / large.heldout_every
    per_step = 3 * exams.count_tokens(many, BUDGET) / 100
    assert cost / per_step == pytest.approx(exams.SHARE, rel=0.1)
    assert (small.pairs, small.prompts) == ([], [])
