"""One attempt at a run, phase by phase: what all of them have in common, whatever they make."""

import resource
import time
from functools import cached_property
from typing import Any

import psutil
from peft import PeftModel

from training import catalog
from training.ml import checkpoint, data, exams, parallel, policy, rows
from training.ml.data import Examples, Order
from training.ml.errors import TrainingError
from training.ml.exams import Writer
from training.ml.jobs import Job
from training.ml.loop import Learner, train
from training.ml.monitor import Monitor
from training.ml.progress import TRAIN_COST, Progress
from training.ml.scores import Scores
from training.ml.watch import Watch

BUDGET = 1536  # tokens at a time: about 2.2 GB with the 135M model in bf16


class Attempt:
    """What it learns and leaves behind is its subclass's: `start`, `score_reference`, `new_learner` and `finish`.

    `save_checkpoint` saves what is worth saving when it is stopped.
    """

    keep_last = False  # whether its forward pass reads the responses' last tokens
    has_anchor = True  # whether its loss has a likelihood of responses that the monitor can give more weight

    def __init__(self, job: Job, watch: Watch) -> None:
        self.job, self.params, self.watch = job, job.params, watch
        self.budget = BUDGET >> job.budget_halvings
        self.progress = Progress()
        self.learner: Learner | None = None
        self.seconds: dict[str, float] = {}  # per stage; a stage ends where the next begins
        self._stage_began_at = psutil.Process().create_time()

    def execute(self) -> None:
        """All of it, up to result.json. Raises TrainingError, Stopped, or whatever goes wrong."""
        self.watch.phase("Loading the model")
        self.base = policy.load_base(self.job.model)
        self.model = self.start()
        self.end_stage("start")
        self.watch.phase("Reading the judgments")
        self.pairs = self.read()
        self.order = self.choose_order()
        self.end_stage("tokenize")
        self.watch.phase("Scoring with the reference")
        with parallel.first_alone():
            reference = self.score_reference()
        self.end_stage("reference")
        self.learner = learner = self.make_learner(reference)
        self.watch.phase("Training")
        train(learner, self.order, self.job.folder, self.identity(), self.watch, self.progress)
        if not parallel.is_first():
            return
        self.save_checkpoint()
        self.end_stage("train")
        self.finish(learner)

    def start(self) -> PeftModel:
        """The model with what is trained."""
        raise NotImplementedError

    def score_reference(self) -> Scores:
        """What the responses are compared with; plans the work that follows."""
        raise NotImplementedError

    def new_learner(self, reference: Scores) -> Learner:
        """The learner at step 0."""
        raise NotImplementedError

    def finish(self, learner: Learner) -> None:
        """Evaluate, write; result.json is last: what it stands beside is complete."""
        raise NotImplementedError

    def read(self) -> Examples:
        source = catalog.get(self.job.method).source
        return data.read(self.job.snapshot, self.base.tokenizer, self.params.max_tokens, source, self.params)

    def writer(self) -> Writer | None:
        """Who writes the samples that the monitor looks at, where there is anybody."""
        return None

    def choose_order(self) -> Order:
        method = catalog.get(self.job.method)
        chosen = data.choose(
            self.pairs.train, is_continuing=self.job.is_continuing, replay=self.params.replay, seed=self.params.seed
        )
        if not chosen:
            raise TrainingError(_why_nothing(self.pairs, catalog.SOURCES[method.source]), "no_pairs")
        chosen = data.prepare(chosen, method, self.params)
        return Order(chosen, epochs=self.params.epochs, batch_pairs=self.params.batch_pairs, seed=self.params.seed)

    @cached_property
    def training_cost(self) -> float:
        """Of all steps, in tokens of one forward pass."""
        n_tokens = rows.count_tokens(self.order.pairs, self.budget, keep_last=self.keep_last)
        return TRAIN_COST * n_tokens * self.order.n_visits / len(self.order.pairs)

    def make_learner(self, reference: Scores) -> Learner:
        """The learner at step 0, or where the checkpoint to resume left it."""
        learner = self.new_learner(reference)
        learner.exams = exams.prepare(
            self.order, self.pairs.heldout, self.writer(), BUDGET
        )  # the same exams after a loss
        learner.monitor = Monitor(self.params.monitor, examines=bool(learner.exams.pairs), has_anchor=self.has_anchor)
        if self.job.resume and checkpoint.resume(self.job.resume, learner, self.identity()):
            print(f"resumed at step {learner.step}", flush=True)
            self.progress.plan(-self.training_cost * learner.step / self.order.n_steps)  # it is done
        learner.budget = min(learner.budget, self.budget)  # also of a checkpoint from before the loss
        return learner

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed."""
        return {
            "method": self.job.method,
            "params": catalog.to_dict(self.params),
            "snapshot_sha256": self.job.snapshot_sha256,
            "base_sha256": self.base.sha256,
            "incumbent": self.job.incumbent_name,
        }

    def save_checkpoint(self) -> None:
        if self.learner and not (self.job.folder / f"checkpoint-{self.learner.step}").exists():
            checkpoint.save(self.job.folder, self.learner, self.identity(), self.watch)

    def result(self, learner: Learner) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "n_steps": self.order.n_steps,
            "final": learner.metrics,
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "skipped": self.pairs.skipped | {"steps": learner.n_skipped},
            "n_pairs": len(self.order.pairs),
            "stopped": learner.stopped,
        }

    def end_stage(self, stage: str) -> None:
        now = time.time()
        self.seconds[stage] = round(now - self._stage_began_at, 3)
        self._stage_began_at = now
        print(f"{stage}: {self.seconds[stage]:.1f} s", flush=True)
        self.watch.check()


def _why_nothing(found: Examples, what: str) -> str:
    if found.train:
        return "No judgment is new since the current version was trained; collect more or start from the base."
    if found.skipped.get("train_ties"):
        return "All training pairs are ties; collect judgments that prefer one response, or choose a tie-aware method."
    if found.skipped.get("train_identical"):
        return "In all training pairs both responses read the same after cutting; raise max_tokens."
    return f"There is nothing to train on: this method learns from {what}; collect some or choose another method."
