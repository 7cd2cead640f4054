"""Held-out pairs under the new adapter and the incumbent: the evidence for the gate."""

from typing import Any

from training.ml.data import Pair
from training.ml.scores import Scores


def margins(pairs: list[Pair], policy: Scores, reference: Scores, beta: float) -> list[float]:
    """beta * (log-ratio of the chosen − log-ratio of the rejected response) per pair: > 0 where the policy agrees."""
    return [
        beta
        * (
            (policy[pair.prompt, pair.chosen] - reference[pair.prompt, pair.chosen])
            - (policy[pair.prompt, pair.rejected] - reference[pair.prompt, pair.rejected])
        )
        for pair in pairs
    ]


def report(pairs: list[Pair], new: list[float], incumbent: list[float]) -> dict[str, Any]:
    """What evaluation.json holds."""
    return {
        "heldout": [
            {
                "pair": pair.id,
                "prompt_sha256": pair.prompt_sha256,
                "label": pair.label,
                "weight": pair.weight,
                "margin": new_margin,
                "incumbent_margin": incumbent_margin,
                "chars_chosen": pair.n_chars_chosen,
                "chars_rejected": pair.n_chars_rejected,
            }
            for pair, new_margin, incumbent_margin in zip(pairs, new, incumbent, strict=True)
        ]
    }
