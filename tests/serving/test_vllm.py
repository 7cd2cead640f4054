"""The recorded server against what vLLM's source says, where the site never looks so closely."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.client import Engine, EngineError
from tests.serving import folders, vllm
from tests.serving.vllm import RecordedVllm

TOKEN = "token-of-the-tests"
TALK = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def server() -> RecordedVllm:
    return RecordedVllm(TOKEN, max_cpu_loras=2, max_lora_rank=8)


@pytest.fixture
def engine(server: RecordedVllm) -> Iterator[Engine]:
    with vllm.running(server) as url:
        yield Engine(url, TOKEN)


def test_it_reads_again_what_it_put_aside(server: RecordedVllm, engine: Engine, tmp_path: Path) -> None:
    for seed in range(3):
        engine.load(f"version-{seed}", str(folders.write(tmp_path / str(seed), seed=seed)))
    assert server.n_read == 3
    assert list(server.in_memory) == [str(tmp_path / "1"), str(tmp_path / "2")]
    assert engine.models() == ["base", "version-0", "version-1", "version-2"]
    assert engine.chat("version-0", TALK, max_tokens=2)
    assert server.n_read == 4


def test_it_forgets_only_the_name(server: RecordedVllm, engine: Engine, tmp_path: Path) -> None:
    folder = str(folders.write(tmp_path / "a"))
    engine.load("one", folder)
    engine.unload("one")
    assert folder in server.in_memory
    engine.load("two", folder)
    assert server.n_read == 1


def test_it_refuses_as_vllm_does(engine: Engine, tmp_path: Path) -> None:
    folder = str(folders.write(tmp_path / "a"))
    high = str(folders.write(tmp_path / "b", config_changes={"r": 64}))
    engine.load("one", folder)
    for name, path, status, words in (
        ("one", folder, 400, "has already been loaded"),
        ("two", str(tmp_path / "c"), 404, "Loading lora two failed: No adapter found for"),
        ("two", high, 500, "LoRA rank 64 is greater than max_lora_rank 8"),
        ("", folder, 400, "must be provided"),
    ):
        with pytest.raises(EngineError, match=words) as refused:
            engine.load(name, path)
        assert refused.value.status == status


def test_it_asks_for_its_key_below_v1_alone(engine: Engine) -> None:
    refused = httpx.get(f"{engine.url}/v1/models")
    assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
    body = {"model": "base", "messages": TALK}
    assert httpx.post(f"{engine.url}/tokenize", json=body).json()["max_model_len"] == vllm.CONTEXT
