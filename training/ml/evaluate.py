"""The evidence for the gate: held-out pairs under the new adapter and the incumbent, and how each version behaves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from training.implicit_reward import Reward
from training.ml import behaviour, conduct, win_rate
from training.ml.conduct import Question
from training.ml.data import Pair, end_of_turn
from training.ml.rows import Tokens
from training.ml.scores import Alone, Scores


@dataclass(frozen=True)
class Version:
    """What was measured of the base, the incumbent or the new adapter."""

    scores: Scores  # of the responses of the held-out pairs
    responses: list[list[int]]  # one to each question
    perplexity: float  # of neutral texts


def margins(pairs: Sequence[Pair], policy: Scores, reference: Scores, reward: Reward) -> list[float]:
    """Reward of the chosen − reward of the rejected response per pair: > 0 where the policy agrees with people."""

    def of(prompt: Tokens, response: Tokens) -> float:
        return float(reward.of(policy[prompt, response] - reference[prompt, response], len(response)))

    return [of(pair.prompt, pair.chosen) - of(pair.prompt, pair.rejected) for pair in pairs]


def kl_chosen(pairs: Sequence[Pair], policy: Scores, reference: Scores) -> float | None:
    """Mean over pairs of the chosen response's log-ratio per token, in nats; below zero where it has become less likely.

    The step's metric of this name, on held-out pairs. It is no KL, whatever the stored name says: nothing is sampled from
    the policy.
    """
    ratios = [
        (policy[pair.prompt, pair.chosen] - reference[pair.prompt, pair.chosen]) / len(pair.chosen) for pair in pairs
    ]
    return sum(ratios) / len(ratios) if ratios else None


def report(pairs: Sequence[Pair], new: Sequence[float], incumbent: Sequence[float]) -> list[dict[str, Any]]:
    """What evaluation.json holds of each held-out pair."""
    return [
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


def describe(
    versions: Mapping[str, Version], asked: Sequence[Question], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Figures of behaviour by version ("new", "base", "incumbent"), and what each answered to each question."""
    end = end_of_turn(tokenizer)
    responses = {name: version.responses for name, version in versions.items()}
    texts = {name: _texts(found, tokenizer) for name, found in responses.items()}
    return {
        "n_tokens": conduct.N_TOKENS,
        "temperature": conduct.TEMPERATURE,
        "seed": conduct.SEED,
        "length": _each(behaviour.mean_length, responses),
        "unfinished": _each(lambda found: behaviour.unfinished(found, end), responses),
        "repetition": _each(behaviour.repetition, responses),
        "distinct_2": _each(behaviour.distinct, responses),
        "refusal_rate": _each(behaviour.refusal_rate, {name: _fixed(found, asked) for name, found in texts.items()}),
        "perplexity": {name: version.perplexity for name, version in versions.items()},
        "samples": [_sample(i, question, responses, texts) for i, question in enumerate(asked)],
    }


def alone(asked: Sequence[Question], version: Version) -> list[Alone]:
    """A version's responses as items to be scored."""
    return [Alone(question.prompt, tuple(found)) for question, found in zip(asked, version.responses, strict=True)]


def compare(new: Sequence[Alone], other: Sequence[Alone], rewards: Scores) -> dict[str, Any]:
    """The win rate of `new` against the `other` version's responses to the same prompts, by rewards in logits."""

    def lengths(items: Sequence[Alone]) -> Any:
        return np.array([float(len(item.response)) for item in items])

    gained = [rewards[a.prompt, a.response] - rewards[b.prompt, b.response] for a, b in zip(new, other, strict=True)]
    return win_rate.measure(np.array(gained), lengths(new), lengths(other))


def _each(figure: Callable[[Any], float], found: Mapping[str, Any]) -> dict[str, float]:
    return {name: figure(responses) for name, responses in found.items()}


def _texts(responses: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.decode(list(response), skip_special_tokens=True)).strip() for response in responses]


def _fixed(texts: Sequence[str], asked: Sequence[Question]) -> list[str]:
    """Those to the prompts that nobody needs to decline; what a campaign asks may be for declining."""
    return [text for text, question in zip(texts, asked, strict=True) if question.is_fixed]


def _sample(
    i: int, question: Question, responses: Mapping[str, Sequence[Sequence[int]]], texts: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    return {
        "prompt": question.messages,
        "is_fixed": question.is_fixed,
        "n_tokens": {name: len(found[i]) for name, found in responses.items()},
        **{name: found[i] for name, found in texts.items()},
    }
