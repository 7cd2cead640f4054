"""The trainer: `python -m training.ml.train RUN_DIR/attempt-n`. Files in, files out; no Django, no Celery.

Exit codes: 0 done · 1 failed, error.json says why · 3 stopped by SIGTERM, resumable · 4 lease lost.
"""

import os
import signal
import sys

if __name__ == "__main__":
    # The imports below take seconds. A signal that comes meanwhile finds nothing to save.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    # Threads that wait for each other by spinning take the processor from the one they wait for: on two cores shared
    # with a server a step took up to 20 times as long. libgomp reads this when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import hashlib
import resource
import time
import traceback
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel

from training import catalog
from training.ml import (
    adapter,
    batches,
    checkpoint,
    data,
    evaluate,
    files,
    jobs,
    losses,
    optim,
    policy,
    probes,
    rows,
    scores,
)
from training.ml.data import Order, Pair, Pairs
from training.ml.errors import Stopped, TrainingError, describe
from training.ml.jobs import Job
from training.ml.loop import Learner, train
from training.ml.progress import TRAIN_COST, Progress
from training.ml.scores import Memory, Scores
from training.ml.watch import Watch

BUDGET = 768  # tokens per pass: about 1.7 GB with the 135M model in bf16


class Run:
    """One attempt, phase by phase; `save_checkpoint` saves what is worth saving when it is stopped."""

    def __init__(self, job: Job, watch: Watch) -> None:
        self.job, self.params, self.watch = job, job.params, watch
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
        self.pairs = data.read(self.job.snapshot, self.base.tokenizer, self.params.max_tokens)
        self.order = self.choose_order()
        self.end_stage("tokenize")
        self.watch.phase("Scoring with the reference")
        reference = self.score_reference()
        self.end_stage("reference")
        self.learner = learner = self.make_learner(reference)
        self.watch.phase("Training")
        train(learner, self.order, self.job.folder, self.identity(), self.watch, self.progress)
        self.save_checkpoint()
        self.end_stage("train")
        self.finish(learner)

    def start(self) -> PeftModel:
        if self.job.incumbent and self.job.is_continuing:
            return policy.add_incumbent(self.base, self.job.incumbent)
        return policy.add_adapter(self.base, self.params)

    def choose_order(self) -> Order:
        chosen = data.choose(
            self.pairs.train, is_continuing=self.job.is_continuing, replay=self.params.replay, seed=self.params.seed
        )
        if not chosen:
            raise TrainingError(_why_nothing(self.pairs), "no_pairs")
        return Order(chosen, epochs=self.params.epochs, batch_pairs=self.params.batch_pairs, seed=self.params.seed)

    def score_reference(self) -> Scores:
        """Scores of all pairs under the base, and the plan of the work that follows."""
        items = [*self.order.pairs, *self.pairs.heldout]
        memory = self.memory("base")
        n_missing = rows.count_tokens(scores.missing(items, memory), BUDGET)
        n_train = rows.count_tokens(self.order.pairs, BUDGET) * self.order.n_visits / len(self.order.pairs)
        n_heldout = rows.count_tokens(self.pairs.heldout, BUDGET)
        self.progress.plan(n_missing + TRAIN_COST * n_train + n_heldout)
        with self.model.disable_adapter():
            return self.score(items, memory)

    def memory(self, scorer: str) -> Memory:
        return Memory(self.job.cache, f"{self.base.path_key} {scorer}")

    def score(self, pairs: list[Pair], memory: Memory) -> Scores:
        return scores.score(self.base.model, pairs, memory, budget=BUDGET, watch=self.watch, progress=self.progress)

    def make_learner(self, reference: Scores) -> Learner:
        """The learner at step 0, or where the checkpoint to resume left it."""
        parameters = policy.parameters(self.model)
        learner = Learner(
            model=self.base.model,
            parameters=parameters,
            optimizer=optim.optimizer(parameters, self.params),
            loss=getattr(losses, self.job.method),
            params=self.params,
            reference=reference,
            budget=BUDGET,
            source=batches.SOURCES[catalog.get(self.job.method).source],
        )
        if self.job.resume and checkpoint.load(self.job.resume, learner, self.identity()):
            print(f"resumed at step {learner.step}", flush=True)
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

    def finish(self, learner: Learner) -> None:
        """Evaluate, probe, write; result.json is last: what it stands beside is complete."""
        self.watch.phase("Evaluating")
        weights = adapter.serialise(self.model)
        evaluation = self.evaluate(hashlib.sha256(weights).hexdigest(), learner)
        files.write_json(self.job.folder / "evaluation.json", evaluation)
        self.end_stage("evaluate")
        self.watch.phase("Saving the adapter")
        effects = probes.measure(self.model, self.base.model, self.base.tokenizer, BUDGET)
        adapter.write(self.job.folder / "adapter", weights, self.model, self.base, self.job, effects)
        self.end_stage("save")
        files.write_json(self.job.folder / "result.json", self.result(learner))
        self.watch.phase("Done")

    def evaluate(self, sha256: str, learner: Learner) -> dict[str, Any]:
        pairs, reference, beta = self.pairs.heldout, learner.reference, learner.beta
        new = evaluate.margins(pairs, self.score(pairs, self.memory(sha256)), reference, beta)
        old = [0.0] * len(pairs)
        if self.job.incumbent:
            known_as = hashlib.sha256((self.job.incumbent / "adapter_model.safetensors").read_bytes()).hexdigest()
            with policy.incumbent(self.model, self.job.incumbent):
                old = evaluate.margins(pairs, self.score(pairs, self.memory(known_as)), reference, beta)
        return evaluate.report(pairs, new, old)

    def result(self, learner: Learner) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "n_steps": self.order.n_steps,
            "final": learner.metrics,
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "skipped": self.pairs.skipped | {"steps": learner.n_skipped},
            "n_pairs": len(self.order.pairs),
        }

    def end_stage(self, stage: str) -> None:
        now = time.time()
        self.seconds[stage] = round(now - self._stage_began_at, 3)
        self._stage_began_at = now
        print(f"{stage}: {self.seconds[stage]:.1f} s", flush=True)
        self.watch.check()


