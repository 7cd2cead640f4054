"""Gathers what evaluation.json holds: every version is asked the same, the reward model judges, KL is measured."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from peft import PeftModel

from training import catalog
from training.implicit_reward import Reward
from training.ml import conduct, divergence, evaluate, lines, policy, reward, rows
from training.ml.conduct import Question
from training.ml.data import Pair
from training.ml.evaluate import Version
from training.ml.jobs import Job
from training.ml.memory import in_smaller_parts
from training.ml.policy import Base
from training.ml.progress import Progress
from training.ml.rows import Item
from training.ml.scores import MIN_BUDGET, Alone, Memory, Scores, missing
from training.ml.watch import Watch


def count_tokens(base: Base, job: Job, heldout: Sequence[Pair], memory: Callable[[str], Memory], budget: int) -> int:
    """Tokens that an examination will score: all under a new adapter, what is not known yet under the others; of the
    answers, which nobody has written yet, the most there can be. `heldout` are known of the base by then."""
    neutral = conduct.neutral_items(base.tokenizer)
    wanted: list[list[Item]] = [[*heldout, *neutral], [*missing(neutral, memory("base"))]]
    if job.incumbent:
        wanted.append([*missing([*heldout, *neutral], memory(policy.sha256_of(job.incumbent)))])
    n_tokens = sum(rows.count_tokens(items, budget) for items in wanted)
    if job.reward_model:
        asked = conduct.questions(base.tokenizer, lines.pairs(job.snapshot / "heldout.jsonl"), heldout)
        n_tokens += 2 * sum(len(question.prompt) + conduct.N_TOKENS for question in asked)
    return n_tokens


@dataclass(frozen=True)
class Examiner:
    """What the examination of a trained model takes."""

    base: Base
    model: PeftModel  # the new adapter is active
    job: Job
    heldout: Sequence[Pair]
    score: Callable[[Sequence[Item], Memory], Scores]  # of the version that is active
    memory: Callable[[str], Memory]  # of the version known by this name
    watch: Watch
    progress: Progress
    budget: int  # tokens per pass

    def examine(self, sha256: str, reference: Scores) -> dict[str, Any]:
        """All of evaluation.json. `sha256`: the new adapter's; `reference` knows the base's scores of the held-out pairs.

        Each version's margins are by the reward of the method that trained it, the same whenever it is examined.
        """
        pairs = self.heldout
        asked = conduct.questions(self.base.tokenizer, lines.pairs(self.job.snapshot / "heldout.jsonl"), pairs)
        versions = self._observe_all(sha256, asked)
        new, old = versions["new"], versions.get("incumbent")
        answers = evaluate.alone(asked, new)
        mine, theirs = self.job.params.reward, self._incumbents_reward()
        measured = {
            # Of every second answer: exact over the vocabulary, it varies little, and all would cost as much as sampling.
            "kl": in_smaller_parts(
                partial(divergence.per_token, self.model, self.base.model, answers[::2]), self.budget, MIN_BUDGET
            ),
            "kl_chosen": evaluate.kl_chosen(pairs, new.scores, reference),
            "win_rate": self._judge(answers, evaluate.alone(asked, old or versions["base"])),
            "claims_probabilities": {"new": mine.is_probability, "incumbent": theirs.is_probability},
        }
        new_margins = evaluate.margins(pairs, new.scores, reference, mine)
        old_margins = evaluate.margins(pairs, old.scores if old else reference, reference, theirs)
        return {
            "heldout": evaluate.report(pairs, new_margins, old_margins),
            "policy": evaluate.describe(versions, asked, self.base.tokenizer) | measured,
        }

    def _incumbents_reward(self) -> Reward:
        """By the manifest. The base has rewards of 0 by any; one from elsewhere is ranked as the new, and claims nothing."""
        mine = self.job.params.reward
        if self.job.incumbent is None:
            return replace(mine, is_probability=True)
        try:
            manifest = json.loads((self.job.incumbent / "manifest.json").read_text(encoding="utf-8"))
            return catalog.parse(manifest["method"], manifest["params"]).reward
        except (OSError, ValueError, KeyError, TypeError):
            return replace(mine, is_probability=False)

    def _observe_all(self, sha256: str, asked: Sequence[Question]) -> dict[str, Version]:
        versions = {"new": self._observe(sha256, asked)}
        with self.model.disable_adapter():
            versions["base"] = self._observe("base", asked)
        if self.job.incumbent:
            with policy.incumbent(self.model, self.job.incumbent):
                versions["incumbent"] = self._observe(policy.sha256_of(self.job.incumbent), asked)
        return versions

    def _observe(self, who: str, asked: Sequence[Question]) -> Version:
        """What is measured of the version that is active, known as `who`."""
        neutral = conduct.neutral_items(self.base.tokenizer)
        scores = self.score([*self.heldout, *neutral], self.memory(who))
        self.watch.check()
        responses = conduct.respond(self.base, who, asked, self.job.cache)
        return Version(scores, responses, conduct.perplexity(neutral, scores))

    def _judge(self, new: Sequence[Alone], other: Sequence[Alone]) -> dict[str, Any] | None:
        """The win rate by the campaign's reward model; None where it has none. Raises TrainingError if it is broken."""
        if self.job.reward_model is None:
            return None
        judge = reward.load(self.base, self.job.reward_model)
        rewards = reward.score(judge, [*new, *other], self.job.cache, self.budget, self.watch, self.progress)
        return evaluate.compare(new, other, rewards) | {"reward_model": judge.sha256}
