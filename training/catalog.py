"""The menu: every method with its parameters, in one place. No torch, no Django.

A method is a batch source and a loss (later also an update transform, a parameter filter or a decoding rule). To add
one: one line in METHODS and one pure function of the same name in `training.ml.losses`, and a frozen dataclass where no
method has the same parameters. The form, the validation, the API, the trainer, docs/methods.md and the parametrised
tests all read this file.
"""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_args, get_type_hints

from training.implicit_reward import Reward


class ParameterError(ValueError):
    """A method or parameter that the catalog does not know or allow; the message says what is allowed."""


AUTO = -1.0  # a value that is measured instead of given


def param(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple = (),
    measured: str = "",
) -> Any:
    """A dataclass field with bounds (both inclusive) and a sentence for the form.

    `measured`: the figure of the snapshot's card that AUTO stands for.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "measured": measured}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Common:
    """What every gradient method has."""

    start: str = param(
        "base",
        "begin from the base on all judgments, or continue the incumbent with replay",
        choices=("base", "incumbent"),
    )
    epochs: float = param(1.0, "passes over what is learned from", low=0.01, high=50)
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
    batch_pairs: int = param(8, "pairs, or single responses, per optimizer step", low=1, high=4096)
    max_tokens: int = param(
        1024, "longest prompt with one response, in tokens; longer ones are cut and counted", low=32, high=32768
    )
    lora_rank: int = param(16, "rank of the adapter", low=1, high=256)
    lora_alpha: float = param(32.0, "scale of the adapter", low=0.1, high=1024)
    rslora: bool = param(True, "rank-stabilised scale, alpha/sqrt(rank) (Kalajdzievski 2023)")
    layers: str = param(
        "all",
        "layers that learn: with fewer, what lies below is computed once for the whole run, several times as fast",
        choices=("all", "top_half", "top_third"),
    )
    target_modules: str = param(
        "all-linear", "what the adapter changes in these layers", choices=("all-linear", "attention", "mlp")
    )
    anchor: float = param(
        0.0,
        "weight of the per-token NLL of preferred responses on top of any loss, so that they stay likely",
        low=0,
        high=10,
    )
    replay: float = param(1.0, "continuing the incumbent: old pairs per new pair", low=0, high=100)
    monitor: str = param(
        "act",
        "what watches over the run: acts on what it sees, only tells, or is off",
        choices=("act", "watch", "off"),
    )
    seed: int = param(0, "seed of order and initialisation", low=0, high=2**31 - 1)

    @property
    def reward(self) -> Reward:
        """Without β a loss defines none. Such losses, ORPO and SFT, are per token; so is what ranks their responses."""
        return Reward(per_token=True, is_probability=False)


def _beta(default: float = 0.1, help: str = "strength of the tie to the reference") -> Any:
    return param(default, help, low=1e-3, high=20)


@dataclass(frozen=True)
class Rewarding(Common):
    """What methods have that define a reward, β · log-ratio."""

    beta: float = _beta()

    @property
    def reward(self) -> Reward:
        return Reward(self.beta)


@dataclass(frozen=True)
class DPO(Rewarding):
    """Rafailov et al. 2023, arXiv 2305.18290, eq. 7; with margin_scale, ODPO (Amini et al. 2024, arXiv 2402.10571)."""

    margin_scale: float = param(
        0.0, "reward gap that each step of the grade asks for, as in ODPO; 0 ignores grades", low=0, high=10
    )


@dataclass(frozen=True)
class FlippedDPO(DPO):
    """cDPO (Mitchell 2023) and robust DPO (Chowdhury et al. 2024, arXiv 2403.00409, section 3)."""

    flip_rate: float = param(
        0.1,
        "share of judgments taken to be the wrong way round; -1 takes it from gold checks and repeats",
        low=AUTO,
        high=0.4,
        measured="flip_rate",
    )

    def __post_init__(self) -> None:
        if self.flip_rate != AUTO and self.flip_rate < 0:
            raise ParameterError(f"flip_rate must be between 0 and 0.4, or {AUTO:g}, not {self.flip_rate!r}.")


@dataclass(frozen=True)
class IPO(Rewarding):
    """Azar et al. 2023, arXiv 2310.12036, eq. 17: a squared loss that does not saturate."""

    beta: float = _beta(help="regularisation, the paper's tau: the gap aimed at is 1/(2 beta)")
    per_token: bool = param(False, "log-ratios per token instead of per response, as TRL has it")

    @property
    def reward(self) -> Reward:
        return Reward(self.beta, self.per_token)


@dataclass(frozen=True)
class RPO(DPO):
    """DPO plus a share of the chosen response's NLL (Pang et al. 2024, arXiv 2404.19733, eq. 1)."""

    nll_weight: float = param(0.2, "weight of the per-token NLL of the chosen response", low=0, high=10)


