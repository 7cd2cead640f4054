"""What a policy's log-ratios mean to the method that trained it: its implicit reward (arXiv 2305.18290, eq. 5)."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reward:
    """Where it claims one, σ of the gap between two responses' rewards is the probability that people choose so."""

    beta: float = 1.0
    per_token: bool = False
    is_probability: bool = True

    def of(self, logratio: Any, n_tokens: Any) -> Any:
        """The rewards of responses, in nats: numbers, arrays or tensors of log π/ref and of the responses' lengths."""
        return self.beta * (logratio / n_tokens if self.per_token else logratio)
