"""The engine put together from a model folder: weights, tokenizer, versions, scheduler."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from serving.engine import memory, model_folder, weights
from serving.engine.cache import BLOCK, PrefixCache
from serving.engine.metrics import Metrics
from serving.engine.model import Model, Segment
from serving.engine.model_folder import Manifest, ModelConfig
from serving.engine.native import NativeModel, PackedLayout, compiler
from serving.engine.scheduler import Limits, Scheduler
from serving.engine.text import Tokenizer
from serving.engine.turns import Turns
from serving.engine.versions import Version, Versions

log = logging.getLogger("engine")

DEFAULT_CONTEXT = 8192
DEFAULT_CACHE = Path("~/.cache/alignapp")


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
    memory_bytes: int = 0  # for all weights and caches together; 0: no limit
    cache: Path = DEFAULT_CACHE  # where the compiled step is kept
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
    model, layout = _model(options, config, context, dtype, device)
    n_bytes = memory.of_base(config, dtype.itemsize, sums_in_float32=layout.sums_in_float32)
    max_bytes = _bytes_for_weights(options, n_bytes, memory.of_token(config, dtype.itemsize))
    checkpoint = weights.Checkpoint(options.model, dtype, device, layout)
    try:
        base_weights = weights.load(config, checkpoint)
    except (KeyError, RuntimeError, MemoryError) as error:
        if memory.is_exhausted(error):
            raise model_folder.BrokenModel(
                f"The machine has no memory for {options.model}, which needs {n_bytes / 2**20:.0f} MiB."
            ) from error
        raise model_folder.BrokenModel(f"{options.model} does not hold the weights it promises: {error}.") from error
    _warm(model, base_weights)
    base = Version(options.name, manifest["sha256"], base_weights, options.model, int(time.time()), n_bytes)
    prefixes, metrics, turns = PrefixCache(options.prefix_cache_bytes), Metrics(), Turns()
    versions = Versions(
        base, config, manifest, checkpoint, options.adapters, options.max_adapters, prefixes.drop, max_bytes, turns
    )
    scheduler = Scheduler(model, versions, prefixes, options.limits, metrics, turns)
    tokenizer = Tokenizer(options.model, config)
    return Engine(options, manifest, model, tokenizer, versions, prefixes, scheduler, metrics)


def _model(
    options: Options, config: ModelConfig, context: int, dtype: torch.dtype, device: torch.device
) -> tuple[Model, weights.Layout]:
    """The native step where it can run, else torch's, and how each wants its matrices."""
    if device.type == "cpu" and dtype == torch.bfloat16:
        try:
            library = compiler.library(options.cache.expanduser())
            n_threads = options.n_threads or torch.get_num_threads()
            return NativeModel(config, context, library, n_threads), PackedLayout()
        except RuntimeError as reason:  # Unavailable, or there is no home for the cache
            log.warning("computing by torch, at half the speed: %s", reason)
    return Model(config, context, dtype, device), weights.TorchLayout()


def _bytes_for_weights(options: Options, of_base: int, of_token: int) -> int:
    """What the memory budget leaves when all caches are full; 0: no limit. Raises BrokenModel when the base exceeds it."""
    if not options.memory_bytes:
        return 0
    caches = options.limits.max_tokens * of_token + options.prefix_cache_bytes
    needed = caches + of_base
    if needed > options.memory_bytes:
        raise model_folder.BrokenModel(
            f"The model and its caches need {needed / 2**20:.0f} MiB, more than the {options.memory_bytes / 2**20:.0f} MiB "
            "of --memory-mib: lower --max-tokens or --prefix-cache-mib."
        )
    return options.memory_bytes - caches


def _warm(model: Model, base: weights.Weights) -> None:
    """Kernels are made when a shape is first seen: make those of a prompt block and of a step now."""
    n = min(BLOCK, model.context - 1)
    cache = model.new_cache(n + 1)
    hidden = model.hidden(base, [Segment(cache, 0, [0] * n)])
    hidden = model.hidden(base, [Segment(cache, n, [0])])
    model.logits(base, hidden)