@dataclass(frozen=True)
class NormalisedDPO(Rewarding):
    """Lambert et al. 2024 (Tülu 3), arXiv 2411.15124, section 5: DPO with log-ratios per token."""

    beta: float = _beta(5.0, "strength of the tie to the reference, per token")

    @property
    def reward(self) -> Reward:
        return Reward(self.beta, per_token=True)


@dataclass(frozen=True)
class TieDPO(Rewarding):
    """Chen et al. 2024, arXiv 2409.17431, section 3: DPO under a model of ties by Rao and Kupper (1967)."""

    nu: float = param(
        3.0, "how common ties are: equal responses tie with probability (nu-1)/(nu+1)", low=1.01, high=100
    )


@dataclass(frozen=True)
class DavidsonDPO(Rewarding):
    """Chen et al. 2024, arXiv 2409.17431, section 3: DPO under a model of ties by Davidson (1970)."""

    nu: float = param(1.0, "how common ties are: equal responses tie with probability nu/(1+nu)", low=0.01, high=100)


@dataclass(frozen=True)
class SimPO(Rewarding):
    """Meng et al. 2024, arXiv 2405.14734, eq. 6: mean log-probabilities, no reference."""

    beta: float = _beta(2.0, "scale of the mean log-probability")
    gamma: float = param(1.0, "margin that the chosen response must win by", low=0, high=20)

    @property
    def reward(self) -> Reward:
        """The paper's, β log π/|y|, less the base's: only what was learned counts, as with every other method."""
        return Reward(self.beta, per_token=True)


@dataclass(frozen=True)
class ORPO(Common):
    """Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7: NLL and odds ratio, no reference."""

    odds_weight: float = param(0.1, "weight of the odds ratio beside the NLL, the paper's lambda", low=0, high=10)


@dataclass(frozen=True)
class Unpaired(Rewarding):
    """What methods that learn from single responses have."""

    good_weight: float = param(1.0, "weight of good responses", low=0, high=100)
    bad_weight: float = param(1.0, "weight of bad responses", low=0, high=100)
    is_balanced: bool = param(True, "weighs good and bad responses so that each side counts the same")
    splits_pairs: bool = param(True, "learns from pairs too: the chosen response is good, the rejected one bad")


@dataclass(frozen=True)
class KTO(Unpaired):
    """Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7: prospect theory on single responses."""


@dataclass(frozen=True)
class APOZero(Unpaired):
    """D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7: good responses up, bad ones down, each for itself."""


@dataclass(frozen=True)
class SFT(Common):
    """Supervised fine-tuning: the per-token NLL of what people wrote (Ouyang et al. 2022, arXiv 2203.02155, sec. 3.5)."""


@dataclass(frozen=True)
class RewardModel(Common):
    """Bradley and Terry with ties (Rao & Kupper 1967, eq. 2.1), margins and rewards around 0 (arXiv 2312.09244)."""

    start: str = param("base", "begin from the base on all judgments", choices=("base",))
    ties: str = param(
        "learned",
        "what a tie says: closer than a threshold that is learned, or than tie_theta; or half a vote for each side",
        choices=("learned", "given", "half"),
    )
    tie_theta: float = param(1.5, "odds at which people see a difference, where ties are given", low=1.001, high=100)
    margin_scale: float = param(0.0, "by how much rewards should differ per step of the grade", low=0, high=10)
    centre: float = param(0.01, "weight of what keeps rewards around 0", low=0, high=10)

    @property
    def reward(self) -> Reward:
        """What it says of a response is the reward."""
        return Reward()


@dataclass(frozen=True)
class Method:
    name: str
    label: str
    source: str  # what it learns from: a key of SOURCES
    params: type[Common]
    use: str  # when to choose it, for the form and the docs
    output: str = "adapter"  # what a run leaves behind: "adapter" or "reward_model"
    wants_kl: bool = False  # its loss needs the KL on responses to other prompts


