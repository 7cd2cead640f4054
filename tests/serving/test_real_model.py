"""Publishing on the real engine and the real model: what the scripted engine can only claim."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from peft import PeftModel
from pytest_django import Settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.site import free_port
from serving import adapters, chat, gateway
from serving.client import Engine, EngineDown, engines
from serving.models import Adapter, DeploymentEvent, Message
from tests.serving import folders

pytestmark = [pytest.mark.slow, pytest.mark.ml, pytest.mark.django_db(transaction=True)]
TOKEN = "a-token-of-the-tests"
RANK, MODULES = 4, ("q_proj", "v_proj")
GREEDY = {"temperature": 0.0, "max_tokens": 48}
TEXTS = [f"{start} {end}" for start in ("The old ferry", "A recipe begins", "She said that", "Water is")
         for end in ("left the harbour at noon.", "with a bowl of flour.", "the answer was simple.", "cold and clear.")]  # fmt: skip


def matrices(model: Path, seed: int, size: float = 0.02) -> dict[str, np.ndarray]:
    """Random matrices for every query and value projection: B (out, r), A (r, in)."""
    card = json.loads((model / "config.json").read_text())
    hidden, head = card["hidden_size"], card["head_dim"]
    widths = {"q_proj": card["num_attention_heads"] * head, "v_proj": card["num_key_value_heads"] * head}
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(card["num_hidden_layers"]):
        for module in MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = random.normal(0, hidden**-0.5, (RANK, hidden)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = random.normal(0, size, (widths[module], RANK)).astype(np.float32)
    return tensors


class Maker:
    """Writes adapter folders for the real model, with effects computed by transformers and peft in fp32."""

    def __init__(self, model: Path, scratch: Path) -> None:
        self.model, self.scratch = model, scratch
        self.card = json.loads((model / "alignapp-model.json").read_text())
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.token_ids = [self.tokenizer(text)["input_ids"] for text in TEXTS]

    def write(self, name: str, *, tensors: dict[str, np.ndarray], probes: dict[str, Any], alpha: int = 8) -> Path:
        return folders.write(
            self.scratch / name,
            tensors=tensors,
            probe_data=probes,
            config_changes={"r": RANK, "lora_alpha": alpha, "target_modules": list(MODULES)},
            manifest_changes={
                "base_sha256": self.card["sha256"],
                "chat_template_sha256": self.card["chat_template_sha256"],
            },
        )

    def probes(self, tensors: dict[str, np.ndarray], name: str) -> dict[str, Any]:
        """What the adapter does to each token of TEXTS."""
        empty = {"texts": TEXTS, "token_ids": self.token_ids, "effects": [[0.0] * (len(i) - 1) for i in self.token_ids]}
        folder = self.write(f"{name}-untested", tensors=tensors, probes=empty)
        base = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        policy = PeftModel.from_pretrained(base, str(folder))
        changed = self._logps(policy)
        with policy.disable_adapter():
            effects = changed - self._logps(policy)
        kept = zip(effects.tolist(), self.token_ids, strict=True)
        return empty | {"effects": [effect[: len(ids) - 1] for effect, ids in kept]}

    @torch.no_grad()
    def _logps(self, policy: PeftModel) -> torch.Tensor:
        """(B, T−1). Padded on the right, which no earlier token sees."""
        rows = [torch.tensor(ids) for ids in self.token_ids]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, T)
        logps = policy(input_ids=tokens).logits[:, :-1].log_softmax(-1)  # (B, T−1, V)
        return logps.gather(2, tokens[:, 1:, None])[..., 0]


@pytest.fixture(scope="module")
def maker(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(model_dir, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def trained(maker: Maker, model_dir: Path) -> dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Two adapters: their matrices and their true probes."""
    made = {name: matrices(model_dir, seed) for seed, name in enumerate(("one", "two"))}
    return {name: (tensors, maker.probes(tensors, name)) for name, tensors in made.items()}


