"""Does the engine apply the adapter that the trainer made? Compares effects, not log-probabilities.

Absolute log-probabilities cannot answer that: in bf16, rounding moves them by half as much as an adapter does. What the
adapter *changes*, (adapter − base) per token, is compared with the trainer's own measurement of the same 16 texts.
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


@dataclass(frozen=True)
class SelfTest:
    slope: float  # least squares through the origin: measured ≈ slope · expected; 1 when the scale is right
    correlation: float  # 0 when either side is constant
    rms_expected: float  # nats per token
    rms_measured: float
    n_tokens: int

    @property
    def is_passed(self) -> bool:
        return MIN_SLOPE <= self.slope <= MAX_SLOPE and self.correlation >= MIN_CORRELATION

    def verdict(self) -> str:
        """One sentence for people."""
        numbers = {"slope": f"{self.slope:.3f}", "correlation": f"{self.correlation:.3f}", "n": self.n_tokens}
        if self.is_passed:
            return _("Passed: slope %(slope)s, correlation %(correlation)s over %(n)d tokens.") % numbers
        return (
            _(
                "Failed: on the engine the adapter does not do what it did in training (slope %(slope)s, must be 0.8 to"
                " 1.2; correlation %(correlation)s, must be at least 0.9; %(n)d tokens)."
            )
            % numbers
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"is_passed": self.is_passed, "verdict": self.verdict()}


def measure(engine: Engine, base: str, adapter: str, probes: Probes) -> SelfTest:
    """Runs the probes through model `base` and model `adapter` of one engine. Raises EngineDown, EngineError."""
    effects = [
        np.subtract(engine.prompt_logprobs(adapter, ids), engine.prompt_logprobs(base, ids)) for ids in probes.token_ids
    ]
    return compare(np.concatenate([np.asarray(e, dtype=float) for e in probes.effects]), np.concatenate(effects))


def compare(expected: np.ndarray, measured: np.ndarray) -> SelfTest:
    """The trainer's effects against the engine's, both of shape (tokens,), in nats."""
    energy = float(expected @ expected)
    return SelfTest(
        slope=float(expected @ measured) / energy if energy > 0 else 0.0,
        correlation=_correlation(expected, measured),
        rms_expected=_rms(expected),
        rms_measured=_rms(measured),
        n_tokens=len(expected),
    )


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r; 0 instead of NaN when either side does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else 0.0


def _rms(values: Sequence[float] | np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