# What a method learns from -> what people call it.
SOURCES: dict[str, str] = {
    "pairs": "pairs with a preferred response",
    "pairs_with_ties": "pairs, ties among them",
    "unpaired": "single responses that people found good or bad",
    "edits": "responses that people wrote or improved",
}

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("dpo", "DPO (sigmoid)", "pairs", DPO, "The default. Soft labels, weights and grades count."),
        Method("cdpo", "Conservative DPO", "pairs", FlippedDPO, "Some judgments are wrong: never grows too sure."),
        Method("robust", "Robust DPO", "pairs", FlippedDPO, "Many judgments are wrong: unbiased under random flips."),
        Method("ipo", "IPO", "pairs", IPO, "Few or very clear judgments: stops at a fixed gap, does not over-fit."),
        Method("hinge", "Hinge (SLiC)", "pairs", DPO, "Stops learning from a pair once it is clearly right."),
        Method("rpo", "DPO with NLL mix (RPO)", "pairs", RPO, "Keeps the chosen response likely while the gap grows."),
        Method(
            "dpo_norm", "Length-normalised DPO", "pairs", NormalisedDPO, "Responses differ in length; favours neither."
        ),
        Method("simpo", "SimPO", "pairs", SimPO, "No tie to the base: learns fast, drifts fast; short runs."),
        Method("orpo", "ORPO", "pairs", ORPO, "Style and format from the chosen responses and the preference at once."),
        Method(
            "rao_kupper", "Tie-aware DPO (Rao-Kupper)", "pairs_with_ties", TieDPO, "Many ties: learns from them too."
        ),
        Method(
            "davidson", "Tie-aware DPO (Davidson)", "pairs_with_ties", DavidsonDPO, "Many ties; softer on far gaps."
        ),
        Method("kto", "KTO", "unpaired", KTO, "Thumbs up and down, with or without pairs.", wants_kl=True),
        Method("apo_zero", "APO-zero", "unpaired", APOZero, "Thumbs; good responses are better than the model's own."),
        Method("sft", "SFT on edits", "edits", SFT, "People wrote or improved responses: imitate them."),
        Method(
            "reward_model",
            "Reward model",
            "pairs_with_ties",
            RewardModel,
            "Scores responses: for ranking, choosing what to label, best-of-n and the gate; never answers in chat.",
            output="reward_model",
        ),
    )
}


@dataclass(frozen=True)
class Preset:
    """Named parameters that the start form offers; only what every method has."""

    name: str
    label: str
    help: str
    params: dict[str, Any]


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("balanced", "Balanced", "the defaults", {}),
        Preset(
            "fast",
            "Fast",
            "only the top third of the layers learns: several times as fast, in less memory, and learns a little less",
            {"layers": "top_third"},
        ),
        Preset(
            "careful",
            "Careful",
            "half the rate, and the preferred responses are kept likely",
            {"learning_rate": 5e-5, "anchor": 0.2},
        ),
        Preset(
            "thorough",
            "Thorough",
            "three passes with a larger adapter; hundreds of pairs",
            {"epochs": 3.0, "lora_rank": 32},
        ),
    )
}


def get(name: str) -> Method:
    if name not in METHODS:
        raise ParameterError(f"There is no method {name!r}; choose one of {', '.join(sorted(METHODS))}.")
    return METHODS[name]


def others(method: str) -> list[str]:
    """The methods that leave something else behind than this one does; one that is gone left an adapter."""
    output = METHODS[method].output if method in METHODS else "adapter"
    return [m.name for m in METHODS.values() if m.output != output]


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


def measure(params: Common, card: dict[str, Any]) -> Common:
    """The parameters with every AUTO replaced by the snapshot card's figure, within the parameter's bounds.

    Raises ParameterError when the card does not know it: a guess would pass for a measurement.
    """
    found = {}
    for f in fields(params):
        if f.metadata["measured"] and getattr(params, f.name) == AUTO:
            value = card.get(f.metadata["measured"])
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ParameterError(
                    f"{f.name} cannot be measured yet: nobody answered gold checks or repeats. Give it a number."
                )
            found[f.name] = min(max(float(value), 0.0), f.metadata["high"])
    return replace(params, **found)


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
