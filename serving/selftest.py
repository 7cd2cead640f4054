"""Does the engine apply the adapter that the trainer made? Compares effects, not log-probabilities.

Absolute log-probabilities cannot answer that: in bf16, rounding moves them by half as much as an adapter does. What the
adapter *changes*, (adapter − base) per token, is compared with the trainer's own measurement of the same 16 texts.

Measured with SmolLM2-135M in bf16: rounding alone moves an effect by 0.06 nats (rms), so an adapter of a short run, whose
effects are of that size, cannot reach a correlation of 0.9. Its slope is still known within a few hundredths, because
it comes from hundreds of tokens; there, what the slope leaves unexplained must be no more than rounding.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from django.utils.translation import gettext as _

from serving.artifacts import Probes
from serving.client import Engine

MIN_SLOPE, MAX_SLOPE = 0.8, 1.2
MIN_CORRELATION = 0.9
MAX_ROUNDING = 0.1  # nats, rms; below it a low correlation says nothing
# Where the base gives a token less than this (nats), rounding is loudest, and the model never writes it.
MIN_LOGPROB = -10.0


@dataclass(frozen=True)
class SelfTest:
    slope: float  # least squares through the origin: measured ≈ slope · expected; 1 when the scale is right
    correlation: float  # 0 when either side is constant
    rms_expected: float  # nats per token
    rms_measured: float
    rms_unexplained: float  # of measured − slope · expected
    n_tokens: int

    @property
    def is_passed(self) -> bool:
        is_alike = self.correlation >= MIN_CORRELATION or self.rms_unexplained <= MAX_ROUNDING
        return MIN_SLOPE <= self.slope <= MAX_SLOPE and is_alike

    def verdict(self) -> str:
        """One sentence for people."""
        numbers = {"slope": f"{self.slope:.3f}", "correlation": f"{self.correlation:.3f}", "n": self.n_tokens}
        if self.is_passed:
            return _("Passed: slope %(slope)s, correlation %(correlation)s over %(n)d tokens.") % numbers
        return (
            _(
                "Failed: on the engine the adapter does not do what it did in training (slope %(slope)s, must be 0.8 to"
                " 1.2; correlation %(correlation)s, should be 0.9 or more; %(n)d tokens)."
            )
            % numbers
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"is_passed": self.is_passed, "verdict": self.verdict()}


def measure(engine: Engine, base: str, adapter: str, probes: Probes) -> SelfTest:
    """Runs the probes through model `base` and model `adapter` of one engine. Raises EngineDown, EngineError."""
    before = np.concatenate(engine.prompt_logprobs(base, probes.token_ids))
    after = np.concatenate(engine.prompt_logprobs(adapter, probes.token_ids))
    expected = np.concatenate([np.asarray(effects, dtype=float) for effects in probes.effects])
    is_used = is_first(probes.token_ids) & (before > MIN_LOGPROB)
    return compare(expected[is_used], (after - before)[is_used])


def is_first(token_ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Whether each token's context occurs for the first time: (tokens,) of bool, for t = 1 … T−1 of each text.

    Texts through the chat template begin alike; that one measurement must not count eight times.
    """
    seen: set[tuple[int, ...]] = set()
    found = []
    for ids in token_ids:
        prefixes = [tuple(ids[: t + 1]) for t in range(1, len(ids))]
        found += [prefix not in seen for prefix in prefixes]
        seen.update(prefixes)
    return np.array(found, dtype=bool)


def compare(expected: np.ndarray, measured: np.ndarray) -> SelfTest:
    """The trainer's effects against the engine's, both of shape (tokens,), in nats."""
    energy = float(expected @ expected)
    slope = float(expected @ measured) / energy if energy > 0 else 0.0
    return SelfTest(
        slope=slope,
        correlation=_correlation(expected, measured),
        rms_expected=_rms(expected),
        rms_measured=_rms(measured),
        rms_unexplained=_rms(measured - slope * expected),
        n_tokens=len(expected),
    )


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r; 0 instead of NaN when either side does not vary."""
    if not len(x):
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0
