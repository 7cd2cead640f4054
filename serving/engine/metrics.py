"""What the engine counts, as Prometheus text. Names that vLLM also has are vLLM's, so one dashboard reads both."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

from serving.engine.sequence import Sequence

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LONG_SECONDS = (0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0)


class Histogram:
    """Counts of observations by upper bound, as Prometheus wants them."""

    def __init__(self, name: str, about: str, bounds: tuple[float, ...]) -> None:
        self.name, self.about, self.bounds = name, about, bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, labels: str) -> list[str]:
        found, so_far = _head(self.name, "histogram", self.about), 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            found.append(f'{self.name}_bucket{{{labels},le="{bound}"}} {so_far}')
        return [*found, f"{self.name}_sum{{{labels}}} {self.total:.6f}", f"{self.name}_count{{{labels}}} {so_far}"]


class Metrics:
    """Written by the engine's thread, read by the server's; each value is one number, so a read is never torn."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.prompt_tokens_cached = 0
        self.prompt_tokens_computed = 0
        self.generation_tokens = 0
        self.endings: Counter[str] = Counter({"done": 0, "timeout": 0, "cancelled": 0, "failed": 0})
        self.reasons: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0, "error": 0})
        self.first_token = Histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", SECONDS)
        self.between_tokens = Histogram("vllm:inter_token_latency_seconds", "Between two tokens.", SECONDS)
        self.in_queue = Histogram("vllm:request_queue_time_seconds", "From arrival to admission.", LONG_SECONDS)
        self.whole = Histogram("vllm:e2e_request_latency_seconds", "From arrival to the end.", LONG_SECONDS)
        self.of_prompt = Histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.of_answer = Histogram("vllm:request_generation_tokens", "Tokens of an answer.", TOKENS)

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

    def count_ending(self, sequence: Sequence, outcome: str, now: float) -> None:
        """outcome: a key of `endings`. now: monotonic seconds."""
        self.endings[outcome] += 1
        self.reasons[sequence.reason or "abort"] += 1
        if not sequence.is_admitted:
            return
        self.in_queue.add(sequence.begun_at - sequence.arrived_at)
        self.whole.add(now - sequence.arrived_at)
        self.of_prompt.add(len(sequence.prompt))
        self.of_answer.add(len(sequence.tokens))

    def render(self, model: str, gauges: dict[str, float]) -> str:
        """Prometheus' text format, version 0.0.4. model: the base's name; gauges: values of GAUGES by name."""
        labels = f'model_name="{_escaped(model)}",engine="0"'
        lines = [line for name, about in GAUGES.items() for line in _single(name, "gauge", about, labels, gauges[name])]
        for name, (attribute, about) in COUNTERS.items():
            lines += _single(name, "counter", about, labels, getattr(self, attribute))
        lines += _by_label("vllm:request_success_total", "Ended, by reason.", labels, "finished_reason", self.reasons)
        lines += _by_label("engine:requests_ended_total", "Ended, by outcome.", labels, "outcome", self.endings)
        for histogram in (self.first_token, self.between_tokens, self.in_queue, self.whole):
            lines += histogram.lines(labels)
        for histogram in (self.of_prompt, self.of_answer):
            lines += histogram.lines(labels)
        return "\n".join(lines) + "\n"


GAUGES = {
    "vllm:num_requests_running": "Sequences that are computed.",
    "vllm:num_requests_waiting": "Sequences that wait for their turn.",
    "vllm:kv_cache_usage_perc": "Part of the tokens' limit that running sequences have reserved; 1 is all.",
    "engine:prefix_cache_bytes": "Memory of shared prompts.",
    "engine:weights_bytes": "Memory of the weights of all resident versions.",
    "engine:versions_resident": "Versions that requests may name, the base included.",
}
COUNTERS = {
    "vllm:prompt_tokens_total": ("prompt_tokens", "Prompt tokens of requests that have begun to answer."),
    "vllm:generation_tokens_total": ("generation_tokens", "Tokens generated."),
    "vllm:prefix_cache_queries_total": ("prompt_tokens", "Prompt tokens looked up in the prefix cache."),
    "vllm:prefix_cache_hits_total": ("prompt_tokens_cached", "Prompt tokens found there."),
    "engine:prompt_tokens_computed_total": ("prompt_tokens_computed", "Prompt tokens computed."),
}


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]


def _single(name: str, kind: str, about: str, labels: str, value: float) -> Iterable[str]:
    return [*_head(name, kind, about), f"{name}{{{labels}}} {value}"]


def _by_label(name: str, about: str, labels: str, label: str, counts: Counter[str]) -> list[str]:
    return [
        *_head(name, "counter", about),
        *(f'{name}{{{labels},{label}="{key}"}} {n}' for key, n in sorted(counts.items())),
    ]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
