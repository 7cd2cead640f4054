"""The engine put together from a model folder: weights, tokenizer, versions, scheduler."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from serving.engine import model_folder, weights
from serving.engine.cache import BLOCK, PrefixCache
from serving.engine.metrics import Metrics
from serving.engine.model import Model, Segment
from serving.engine.model_folder import Manifest
from serving.engine.scheduler import Limits, Scheduler
from serving.engine.text import Tokenizer
from serving.engine.versions import Version, Versions

DEFAULT_CONTEXT = 8192


@dataclass(frozen=True)
class Options:
    """What `python -m serving.engine` is told."""

    model: Path
    name: str = "base"
    adapters: Path | None = None
    n_threads: int = 0  # 0: all cores
    context: int = 0  # tokens; 0: what the model was trained for, at most DEFAULT_CONTEXT
    max_adapters: int = 4
    prefix_cache_bytes: int = 256 * 2**20
    limits: Limits = Limits()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class Engine:
    """All parts of a running engine."""

    options: Options
    manifest: Manifest
    model: Model
    tokenizer: Tokenizer
    versions: Versions
    prefixes: PrefixCache
    scheduler: Scheduler
    metrics: Metrics

    def start(self) -> None:
        self.scheduler.start(self.options.n_threads or torch.get_num_threads())

    def stop(self) -> None:
        """End all requests with an error. Does not wait."""
        self.versions.close()
        self.scheduler.stop()

    def join(self, seconds: float) -> None:
        self.scheduler.join(seconds)


def build(options: Options) -> Engine:
    """Load the base model. Raises BrokenModel. Start the result with `start`."""
    if options.n_threads:
        torch.set_num_threads(options.n_threads)
    manifest = model_folder.check(options.model)
    config = model_folder.read_config(options.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if manifest["dtype"] == "bfloat16" else torch.float32
    context = min(config.max_positions, options.limits.max_tokens, options.context or DEFAULT_CONTEXT)
    checkpoint = weights.Checkpoint(options.model, dtype, device)
    try:
        base_weights = weights.load(config, checkpoint)
    except (KeyError, RuntimeError) as error:
        raise model_folder.BrokenModel(f"{options.model} does not hold the weights it promises: {error}.") from error
    model = Model(config, context, dtype, device)
    _warm(model, base_weights)
    base = Version(options.name, manifest["sha256"], base_weights, options.model, int(time.time()))
    prefixes, metrics = PrefixCache(options.prefix_cache_bytes), Metrics()
    versions = Versions(base, config, manifest, checkpoint, options.adapters, options.max_adapters, prefixes.drop)
    scheduler = Scheduler(model, versions, prefixes, options.limits, metrics)
    tokenizer = Tokenizer(options.model, config)
    return Engine(options, manifest, model, tokenizer, versions, prefixes, scheduler, metrics)


def _warm(model: Model, base: weights.Weights) -> None:
    """Kernels are made when a shape is first seen: make those of a prompt block and of a step now."""
    cache = model.new_cache(BLOCK + 1)
    hidden = model.hidden(base, [Segment(cache, 0, [0] * BLOCK)])
    hidden = model.hidden(base, [Segment(cache, BLOCK, [0])])
    model.logits(base, hidden)