def _why_nothing(pairs: Pairs) -> str:
    if pairs.train:
        return "No judgment is new since the current version was trained; collect more or start from the base."
    if pairs.skipped.get("train_ties"):
        return "All training pairs are ties; collect judgments that prefer one response."
    if pairs.skipped.get("train_identical"):
        return "In all training pairs both responses read the same after cutting; raise max_tokens."
    return "There are no training pairs; collect more judgments."


def main(folder: Path) -> int:
    """Runs the attempt in the folder; the exit code."""
    try:
        job = jobs.read(folder)
        os.nice(job.nice)
        if job.threads:
            torch.set_num_threads(job.threads)
        with Watch(folder, job.token) as watch:
            return _attempt(Run(job, watch))
    except Stopped as stop:
        return stop.exit_code
    except Exception as error:  # the process's loop: whatever it was, the row must say so
        traceback.print_exc()
        return _fail(folder, error)


def _attempt(run: Run) -> int:
    try:
        run.execute()
    except Stopped as stop:
        print(f"stopped ({type(stop).__name__})", flush=True)
        run.watch.is_stopping = False  # obeyed: it must not interrupt the checkpoint
        with run.watch.shielded():
            run.save_checkpoint()
        return stop.exit_code
    return 0


def _fail(folder: Path, error: Exception) -> int:
    message, kind = describe(error)
    try:
        files.write_json(folder / "error.json", {"message": message, "kind": kind})
    except OSError as unwritten:
        print(f"error.json could not be written: {unwritten}", flush=True)
    return 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m training.ml.train RUN_DIR/attempt-n")
    sys.exit(main(Path(sys.argv[1])))
