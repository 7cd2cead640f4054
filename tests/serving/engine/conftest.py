"""Engines, adapters and a running server for the tests of the engine."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import uvicorn
from safetensors.torch import save_file

from serving.engine import model_folder
from serving.engine.connection import Connection
from serving.engine.engine import Engine, Options, build
from serving.engine.lora import shape
from serving.engine.sampler import SamplingParams
from serving.engine.sequence import Done, Ending, Failed, Piece, Sequence
from serving.engine.server import create_app
from tests.models import make_tiny

TOKEN = "token-of-the-tests"
PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)

torch.set_num_threads(1)  # the models are tiny and the machine is shared


def make_adapter(
    folder: Path,
    model: Path,
    *,
    seed: int = 1,
    rank: int = 4,
    size: float = 0.1,
    rslora: bool = True,
    names: tuple[str, ...] = PROJECTIONS,
) -> Path:
    """A random adapter in PEFT's format, of which all products B A have entries of about `size` squared."""
    folder.mkdir(parents=True)
    config = model_folder.read_config(model)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config.n_layers):
        for name in names:
            n_out, n_in = shape(config, name)
            key = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = size * torch.randn(rank, n_in, generator=generator)
            tensors[f"{key}.lora_B.weight"] = size * torch.randn(n_out, rank, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "r": rank,
                "lora_alpha": 2 * rank,
                "use_rslora": rslora,
                "target_modules": sorted(name.split(".")[1] for name in names),
                "bias": "none",
                "base_model_name_or_path": str(model),
            }
        )
    )
    describe(folder, model)
    return folder


def describe(folder: Path, model: Path, **changes: str) -> None:
    """Write manifest.json for the adapter file as it is."""
    base = model_folder.read_manifest(model)
    manifest = {
        "sha256": hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "base_sha256": base["sha256"],
        "chat_template_sha256": base["chat_template_sha256"],
    }
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


class Listener:
    """Collects what a sequence says; `wait` until it has ended when an engine's thread drives it."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.done: Done | None = None
        self.failed: Failed | None = None
        self._ended = threading.Event()

    def __call__(self, event: Piece | Done | Failed) -> None:
        if isinstance(event, Piece):
            self.pieces.append(event)
            return
        if isinstance(event, Done):
            self.done = event
        else:
            self.failed = event
        self._ended.set()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def wait(self) -> "Listener":
        assert self._ended.wait(120)
        return self


ANY_TIME = Ending()
Submit = Callable[..., tuple[Sequence, Listener]]


def submit(
    engine: Engine,
    prompt: list[int],
    name: str = "base",
    draw: int = 0,
    caller: str = "",
    ending: Ending = ANY_TIME,
    **params: object,
) -> tuple[Sequence, Listener]:
    """Hand one sequence to the engine. Greedy by default."""
    listener = Listener()
    how = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, **params})  # type: ignore[arg-type]
    version = engine.versions.acquire(name)
    sequence = Sequence(version, prompt, how, engine.tokenizer, listener, draw=draw, ending=ending, caller=caller)
    engine.scheduler.submit([sequence])
    return sequence, listener


def drain(engine: Engine, *listeners: Listener) -> None:
    """Step an engine whose thread was not started, until all have ended."""
    for _ in range(10_000):
        if all(listener.has_ended for listener in listeners):
            return
        engine.scheduler.step()
    raise AssertionError("the engine does not come to an end")


@pytest.fixture(scope="session")
def native_model_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as the step in C++ computes it."""
    folder = tmp_path_factory.mktemp("models") / "native"
    make_tiny(model_dir, folder, is_native=True)
    return folder


@pytest.fixture
def adapters_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters"
    folder.mkdir()
    return folder


@pytest.fixture
def tiny(tiny_model_dir: Path, adapters_dir: Path) -> Engine:
    """An engine on the tiny model whose thread was not started: a test drives it step by step."""
    return build(Options(model=tiny_model_dir, adapters=adapters_dir))


@pytest.fixture
def serve() -> Iterator[Callable[[Engine], str]]:
    """Serve an engine on a free port in this process; -> its URL."""
    running: list[tuple[uvicorn.Server, threading.Thread, Engine]] = []

    def start(engine: Engine) -> str:
        engine.start()
        config = uvicorn.Config(
            create_app(engine, TOKEN),
            http=Connection,
            timeout_keep_alive=60,
            port=0,
            log_level="warning",
            lifespan="off",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread, engine))
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread, engine in running:
        engine.stop()
        server.should_exit = True
        thread.join(10)
        engine.join(10)
