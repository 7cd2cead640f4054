"""What the engine counts, as Prometheus text. Names that vLLM also has are vLLM's, so one dashboard reads both."""

from bisect import bisect_left
from collections import Counter

from serving.engine.sequence import Sequence

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Counts of observations by upper bound, as Prometheus wants them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> list[str]:
        found, so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            found.append(f'{name}_bucket{{le="{bound}"}} {so_far}')
        return [f"# TYPE {name} histogram", *found, f"{name}_sum {self.total:.6f}", f"{name}_count {so_far}"]


class Metrics:
    """Written by the engine's thread, read by the server's; each value is one number, so a read is never torn."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.prompt_tokens_cached = 0
        self.prompt_tokens_computed = 0
        self.generation_tokens = 0
        self.endings: Counter[str] = Counter({"done": 0, "cancelled": 0, "failed": 0})
        self.first_token = Histogram(SECONDS)
        self.between_tokens = Histogram(SECONDS)

    def count_token(self, sequence: Sequence, now: float) -> None:
        """now: monotonic seconds."""
        self.generation_tokens += 1
        if len(sequence.tokens) == 1:
            self.prompt_tokens += len(sequence.prompt)
            self.prompt_tokens_cached += sequence.n_cached
            self.first_token.add(now - sequence.arrived_at)
        else:
            self.between_tokens.add(now - sequence.token_at)
        sequence.token_at = now

    def render(self, n_running: int, n_waiting: int, prefix_bytes: int, n_versions: int) -> str:
        """Prometheus' text format, version 0.0.4."""
        values = {
            ("vllm:num_requests_running", "gauge"): n_running,
            ("vllm:num_requests_waiting", "gauge"): n_waiting,
            ("vllm:prompt_tokens_total", "counter"): self.prompt_tokens,
            ("vllm:generation_tokens_total", "counter"): self.generation_tokens,
            ("vllm:prefix_cache_queries_total", "counter"): self.prompt_tokens,
            ("vllm:prefix_cache_hits_total", "counter"): self.prompt_tokens_cached,
            ("engine:prompt_tokens_computed_total", "counter"): self.prompt_tokens_computed,
            ("engine:prefix_cache_bytes", "gauge"): prefix_bytes,
            ("engine:versions_resident", "gauge"): n_versions,
        }
        lines = [
            line for (name, kind), value in values.items() for line in (f"# TYPE {name} {kind}", f"{name} {value}")
        ]
        lines.append("# TYPE engine:requests_ended_total counter")
        lines += [f'engine:requests_ended_total{{outcome="{k}"}} {n}' for k, n in sorted(self.endings.items())]
        lines += self.first_token.lines("vllm:time_to_first_token_seconds")
        lines += self.between_tokens.lines("vllm:inter_token_latency_seconds")
        return "\n".join(lines) + "\n"
