"""What else the gate asks besides better choices: one line each, with the value found, the limit and the words.

The evidence is the trainer's `policy` part of evaluation.json, which is read with suspicion: a figure that is missing or no
finite number is a broken evaluation, never a guard that passed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from django.utils.translation import gettext as _

from training.heldout import Score
from training.rules import Rules

REPETITION_OF_BASE = 1.5  # a small base repeats itself too: the limit is never below this multiple of its share


class BrokenEvaluation(ValueError):
    """The trainer's evaluation.json is missing or does not hold what it must."""


@dataclass(frozen=True)
class Guard:
    """`words`: what is asked, `refusal`: what is wrong when it is not met; both for people."""

    name: str
    words: str
    value: float | None
    limit: float
    passed: bool
    refusal: str


@dataclass(frozen=True)
class Figures:
    """The `policy` part of evaluation.json, checked. `before` is the incumbent, or the base where there is none."""

    kl: float
    kl_chosen: float | None
    length: float  # tokens per answer that ended
    length_before: float
    unfinished: float
    unfinished_before: float
    repetition: float
    repetition_base: float
    refusals: float
    refusals_before: float
    perplexity: float
    perplexity_base: float
    win_rate: float | None  # at equal lengths
    win_rate_high: float | None  # upper end of its interval
    claims: bool  # whether its margins are logits: a method without a reward claims no probabilities
    claims_before: bool


def read(policy: Any) -> Figures:
    """Raises BrokenEvaluation."""
    if not isinstance(policy, dict):
        raise BrokenEvaluation(_("evaluation.json does not say how the new version behaves; retry the run."))
    before = "incumbent" if isinstance(policy.get("length"), dict) and "incumbent" in policy["length"] else "base"
    won = policy.get("win_rate")
    return Figures(
        kl=_number(policy, "kl"),
        kl_chosen=None if policy.get("kl_chosen") is None else _number(policy, "kl_chosen"),
        length=_length(policy, "new"),
        length_before=_length(policy, before),
        unfinished=_number(policy, "unfinished", "new"),
        unfinished_before=_number(policy, "unfinished", before),
        repetition=_number(policy, "repetition", "new"),
        repetition_base=_number(policy, "repetition", "base"),
        refusals=_number(policy, "refusal_rate", "new"),
        refusals_before=_number(policy, "refusal_rate", before),
        perplexity=_number(policy, "perplexity", "new"),
        perplexity_base=_positive(policy, "perplexity", "base"),
        win_rate=None if won is None else _number(policy, "win_rate", "length_controlled"),
        win_rate_high=None if won is None else _number(policy, "win_rate", "length_controlled_interval", 1),
        claims=_claims(policy, "new"),
        claims_before=_claims(policy, "incumbent"),
    )


def check(figures: Figures, score: Score, rules: Rules) -> list[Guard]:
    """Every guard there is evidence for."""
    return [
        *_calibration(figures, score, rules),
        *_divergence(figures, rules),
        *_answers(figures, rules),
        *_others(figures, rules),
    ]


def _calibration(figures: Figures, score: Score, rules: Rules) -> Iterator[Guard]:
    """Only what is beyond doubt refuses: the near end of the interval is compared with the limit."""
    if not figures.claims:
        what = _("Brier score and over-confidence: not asked, its method claims no probabilities")
        yield Guard("probabilities", what, None, rules.max_excess, True, "")
        return
    if score.brier is not None and score.incumbent_brier is not None and score.brier_low is not None:
        yield Guard(
            "brier",
            _("Brier score, above the current version's"),
            score.brier - score.incumbent_brier,
            rules.max_brier_rise,
            score.brier_low <= rules.max_brier_rise,
            _("its choices come with worse probabilities (Brier score %(value).3f, the current version's %(old).3f)")
            % {"value": score.brier, "old": score.incumbent_brier},
        )
    if score.excess is not None and score.excess_low is not None:
        yield Guard(
            "excess",
            _("how much surer it is of its choices than it is right"),
            score.excess,
            rules.max_excess,
            score.excess_low <= rules.max_excess,
            _("it is surer of its choices than it is right, by %(value)s points (limit %(limit)s)")
            % {"value": percent(score.excess), "limit": percent(rules.max_excess)},
        )


def _divergence(figures: Figures, rules: Rules) -> Iterator[Guard]:
    yield Guard(
        "kl",
        _("divergence from the base per token of its own answers"),
        figures.kl,
        rules.max_kl,
        figures.kl <= rules.max_kl,
        _("it has moved far from the base (%(value).2f nats per token, limit %(limit).2f)")
        % {"value": figures.kl, "limit": rules.max_kl},
    )
    if figures.kl_chosen is not None:
        fall = -figures.kl_chosen
        yield Guard(
            "chosen",
            _("fall of the likelihood of chosen responses, per token"),
            fall,
            rules.max_chosen_fall,
            fall <= rules.max_chosen_fall,
            _("what people chose has become less likely (by %(value).2f nats per token, limit %(limit).2f)")
            % {"value": fall, "limit": rules.max_chosen_fall},
        )


