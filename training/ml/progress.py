"""How much work there is, how fast it goes, how long it will take: in tokens of one forward pass."""

import time

TRAIN_COST = 3.0  # a forward and a backward pass, in forward passes


class Progress:
    """One rate for the reference pass, training and evaluation, measured as it goes."""

    def __init__(self) -> None:
        self.left = 0.0
        self.done = 0.0
        self.seconds = 0.0

    def plan(self, tokens: float) -> None:
        self.left += tokens

    def did(self, tokens: float, since: float) -> float | None:
        """Counts work done since time.monotonic() == since; the seconds left, None while nothing is known."""
        self.left = max(0.0, self.left - tokens)
        self.done += tokens
        self.seconds += time.monotonic() - since
        return round(self.left * self.seconds / self.done, 1) if self.done else None
