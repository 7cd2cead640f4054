"""The tiny model in the dtypes the trainer's tests need."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.training.ml.cases import exact_norms, write_attempt
from training.ml import policy, train
from training.ml.watch import Watch


@contextmanager
def one_thread() -> Iterator[None]:
    """For matrices this small a second thread is only somebody to wait for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture
def base(tiny_model_dir: Path) -> policy.Base:
    """In float64 throughout: what is equal in mathematics is equal to 1e-10 here."""
    loaded = policy.load_base(tiny_model_dir, dtype=torch.float64)
    exact_norms(loaded.model)
    return loaded


@pytest.fixture
def base32(tiny_model_dir: Path) -> policy.Base:
    return policy.load_base(tiny_model_dir, dtype=torch.float32)


@pytest.fixture
def plain(tiny_model_dir: Path) -> PeftModel:
    """The same model as `base` and an adapter, with nothing of ours: peft's layers, torch's attention, all logits."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64, attn_implementation="sdpa")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32, use_rslora=True, target_modules="all-linear")
    return get_peft_model(exact_norms(model), config)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    """Nobody supervises."""
    return Watch(tmp_path, token=1)


@pytest.fixture(scope="session")
def finished(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An attempt that ran to its end undisturbed: the root of its run."""
    root = tmp_path_factory.mktemp("run")
    with one_thread():  # made for the session, before a module's own setting
        assert train.main(write_attempt(root, tiny_model_dir)) == 0
    return root