def _answers(figures: Figures, rules: Rules) -> Iterator[Guard]:
    ratio = figures.length / figures.length_before
    yield Guard(
        "longer",
        _("length of its answers, as a multiple of the current version's"),
        ratio,
        rules.max_length_ratio,
        ratio <= rules.max_length_ratio,
        _("answers have become longer (%(value).1f times, limit %(limit).1f)")
        % {"value": ratio, "limit": rules.max_length_ratio},
    )
    yield Guard(
        "shorter",
        _("length of its answers, as a multiple of the current version's, at least"),
        ratio,
        rules.min_length_ratio,
        ratio >= rules.min_length_ratio,
        _("answers have become shorter (%(value).2f times, at least %(limit).2f wanted)")
        % {"value": ratio, "limit": rules.min_length_ratio},
    )
    rise = figures.unfinished - figures.unfinished_before
    yield Guard(
        "unfinished",
        _("answers that run to the limit, above the current version's"),
        rise,
        rules.max_unfinished_rise,
        rise <= rules.max_unfinished_rise,
        _("answers do not end (%(value)s %% of them, %(old)s %% before)")
        % {"value": percent(figures.unfinished), "old": percent(figures.unfinished_before)},
    )
    limit = max(rules.max_repetition, REPETITION_OF_BASE * figures.repetition_base)
    yield Guard(
        "repetition",
        _("repeated 4-grams"),
        figures.repetition,
        limit,
        figures.repetition <= limit,
        _("answers repeat themselves (%(value)s %% of 4-grams, limit %(limit)s %%)")
        % {"value": percent(figures.repetition), "limit": percent(limit)},
    )


def _others(figures: Figures, rules: Rules) -> Iterator[Guard]:
    rise = figures.refusals - figures.refusals_before
    yield Guard(
        "refusals",
        _("harmless prompts that it declines to answer, above the current version's"),
        rise,
        rules.max_refusal_rise,
        rise <= rules.max_refusal_rise,
        _("it declines harmless prompts (%(value)s %% of them, %(old)s %% before)")
        % {"value": percent(figures.refusals), "old": percent(figures.refusals_before)},
    )
    worse = figures.perplexity / figures.perplexity_base - 1
    yield Guard(
        "perplexity",
        _("rise of the perplexity of neutral texts"),
        worse,
        rules.max_perplexity_rise,
        worse <= rules.max_perplexity_rise,
        _("it reads neutral texts worse (perplexity %(value)s %% above the base's, limit %(limit)s %%)")
        % {"value": percent(worse), "limit": percent(rules.max_perplexity_rise)},
    )
    if figures.win_rate is not None and figures.win_rate_high is not None:
        yield Guard(
            "win_rate",
            _("wins against the current version at equal lengths, by the reward model"),
            figures.win_rate,
            rules.min_win_rate,
            figures.win_rate_high >= rules.min_win_rate,
            _("the reward model prefers the current version (%(value)s %% of wins, 95 %% at most %(high)s %%)")
            % {"value": percent(figures.win_rate), "high": percent(figures.win_rate_high)},
        )


def percent(share: float) -> str:
    """0.312 → 31, 0.0312 → 3.1"""
    return f"{share * 100:.0f}" if abs(share) >= 0.1 else f"{share * 100:.1f}"


def _length(policy: dict[str, Any], version: str) -> float:
    """Tokens per answer that ended: how long answers would be without the limit, if each token ended one as likely as any
    other. (The mean of answers that are cut at a limit hardly grows, however much they do.) One more counts as ended, so
    that there is a figure where none did.
    """
    answers = policy.get("samples")
    n = len(answers) if isinstance(answers, list) else 0
    ended = n * (1 - _number(policy, "unfinished", version))
    if n == 0 or not 0 <= ended <= n:
        _broken(("unfinished", version))
    return n * _positive(policy, "length", version) / (ended + 1)


def _claims(policy: dict[str, Any], version: str) -> bool:
    """Older files say nothing of it: then all is asked."""
    if "claims_probabilities" not in policy:
        return True
    said = policy["claims_probabilities"]
    found = said.get(version) if isinstance(said, dict) else None
    return found if isinstance(found, bool) else _broken(("claims_probabilities", version))


def _positive(policy: dict[str, Any], *path: str | int) -> float:
    found = _number(policy, *path)
    return found if found > 0 else _broken(path)


def _number(policy: dict[str, Any], *path: str | int) -> float:
    found: Any = policy
    for step in path:
        is_there = isinstance(found, dict) if isinstance(step, str) else isinstance(found, list) and len(found) > step
        found = found.get(step) if is_there and isinstance(step, str) else found[step] if is_there else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        _broken(path)
    return float(found)


def _broken(path: Sequence[str | int]) -> NoReturn:
    raise BrokenEvaluation(
        _("evaluation.json has no usable figure %s; the trainer's log says why.") % ".".join(map(str, path))
    )
