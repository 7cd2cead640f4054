"""From a forward pass to the input of a loss: the scores of a pack's responses put beside what is known of them.

A kind of example (`catalog.Method.source`) is one line in SOURCES: how its scores are gathered and what the metrics tell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from training.implicit_reward import Reward
from training.ml.data import Example, Pair, Single
from training.ml.losses import Logps, PairLogps, ResponseLogps
from training.ml.rows import Pack
from training.ml.scores import Scores

Columns = dict[str, torch.Tensor]  # a metric's name -> its values for the examples that have one


@dataclass(frozen=True)
class Source:
    """gather(scores (R,), pack, its examples, reference, kl) and describe(logps, examples, reward)."""

    gather: Callable[[torch.Tensor, Pack, Sequence[Example], Scores, torch.Tensor], Logps]
    describe: Callable[[Logps, Sequence[Example], Reward], Columns]


def gather_pairs(
    scores: torch.Tensor, batch: Pack, pairs: Sequence[Pair], reference: Scores, kl: torch.Tensor | None = None
) -> PairLogps:
    """scores (R,) of the pack's responses -> those of the pairs (B,), beside the reference's."""

    def of(response: str) -> torch.Tensor:
        return scores[[batch.order[pair.prompt, getattr(pair, response)] for pair in pairs]]

    return PairLogps(
        policy_chosen=of("chosen"),
        policy_rejected=of("rejected"),
        reference_chosen=scores.new_tensor([reference[pair.prompt, pair.chosen] for pair in pairs]),
        reference_rejected=scores.new_tensor([reference[pair.prompt, pair.rejected] for pair in pairs]),
        n_chosen=scores.new_tensor([len(pair.chosen) for pair in pairs]),
        n_rejected=scores.new_tensor([len(pair.rejected) for pair in pairs]),
        label=scores.new_tensor([pair.label for pair in pairs]),
        tie_share=scores.new_tensor([pair.tie_share for pair in pairs]),
        margin=scores.new_tensor([pair.margin for pair in pairs]),
    )


def gather_responses(
    scores: torch.Tensor, batch: Pack, singles: Sequence[Single], reference: Scores, kl: torch.Tensor
) -> ResponseLogps:
    """scores (R,) of the pack's responses -> those of the examples (B,); `kl` () is the step's."""
    return ResponseLogps(
        policy=scores[[batch.order[single.prompt, single.response] for single in singles]],
        reference=scores.new_tensor([reference[single.prompt, single.response] for single in singles]),
        n_tokens=scores.new_tensor([len(single.response) for single in singles]),
        is_good=scores.new_tensor([float(single.is_good) for single in singles]),
        kl=kl.to(scores.dtype),
    )


def describe_pairs(logps: PairLogps, pairs: Sequence[Pair], reward: Reward) -> Columns:
    """Accuracy and margin are those of pairs that people decided: a tie has no right side.

    `kl_chosen` is the log-ratio per token of each chosen response; as a mean what `evaluate.kl_chosen` measures, and no KL.
    """
    decided = [i for i, pair in enumerate(pairs) if not pair.is_tie]
    chosen = reward.of(logps.chosen_logratio, logps.n_chosen)  # (B,)
    rejected = reward.of(logps.rejected_logratio, logps.n_rejected)  # (B,)
    gap = (chosen - rejected)[decided]
    return {
        "accuracy": (gap > 0).to(gap.dtype) + 0.5 * (gap == 0),  # undecided: half right
        "margin": gap,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "logp_chosen": logps.policy_chosen,
        "kl_chosen": logps.chosen_logratio / logps.n_chosen,
    }


def describe_responses(logps: ResponseLogps, singles: Sequence[Single], reward: Reward) -> Columns:
    """Good responses stand where pairs have the chosen one; right is a log-ratio that rose for good, fell for bad."""
    good = [i for i, single in enumerate(singles) if single.is_good]
    bad = [i for i, single in enumerate(singles) if not single.is_good]
    rewards = reward.of(logps.logratio, logps.n_tokens)  # (B,)
    towards = rewards * (2 * logps.is_good - 1)
    return {
        "accuracy": (towards > 0).to(towards.dtype) + 0.5 * (towards == 0),
        "margin": towards,
        "chosen_reward": rewards[good],
        "rejected_reward": rewards[bad],
        "logp_chosen": logps.policy[good],
        "kl_chosen": (logps.logratio / logps.n_tokens)[good],
    }


PAIRS = Source(gather_pairs, describe_pairs)  # type: ignore[arg-type]
RESPONSES = Source(gather_responses, describe_responses)  # type: ignore[arg-type]
SOURCES = {"pairs": PAIRS, "pairs_with_ties": PAIRS, "unpaired": RESPONSES, "edits": RESPONSES}