class RealEngine:
    """The embedded engine as a process that can be killed and started again on its port."""

    def __init__(self, model: Path, folder: Path, log: Path) -> None:
        self.port, self.log = free_port(), log
        self.command = [
            sys.executable, "-m", "serving.engine", "--model", str(model), "--name", "base",
            "--adapters", str(folder), "--port", str(self.port),
        ]  # fmt: skip
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            environment = {**os.environ, "ENGINE_TOKEN": TOKEN}
            self.process = subprocess.Popen(self.command, env=environment, stdout=log, stderr=log)
        while not self._is_ready():
            assert self.process.poll() is None, self.log.read_text()

    def _is_ready(self) -> bool:
        try:
            return bool(Engine(self.url, TOKEN).models())
        except EngineDown:
            time.sleep(0.1)
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def process(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    folder = tmp_path_factory.mktemp("engine")
    running = RealEngine(model_dir, folder / "adapters", folder / "log.txt")
    yield running
    running.kill()


@pytest.fixture
def site(process: RealEngine, settings: Settings, model_dir: Path) -> Iterator[RealEngine]:
    """This site's settings point at the engine; it starts and ends with the base alone."""
    settings.ENGINE_URLS, settings.ENGINE_TOKEN = [process.url], TOKEN
    settings.MODEL = str(model_dir)
    settings.ADAPTERS_DIR = process.log.parent / "adapters"
    yield process
    for name in engines()[0].models():
        if name != "base":
            engines()[0].unload(name)
    shutil.rmtree(settings.ADAPTERS_DIR, ignore_errors=True)


@pytest.fixture
def registered(maker: Maker, trained: dict[str, Any], site: RealEngine, tmp_path: Path) -> Callable[[str], Adapter]:
    def register(name: str) -> Adapter:
        tensors, probes = trained[name]
        return adapters.register(maker.write(str(tmp_path / name), tensors=tensors, probes=probes))

    return register


def test_it_publishes_an_adapter_that_works_as_in_training(registered: Callable[[str], Adapter]) -> None:
    row = registered("one")
    adapters.publish(row)
    row.refresh_from_db()
    assert row.status == Adapter.Status.READY
    assert row.self_test["rms_expected"] > 0.1
    assert row.self_test["slope"] == pytest.approx(1, abs=0.1)
    assert row.self_test["correlation"] > 0.95
    assert adapters.current() == row


@pytest.mark.parametrize("fault", ["zeroed", "swapped", "scaled"])
def test_it_rejects_an_adapter_that_does_not(
    maker: Maker, trained: dict[str, Any], site: RealEngine, tmp_path: Path, fault: str
) -> None:
    tensors, probes = trained["one"]
    if fault == "zeroed":
        tensors = {name: value * ("lora_A" in name) for name, value in tensors.items()}
    if fault == "swapped":
        tensors = trained["two"][0]
    alpha = 4 if fault == "scaled" else 8  # half of what it was trained with
    row = adapters.register(maker.write(str(tmp_path / fault), tensors=tensors, probes=probes, alpha=alpha))
    with pytest.raises(adapters.NotServable):
        adapters.publish(row)
    assert Adapter.objects.get(pk=row.pk).status == Adapter.Status.REJECTED
    assert adapters.current().is_base


def asked(ada: User) -> Message:
    answer = chat.start(ada, "Tell me about the sea and the ships that sail on it.").children.get()
    Message.objects.filter(pk=answer.pk).update(sampling=GREEDY)
    return answer


async def read(answer: Message, meanwhile: Callable[[], Any] | None = None) -> str:
    """The whole answer; `meanwhile` runs once, after the fifth piece."""
    claimed = await gateway.in_database(chat.claim, answer.pk)
    assert claimed is not None
    n_pieces = 0
    async with aclosing(gateway.write(claimed)) as texts:
        async for _text in texts:
            n_pieces += 1
            if n_pieces == 5 and meanwhile is not None:
                await sync_to_async(meanwhile)()
    await answer.arefresh_from_db()
    return answer.content


@pytest.mark.usefixtures("closed_connections")
async def test_it_finishes_on_the_old_version_token_for_token_while_the_alias_moves(
    registered: Callable[[str], Adapter], ada: User
) -> None:
    old, new = await sync_to_async(registered)("one"), await sync_to_async(registered)("two")
    await sync_to_async(adapters.publish)(old)
    undisturbed = await read(await sync_to_async(asked)(ada))
    disturbed = await read(await sync_to_async(asked)(ada), lambda: adapters.publish(new))
    assert len(undisturbed.split()) > 20
    assert disturbed == undisturbed
    after = await read(await sync_to_async(asked)(ada))
    assert after != undisturbed
    await sync_to_async(adapters.rollback)()
    assert await read(await sync_to_async(asked)(ada)) == undisturbed
    generations = [event.generation async for event in DeploymentEvent.objects.order_by("generation")]
    assert generations == [1, 2, 3, 4]


@pytest.mark.usefixtures("closed_connections")
async def test_it_survives_a_killed_engine(registered: Callable[[str], Adapter], site: RealEngine, ada: User) -> None:
    row = await sync_to_async(registered)("one")
    await sync_to_async(adapters.publish)(row)
    answer = await sync_to_async(asked)(ada)
    partial = await read(answer, site.kill)
    assert (answer.status, bool(partial)) == (Message.Status.FAILED, True)
    assert "stopped in the middle" in answer.error
    starting = await sync_to_async(asked)(ada)
    assert await read(starting) == ""
    assert "starting" in starting.error
    await sync_to_async(site.start)()
    await sync_to_async(adapters.reconcile)()
    assert row.name in await sync_to_async(engines()[0].models)()
    assert (await read(await sync_to_async(asked)(ada))).startswith(partial)
