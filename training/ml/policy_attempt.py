"""An attempt that makes an adapter: a policy, its reference, the evidence for the gate and the probes for the engine."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from peft import PeftModel

from training import catalog
from training.ml import (
    adapter,
    batches,
    evidence,
    files,
    losses,
    optim,
    policy,
    probes,
    rows,
    scores,
)  # fmt: skip
from training.ml.attempt import Attempt
from training.ml.evidence import Examiner
from training.ml.exams import Writer
from training.ml.logprobs import response_logps, trunk_below
from training.ml.loop import Learner
from training.ml.rows import Item, Pack
from training.ml.scores import Memory, Scorer, Scores
from training.ml.trunk import Trunk


class PolicyAttempt(Attempt):
    """Leaves adapter/ and evaluation.json."""

    def start(self) -> PeftModel:
        if self.job.incumbent and self.job.is_continuing:
            policy.refuse_other_shape(self.base, self.job.incumbent, self.params)
            return policy.add_incumbent(self.base, self.job.incumbent)
        return policy.add_adapter(self.base, self.params)

    def writer(self) -> Writer:
        return Writer(self.model, self.base.tokenizer, self.trunk)

    def score_reference(self) -> Scores:
        """Scores of all pairs under the base, and the plan of the work that follows."""
        others = [other for example in self.order.pairs for other in example.others]
        items = [*self.order.pairs, *others, *self.pairs.heldout]
        memory = self.memory("base")
        n_missing = rows.count_tokens(scores.missing(items, memory), self.budget)
        n_examined = evidence.count_tokens(self.base, self.job, self.pairs.heldout, self.memory, self.budget)
        self.progress.plan(n_missing + self.training_cost + n_examined)
        with self.model.disable_adapter():
            return self.score(items, memory)

    @cached_property
    def forward(self) -> Callable[[Pack], torch.Tensor]:
        """Scores (R,) of a pack's responses."""
        return partial(response_logps, self.base.model, trunk=self.trunk)

    @cached_property
    def trunk(self) -> Trunk | None:
        """What lies below the adapter: computed once for the whole attempt."""
        return trunk_below(self.base.model, self.job.folder)

    def memory(self, scorer: str) -> Memory:
        """What is known of the scorer, read once."""
        if scorer not in self._memories:
            self._memories[scorer] = Memory(self.job.cache, f"{self.base.path_key} {scorer}")
        return self._memories[scorer]

    @cached_property
    def _memories(self) -> dict[str, Memory]:
        return {}

    def score(self, pairs: Sequence[Item], memory: Memory) -> Scores:
        scorer = Scorer(self.forward, self.base.model.device)
        return scores.score_by(scorer, pairs, memory, budget=self.budget, watch=self.watch, progress=self.progress)

    def new_learner(self, reference: Scores) -> Learner:
        parameters = policy.parameters(self.model)
        return Learner(
            model=self.base.model,
            parameters=parameters,
            optimizer=optim.optimizer(parameters, self.params, policy.second_matrices(self.model)),
            loss=getattr(losses, self.job.method),
            params=self.params,
            reference=reference,
            budget=self.budget,
            source=batches.SOURCES[catalog.get(self.job.method).source],
            anchor=self.params.anchor,
            forward=self.forward,
        )

    def finish(self, learner: Learner) -> None:
        """Evaluate, probe, write; result.json is last: what it stands beside is complete."""
        self.watch.phase("Evaluating")
        weights = adapter.serialise(self.model)
        evaluation = self.evaluate(hashlib.sha256(weights).hexdigest(), learner)
        files.write_json(self.job.folder / "evaluation.json", evaluation)
        self.end_stage("evaluate")
        self.watch.phase("Saving the adapter")
        effects = probes.measure(self.model, self.base.model, self.base.tokenizer, learner.budget)
        adapter.write(self.job.folder / "adapter", weights, self.model, self.base, self.job, effects)
        self.end_stage("save")
        files.write_json(self.job.folder / "result.json", self.result(learner))
        self.watch.phase("Done")

    def evaluate(self, sha256: str, learner: Learner) -> dict[str, Any]:
        examiner = Examiner(
            self.base,
            self.model,
            self.job,
            self.pairs.heldout,
            self.score,
            self.memory,
            self.watch,
            self.progress,
            learner.budget,
        )
        found = examiner.examine(sha256, learner.reference)
        exams = learner.exams if learner.monitor.mode == "act" else None
        steered = {pair.id for pair in exams.pairs} if exams else set()
        for row in found["heldout"]:  # what the monitor chose the parameters by is no evidence for them
            row["steered"] = row["pair"] in steered
        return found
