"""The model that learns: a frozen base and a LoRA adapter on its linear layers, by peft."""

import hashlib
import json
import math
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from training import catalog
from training.ml import attention, lora
from training.ml.errors import TrainingError
from training.ml.logprobs import token_logps
from training.ml.rows import pack
from training.ml.scores import Alone

VERIFY_TOLERANCE = 0.1  # nats a token: bf16 rounds within a third of it; an unknown operation is far outside
NEW, INCUMBENT = "default", "incumbent"  # names of adapters within peft; "default" is what a lone adapter has


@dataclass(frozen=True)
class Base:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    sha256: str  # identity of the weights
    chat_template_sha256: str

    @property
    def path_key(self) -> str:
        """What a log-probability depends on besides tokens and adapter: the weights and the numeric path."""
        return f"{self.sha256} {self.model.dtype} {self.model.device.type} rows-2"


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (avx512_bf16, amx_bf16 or Arm's bf16); without, fp32 is faster."""
    if platform.system() != "Linux":
        return False
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def device_and_dtype() -> tuple[torch.device, torch.dtype]:
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
    return torch.device("cpu"), torch.bfloat16 if has_fast_bf16() else torch.float32


def load_base(folder: Path, *, dtype: torch.dtype | None = None) -> Base:
    """The model in a Hugging Face folder with alignapp-model.json. Raises TrainingError when it cannot be loaded."""
    logging.disable_progress_bar()
    device, fastest = device_and_dtype()
    try:
        identity = json.loads((folder / "alignapp-model.json").read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or fastest,
            attn_implementation=attention.NAME,
            local_files_only=True,
            trust_remote_code=False,
        )
        sha256 = str(identity["sha256"])
    except (
        Exception
    ) as error:  # a folder can be broken in any way; safetensors, tokenizers and json each raise their own
        raise TrainingError(
            f"The model in {folder.name} cannot be loaded ({error}); prepare it again.", "model"
        ) from error
    if not tokenizer.chat_template:
        raise TrainingError(f"The model in {folder.name} has no chat template; use an instruct model.", "model")
    template = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
    model = _frozen(model, device)
    verify(model)
    return Base(model, tokenizer, folder, sha256, identity.get("chat_template_sha256", template))


def _frozen(model: torch.nn.Module, device: torch.device) -> Any:
    return model.requires_grad_(False).to(device)


def verify(model: PreTrainedModel) -> None:
    """Raises TrainingError unless packed rows give the log-probabilities of the model's own forward pass.

    Some architectures scale, cap or window in ways that `attention` and `logprobs` do not know of.
    """
    tokens = tuple(range(10, 26))
    halves = Alone(tokens[:8], tokens[8:12]), Alone(tokens[:8], tokens[12:])
    with torch.no_grad():
        ours = token_logps(model, pack(halves, 64, device=model.device)[0])
        model.set_attn_implementation("eager")
        theirs = [_own_logps(model, half) for half in halves]
        model.set_attn_implementation(attention.NAME)
    difference = (ours - torch.cat(theirs)).abs().mean().item()
    if not difference < VERIFY_TOLERANCE:
        kind = type(model).__name__
        raise TrainingError(f"The trainer does not support this model ({kind}): its log-probabilities differ.", "model")


def _own_logps(model: PreTrainedModel, item: Alone) -> torch.Tensor:
    ids = torch.tensor([item.prompt + item.response], device=model.device)
    logps = model(ids, use_cache=False).logits[0, len(item.prompt) - 1 : -1].float().log_softmax(-1)
    return logps.gather(-1, ids[0, len(item.prompt) :, None])[:, 0]


def add_adapter(base: Base, params: catalog.Common) -> PeftModel:
    """A new LoRA adapter that changes nothing yet (B = 0), initialised by params.seed."""
    torch.manual_seed(params.seed)
    return get_peft_model(base.model, _ours(new_config(base.model, params)), adapter_name=NEW)


def new_config(model: PreTrainedModel, params: catalog.Common) -> LoraConfig:
    """What the parameters say of an adapter's shape and scale, for this model."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=params.lora_rank,
        lora_alpha=params.lora_alpha,  # type: ignore[arg-type]  # peft divides by it: a float is as good
        use_rslora=params.rslora,
        target_modules=_modules(model, TARGETS[params.target_modules]),
        layers_to_transform=_layers(model, SHARES[params.layers]),
        lora_dropout=0.0,
        bias="none",
    )


TARGETS = {"all-linear": "", "attention": "attn", "mlp": "mlp"}  # part of the path of a linear layer
SHARES = {"all": 1.0, "top_half": 1 / 2, "top_third": 1 / 3}  # of the layers, from the top


def _modules(model: PreTrainedModel, part: str) -> list[str]:
    """Names of the linear layers within the decoder's blocks whose path has `part` in it."""
    names = {
        name.rpartition(".")[2]
        for name, module in model.get_decoder().named_modules()
        if isinstance(module, torch.nn.Linear) and part in name
    }
    if not names:
        raise TrainingError(f"This model has no linear layers called {part}; choose all-linear.", "config")
    return sorted(names)


def _layers(model: PreTrainedModel, share: float) -> list[int] | None:
    """Indices of the top layers, rounded up; None for all of them."""
    n_layers = int(model.config.num_hidden_layers)
    n_frozen = n_layers - math.ceil(share * n_layers)
    return list(range(n_frozen, n_layers)) if n_frozen else None


# Parameters that an adapter keeps when it is trained on -> what its configuration says of them, comparable.
KEPT: dict[str, Callable[[LoraConfig, PreTrainedModel], Any]] = {
    "lora_rank": lambda config, model: config.r,
    "lora_alpha": lambda config, model: float(config.lora_alpha),
    "rslora": lambda config, model: bool(config.use_rslora),
    "target_modules": lambda config, model: _target_names(config, model),
    "layers": lambda config, model: _layer_numbers(config, model),
}


def refuse_other_shape(base: Base, folder: Path, params: catalog.Common) -> None:
    """Raises TrainingError where the incumbent's adapter is not what the parameters ask for: training it on keeps its
    rank, scale and places."""
    with _readable(folder):
        config = read_config(folder)
    for name, kept in KEPT.items():
        if kept(config, base.model) != kept(new_config(base.model, params), base.model):
            raise TrainingError(_why_refused(name, config, base.model, params), "config")


def _why_refused(name: str, config: LoraConfig, model: PreTrainedModel, params: catalog.Common) -> str:
    has = _as_chosen(name, config, model, params)
    which = f"has {has}: set {name} to {has}, or start" if has is not None else "has none of the choices: start"
    return (
        f"{name} is {getattr(params, name)}, but the current version, which is to be trained on, {which} from the base."
    )


def _as_chosen(name: str, config: LoraConfig, model: PreTrainedModel, params: catalog.Common) -> Any:
    """The parameter's value that makes what the adapter has; None where no value does."""
    kept = KEPT[name]
    choices: dict[str, Iterable[str]] = {"target_modules": TARGETS, "layers": SHARES}
    if name not in choices:
        return kept(config, model)
    for choice in choices[name]:
        changes: dict[str, Any] = {name: choice}
        if kept(new_config(model, replace(params, **changes)), model) == kept(config, model):
            return choice
    return None


def _target_names(config: LoraConfig, model: PreTrainedModel) -> Any:
    """Names of layers, without their paths; a pattern as it stands."""
    if config.target_modules == "all-linear":
        return set(_modules(model, ""))
    if not config.target_modules or isinstance(config.target_modules, str):
        return config.target_modules
    return {name.rpartition(".")[2] for name in config.target_modules}


def _layer_numbers(config: LoraConfig, model: PreTrainedModel) -> list[int]:
    found = config.layers_to_transform
    if found is None:
        return list(range(int(model.config.num_hidden_layers)))
    return sorted([found] if isinstance(found, int) else found)


def add_incumbent(base: Base, folder: Path) -> PeftModel:
    """The incumbent's adapter as the one that is trained on."""
    with _readable(folder):
        return PeftModel.from_pretrained(base.model, folder, NEW, is_trainable=True, config=read_config(folder))


def sha256_of(folder: Path) -> str:
    """The identity of the adapter in a folder: the hash of its weights. Raises TrainingError."""
    with _readable(folder):
        return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


@contextmanager
def incumbent(model: PeftModel, folder: Path) -> Iterator[None]:
    """The incumbent's adapter instead of the new one."""
    with _readable(folder):
        model.load_adapter(folder, INCUMBENT, peft_config=read_config(folder))
    model.set_adapter(INCUMBENT, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(NEW)
        model.delete_adapter(INCUMBENT)


def parameters(model: PeftModel) -> list[torch.nn.Parameter]:
    """What is trained: the adapter's matrices, in a fixed order."""
    return [p for _, p in sorted(model.named_parameters()) if p.requires_grad]


def second_matrices(model: PeftModel) -> list[torch.nn.Parameter]:
    """Of what is trained the B of every layer, which is zero in a new adapter."""
    return [p for name, p in sorted(model.named_parameters()) if p.requires_grad and ".lora_B." in name]


def read_config(folder: Path) -> LoraConfig:
    """A folder's adapter_config.json, for our own LoRA layers."""
    return _ours(LoraConfig.from_pretrained(str(folder)))


def _ours(config: LoraConfig) -> LoraConfig:
    config._register_custom_module({torch.nn.Linear: lora.Linear})
    return config


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise TrainingError(f"The current adapter {folder.name} cannot be loaded: {error}", "incumbent") from error
