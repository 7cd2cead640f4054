"""Rewards by the real engine on the real model, against transformers and peft on the same texts, both in fp32."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pytest_django import Settings
from transformers import AutoModelForCausalLM

from labeling import rewards
from labeling.models import Response
from serving import adapters
from serving.models import Adapter
from tests.labeling import make
from tests.serving.real import TOKEN, Maker, RealEngine, matrices

pytestmark = [pytest.mark.slow, pytest.mark.ml, pytest.mark.django_db(transaction=True)]
ANSWERS = [
    "A lighthouse warns ships of rocks and shows them the way into the harbour.",
    "No idea.",
    "- It shines at night.\n- It stands on a cliff.\n- Somebody used to live in it, and kept the lamp burning.",
    "Léuchtturm 灯台 🗼 1,234.5",
]


@pytest.fixture
def exact_model(model_dir: Path, tmp_path: Path) -> Path:
    """The same model, which the engine computes in fp32: sums over an answer's tokens would gather bf16's rounding."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_dir.iterdir():
        (folder / path.name).symlink_to(path)
    manifest = folder / "alignapp-model.json"
    card = json.loads(manifest.read_text())
    manifest.unlink()
    manifest.write_text(json.dumps(card | {"dtype": "float32"}))
    return folder


@pytest.fixture
def current(model_dir: Path, exact_model: Path, tmp_path: Path, settings: Settings) -> Iterator[Adapter]:
    """A published adapter of random matrices, trained with β = 0.2 by its manifest."""
    engine = RealEngine(exact_model, tmp_path / "adapters", tmp_path / "log.txt")
    settings.ENGINE_URLS, settings.ENGINE_TOKEN = [engine.url], TOKEN
    settings.MODEL, settings.ADAPTERS_DIR = str(model_dir), tmp_path / "adapters"
    try:
        maker, tensors = Maker(model_dir, tmp_path), matrices(model_dir, seed=3)
        folder = maker.write("trained", tensors=tensors, probes=maker.probes(tensors, "trained"))
        row = adapters.register(folder)
        adapters.publish(row)
        row.manifest["params"] = {"beta": 0.2}
        row.save()
        yield row
    finally:
        engine.kill()


@torch.no_grad()
def _expected(maker: Maker, adapter: Adapter, response: Response) -> float:
    """β Σ log π/π₀ in fp32 over the tokens after the prompt."""
    answer = {"role": "assistant", "content": response.text}
    template: Any = maker.tokenizer.apply_chat_template
    prompt = template(response.prompt.messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    tokens = template([*response.prompt.messages, answer], return_dict=True)["input_ids"]
    assert tokens[: len(prompt)] == prompt
    base = AutoModelForCausalLM.from_pretrained(maker.model, dtype=torch.float32)
    policy = PeftModel.from_pretrained(base, str(adapter.folder))

    def logps() -> torch.Tensor:
        found = policy(input_ids=torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)  # (T − 1, V)
        return found.gather(1, torch.tensor(tokens)[1:, None])[:, 0]

    changed = logps()
    with policy.disable_adapter():
        effects = changed - logps()
    return 0.2 * float(effects[len(prompt) - 1 :].sum())


def test_it_measures_the_reward_that_peft_does(current: Adapter, model_dir: Path, tmp_path: Path) -> None:
    campaign = make.campaign(strategy="uncertainty")
    for pair in (ANSWERS[:2], ANSWERS[2:]):
        make.comparison(campaign, *pair)
    assert rewards.score(seconds=120) is False
    maker = Maker(model_dir, tmp_path)
    for response in Response.objects.select_related("prompt"):
        expected = _expected(maker, current, response)
        assert response.rewarded_by == current
        assert response.reward == pytest.approx(expected, abs=0.01)
    found = [response.reward for response in Response.objects.all() if response.reward is not None]
    assert max(found) - min(found) > 0.3  # there was something to measure
