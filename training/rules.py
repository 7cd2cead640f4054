"""What the gate asks of an adapter, campaign by campaign: bounds with a sentence each, as the form shows them.

The defaults let an ordinary run on the default model through, with room; docs/log.md has the figures.
"""

import logging
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from django.utils.translation import gettext as _

from training.catalog import param

log = logging.getLogger(__name__)


class RuleError(ValueError):
    """A rule that there is not, or a value that it cannot have; the message says what is allowed."""


@dataclass(frozen=True)
class Rules:
    """Shares are from 0 to 1, lengths in tokens, divergences in nats per token."""

    min_heldout_prompts: int = param(
        10, "fewer held-out prompts than this cannot tell whether a version is better", low=2, high=100_000
    )
    max_accuracy_loss: float = param(
        0.0,
        "how far the interval of the difference in held-out accuracy may reach below zero; 0 asks for better beyond doubt",
        low=0,
        high=0.5,
    )
    max_brier_rise: float = param(
        0.05, "how much larger than the current version's the Brier score may be beyond doubt", low=0, high=1
    )
    max_excess: float = param(
        0.2, "by how much it may be surer of its choices than it is right, beyond doubt", low=0.01, high=1
    )
    max_kl: float = param(0.5, "divergence from the base per token of its own answers", low=0.001, high=20)
    max_chosen_fall: float = param(
        0.5, "by how many nats per token held-out chosen responses may have become less likely", low=0.001, high=20
    )
    max_length_ratio: float = param(
        2.2, "length of its answers, as a multiple of the current version's", low=1, high=20
    )
    min_length_ratio: float = param(
        0.4, "length of its answers, as a multiple of the current version's, at least", low=0, high=1
    )
    max_unfinished_rise: float = param(
        0.35, "share of answers that run to the limit, above the current version's", low=0, high=1
    )
    max_repetition: float = param(
        0.1, "share of 4-grams that stood in the same answer before; at least 1.5 times the base's", low=0, high=1
    )
    max_refusal_rise: float = param(
        0.1, "share of harmless prompts that it declines to answer, above the current version's", low=0, high=1
    )
    max_perplexity_rise: float = param(
        0.02, "rise of its perplexity on neutral texts, as a share of the base's", low=0, high=10
    )
    min_win_rate: float = param(
        0.5,
        "against the current version, by the campaign's reward model and at equal lengths; missed only beyond doubt",
        low=0,
        high=1,
    )


def parse(values: dict[str, Any]) -> Rules:
    """Rules from what a campaign has set; the rest are defaults. Raises RuleError."""
    known = {rule.name: rule for rule in fields(Rules)}
    if not isinstance(values, dict) or (unknown := sorted(set(values) - set(known))):
        raise RuleError(_("There is no rule %s.") % (", ".join(unknown) if isinstance(values, dict) else repr(values)))
    return Rules(**{name: _check(known[name], value) for name, value in values.items()})


def read(values: dict[str, Any]) -> Rules:
    """Rules from what a campaign has stored. What another version of this program allowed and this one does not is logged, and
    counts with its default: what a run took hours to learn is judged all the same.
    """
    kept = {}
    for name, value in values.items():
        try:
            parse({name: value})
        except RuleError as error:
            log.warning("a stored rule of the gate is not used: %s", error)
        else:
            kept[name] = value
    return parse(kept)


def changed(rules: Rules) -> dict[str, Any]:
    """What differs from the defaults: what a campaign stores, so that better defaults reach it."""
    defaults = asdict(Rules())
    return {name: value for name, value in asdict(rules).items() if value != defaults[name]}


def _check(rule: Any, value: Any) -> Any:
    low, high = rule.metadata["low"], rule.metadata["high"]
    kinds = (int,) if rule.type is int else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high:
        raise RuleError(
            _("%(name)s must be a number from %(low)s to %(high)s, not %(value)r.")
            % {"name": rule.name, "low": low, "high": high, "value": value}
        )
    return value if rule.type is int else float(value)
