"""The menu: every method with its parameters, in one place. No torch, no Django.

A method is a batch source and a loss (later also an update transform, a parameter filter or a decoding rule). To add
one: a frozen dataclass here, one line in METHODS, one pure function of the same name in `training.ml.losses`. The form,
the validation, the API, the trainer and the parametrised tests all read this file.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args, get_type_hints


class ParameterError(ValueError):
    """A method or parameter that the catalog does not know or allow; the message says what is allowed."""


def param(default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: tuple = ()) -> Any:
    """A dataclass field with bounds (both inclusive) and a sentence for the form."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Common:
    """What every gradient method has."""

    start: str = param(
        "base",
        "begin from the base on all judgments, or continue the incumbent with replay",
        choices=("base", "incumbent"),
    )
    epochs: float = param(1.0, "passes over the training pairs", low=0.01, high=50)
    learning_rate: float = param(1e-4, "peak learning rate of AdamW", low=1e-8, high=1e-1)
    warmup: float = param(0.1, "share of steps with a rising rate", low=0, high=0.9)
    schedule: str = param("cosine", "how the rate falls after warm-up", choices=("constant", "linear", "cosine"))
    optimizer: str = param(
        "adamw",
        "AdamW; schedule-free AdamW, which averages instead of lowering the rate; or AdamW with LoRA+'s faster B",
        choices=("adamw", "schedule_free", "lora_plus"),
    )
    weight_decay: float = param(0.0, "AdamW's weight decay", low=0, high=1)
    max_grad_norm: float = param(1.0, "gradients are clipped to this norm", low=1e-3, high=1e3)
    batch_pairs: int = param(8, "pairs per optimizer step", low=1, high=4096)
    max_tokens: int = param(
        1024, "longest prompt with one response, in tokens; longer ones are cut and counted", low=32, high=32768
    )
    lora_rank: int = param(16, "rank of the adapter", low=1, high=256)
    lora_alpha: float = param(32.0, "scale of the adapter", low=0.1, high=1024)
    rslora: bool = param(True, "rank-stabilised scale, alpha/sqrt(rank) (Kalajdzievski 2023)")
    replay: float = param(1.0, "continuing the incumbent: old pairs per new pair", low=0, high=100)
    monitor: str = param(
        "act",
        "what watches over the run: acts on what it sees, only tells, or is off",
        choices=("act", "watch", "off"),
    )
    seed: int = param(0, "seed of order and initialisation", low=0, high=2**31 - 1)


@dataclass(frozen=True)
class DPO(Common):
    """Rafailov et al. 2023, arXiv 2305.18290, eq. 7; with label_smoothing, cDPO (Mitchell 2023)."""

    beta: float = param(0.1, "strength of the tie to the reference", low=1e-3, high=10)
    label_smoothing: float = param(0.0, "assumed share of flipped judgments", low=0, high=0.49)


@dataclass(frozen=True)
class IPO(Common):
    """Azar et al. 2023, arXiv 2310.12036, eq. 17: a squared loss that does not saturate."""

    beta: float = param(0.1, "regularisation tau", low=1e-3, high=10)


@dataclass(frozen=True)
class RPO(Common):
    """DPO plus a share of the chosen response's NLL (Pang et al. 2024, arXiv 2404.19733, eq. 1)."""

    beta: float = param(0.1, "strength of the tie to the reference", low=1e-3, high=10)
    nll_weight: float = param(0.2, "weight of the per-token NLL of the chosen response", low=0, high=10)


@dataclass(frozen=True)
class Method:
    name: str
    label: str
    source: str  # what it learns from: a name of training.ml.batches.SOURCES
    params: type[Common]
    output: str = "adapter"  # what a run leaves behind: "adapter" or "reward_model"


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("dpo", "DPO (sigmoid)", "pairs", DPO),
        Method("ipo", "IPO", "pairs", IPO),
        Method("rpo", "DPO with NLL mix (RPO)", "pairs", RPO),
    )
}


def get(name: str) -> Method:
    if name not in METHODS:
        raise ParameterError(f"There is no method {name!r}; choose one of {', '.join(sorted(METHODS))}.")
    return METHODS[name]


def parse(method: str, params: dict[str, Any]) -> Common:
    """The method's parameters, checked. Raises ParameterError on unknown keys, wrong types and values out of bounds."""
    cls = get(method).params
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(set(params) - set(known)):
        raise ParameterError(
            f"{method} has no parameter {', '.join(map(repr, unknown))}; it has {', '.join(sorted(known))}."
        )
    hints = get_type_hints(cls)
    values = {name: _check(method, known[name], hints[name], value) for name, value in params.items()}
    return cls(**values)


def _check(method: str, f: Any, kind: type, value: Any) -> Any:
    where = f"{method}: {f.name}"
    if get_args(kind):
        raise TypeError(f"{where}: catalog parameters are plain int, float, bool or str")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ParameterError(f"{where} must be of type {kind.__name__}, not {value!r}.")
    meta = f.metadata
    if meta["choices"] and value not in meta["choices"]:
        raise ParameterError(f"{where} must be one of {', '.join(meta['choices'])}, not {value!r}.")
    if kind in (int, float) and isinstance(value, int | float):
        low, high = meta["low"], meta["high"]
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            raise ParameterError(f"{where} must be between {low} and {high}, not {value!r}.")
    return value


def to_dict(params: Common) -> dict[str, Any]:
    return asdict(params)
