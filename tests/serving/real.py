"""The embedded engine as a process, and adapters for a real model whose effects transformers and peft computed."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from pytest_django import Settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.site import free_port
from serving.client import Engine, EngineDown, engines
from tests.serving import folders

TOKEN = "a-token-of-the-tests"
RANK, MODULES = 4, ("q_proj", "v_proj")
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


def trained(model: Path, scratch: Path, n: int) -> list[Path]:
    """`n` adapters that change much, with their true probes."""
    maker, made = Maker(model, scratch), []
    for seed in range(n):
        tensors = matrices(model, seed, size=0.5)
        made.append(maker.write(f"made-{seed}", tensors=tensors, probes=maker.probes(tensors, f"probed-{seed}")))
    return made


@contextmanager
def running(model: Path, folder: Path) -> Iterator[RealEngine]:
    """Its adapters and its log lie in `folder`."""
    engine = RealEngine(model, folder / "adapters", folder / "log.txt")
    yield engine
    engine.kill()


@contextmanager
def on(engine: RealEngine, settings: Settings, model: Path) -> Iterator[RealEngine]:
    """This site's settings point at the engine; it starts and ends with the base alone."""
    settings.ENGINE_URLS, settings.ENGINE_TOKEN = [engine.url], TOKEN
    settings.MODEL, settings.ADAPTERS_DIR = str(model), engine.log.parent / "adapters"
    yield engine
    [client] = engines()
    for name in client.models():
        if name != "base":
            client.unload(name)
    shutil.rmtree(settings.ADAPTERS_DIR, ignore_errors=True)
