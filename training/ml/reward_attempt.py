"""An attempt that makes a reward model: its head, its calibration on held-out judgments, its folder."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel

from training.catalog import RewardModel
from training.ml import adapter, calibration, evaluate, files, optim, policy, reward, rows
from training.ml.attempt import Attempt
from training.ml.data import Pair
from training.ml.logprobs import trunk_below
from training.ml.loop import Learner
from training.ml.reward_head import SOURCE, Head, begin_ties, loss_by, response_rewards
from training.ml.rows import Pack
from training.ml.scores import Scorer, Scores, score_by

FOLDER = "reward_model"


class RewardAttempt(Attempt):
    """Leaves reward_model/ and evaluation.json."""

    keep_last = True
    has_anchor = False  # a reward is no likelihood

    def start(self) -> PeftModel:
        self.head = Head(self.base.model.config.get_text_config().hidden_size).to(self.base.model.device)
        return policy.add_adapter(self.base, self.params)

    def score_reference(self) -> Scores:
        """A reward has no reference; this plans the work."""
        scored = [[*self.pairs.heldout, *self.pairs.heldout_ties]]
        if self.job.reward_model:
            scored.append(self.pairs.heldout)
        n_heldout = sum(rows.count_tokens(pairs, self.budget, keep_last=True) for pairs in scored)
        self.progress.plan(self.training_cost + n_heldout)
        return {}

    @cached_property
    def forward(self) -> Callable[[Pack], torch.Tensor]:
        """Rewards (R,) of a pack's responses; what lies below the adapters is computed once for the whole attempt."""
        model = self.base.model
        return partial(response_rewards, model, self.head, trunk=trunk_below(model, self.job.folder))

    def new_learner(self, reference: Scores) -> Learner:
        begin_ties(self.head, cast(RewardModel, self.params), cast(list[Pair], self.order.pairs))
        parameters = policy.parameters(self.model) + self.head.trained()
        return Learner(
            model=self.base.model,
            parameters=parameters,
            optimizer=optim.optimizer(parameters, self.params, policy.second_matrices(self.model)),
            loss=loss_by(self.head),
            params=self.params,
            reference=reference,
            budget=self.budget,
            source=SOURCE,
            forward=self.forward,
            keep_last=self.keep_last,
        )

    def finish(self, learner: Learner) -> None:
        """Evaluate, calibrate, write; result.json is last: what it stands beside is complete."""
        self.watch.phase("Evaluating")
        weights, head = adapter.serialise(self.model), reward.serialise(self.head)
        rewards = self.score_heldout(reward.identity(weights, head))
        card = self.card(rewards)
        files.write_json(self.job.folder / "evaluation.json", self.evaluate(rewards, card["temperature"]))
        self.end_stage("evaluate")
        self.watch.phase("Saving the reward model")
        reward.write(self.job.folder / FOLDER, weights, head, self.model, self.base, self.job, card)
        self.end_stage("save")
        files.write_json(self.job.folder / "result.json", self.result(learner))
        self.watch.phase("Done")

    def score_heldout(self, sha256: str) -> Scores:
        memory = reward.remember(self.base, sha256, self.job.cache)
        by = Scorer(self.forward, self.base.model.device, keep_last=True)
        pairs = [*self.pairs.heldout, *self.pairs.heldout_ties]
        return score_by(by, pairs, memory, budget=self.budget, watch=self.watch, progress=self.progress)

    def evaluate(self, rewards: Scores, temperature: float) -> dict[str, Any]:
        """Margins in logits, beside those of the reward model that is in use."""
        pairs = self.pairs.heldout
        old = [0.0] * len(pairs)
        if self.job.reward_model:
            judge = reward.load(self.base, self.job.reward_model)
            old = gaps(pairs, reward.score(judge, pairs, self.job.cache, self.budget, self.watch, self.progress))
        new = [gap / temperature for gap in gaps(pairs, rewards)]
        return {"heldout": evaluate.report(pairs, new, old)}

    def card(self, rewards: Scores) -> dict[str, Any]:
        """What reward.json says of the reward model."""
        decided = self.pairs.heldout
        figures = calibration.report(
            np.array(gaps(decided, rewards)),
            np.array([pair.label for pair in decided]),
            np.array([pair.weight for pair in decided]),
            [pair.prompt_sha256 for pair in decided],
            np.array([max(pair.n_chars_chosen, pair.n_chars_rejected) for pair in decided], dtype=np.int64),
        )
        values = np.array(list(rewards.values()) or [0.0])
        return {
            "temperature": figures["temperature"],
            "tie_theta": self.theta,
            "accuracy": figures["after"].get("accuracy"),
            "ece": figures["after"].get("ece"),
            "n_heldout": len(decided),
            "mean": float(values.mean()),
            "std": float(values.std()),
            "min": float(values.min()),
            "max": float(values.max()),
            "calibration": figures,
            "ties": self.ties(rewards),
        }

    @property
    def theta(self) -> float | None:
        eta = self.head.eta
        return None if eta is None else eta.exp().item()

    def ties(self, rewards: Scores) -> dict[str, float | None]:
        """Which share of held-out votes were ties, and which share the threshold makes of the rewards."""
        pairs = [*self.pairs.heldout, *self.pairs.heldout_ties]
        weights = np.array([pair.weight for pair in pairs])
        if not weights.sum():
            return {"observed": None, "predicted": None}
        observed = np.average([pair.tie_share for pair in pairs], weights=weights)
        if self.theta is None:
            return {"observed": float(observed), "predicted": None}
        predicted = calibration.tie_probabilities(np.array(gaps(pairs, rewards)), self.theta)
        return {"observed": float(observed), "predicted": float(np.average(predicted, weights=weights))}


def gaps(pairs: list[Pair], rewards: Scores) -> list[float]:
    """r(chosen) − r(rejected) per pair."""
    return [rewards[pair.prompt, pair.chosen] - rewards[pair.prompt, pair.rejected] for pair in pairs]
