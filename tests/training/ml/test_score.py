"""The job that scores responses, in this process: files in, files out, stopped and taken up again."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.ml.cases import line, read_json, shake, write_lease
from training import catalog
from training.ml import adapter, policy, reward, score
from training.ml.jobs import Job
from training.ml.reward_head import Head


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that nobody trained: a random adapter and head."""
    base = policy.load_base(tiny_model_dir, dtype=torch.float32)
    params = catalog.parse("reward_model", {"lora_rank": 4})
    model = policy.add_adapter(base, params)
    shake(model)
    head = Head(64)
    with torch.no_grad():
        head.weight.copy_(torch.randn(1, 64, generator=torch.Generator().manual_seed(3)))
    path = tmp_path_factory.mktemp("reward") / "reward_model"
    job = Job(
        folder=path.parent,
        run=1,
        attempt=1,
        token=1,
        method="reward_model",
        params=params,
        model=tiny_model_dir,
        snapshot=path.parent,
        snapshot_sha256="",
        cache=path.parent,
        incumbent=None,
        incumbent_name=None,
        resume=None,
        threads=0,
        nice=0,
    )
    card = {"temperature": 2.0, "mean": 0.5}
    reward.write(path, adapter.serialise(model), reward.serialise(head), model, base, job, card)
    return path


def write_job(root: Path, base: Path, judge: Path, number: int = 1, **changes: Any) -> Path:
    job = root / f"job-{number}"
    job.mkdir(parents=True)
    rows = [
        {"response_id": i, "response": line(i)["chosen"], "messages": line(i)["messages"], "prompt_sha256": "0" * 64}
        for i in range(80)
    ]
    (job / "input.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "token": 1,
        "model": str(base),
        "reward_model": str(judge),
        "input": str(job / "input.jsonl"),
        "cache": str(root / "cache"),
    }
    (job / "config.json").write_text(json.dumps(config | changes))
    write_lease(job)
    return job


def read_scores(job: Path) -> dict[int, float]:
    rows = [json.loads(text) for text in (job / "scores.jsonl").read_text().splitlines()]
    return {row["response_id"]: row["reward"] for row in rows}


def test_it_scores_every_response_and_goes_on_after_a_stop(tiny_model_dir: Path, folder: Path, tmp_path: Path) -> None:
    whole = write_job(tmp_path / "a", tiny_model_dir, folder)
    assert score.main(whole) == 0
    expected = read_scores(whole)
    assert list(expected) == list(range(80))
    assert len(set(expected.values())) == 80
    assert read_json(whole / "result.json") == {"n_responses": 80}

    n_passes = 0

    def stop(module: torch.nn.Module, args: Any) -> None:
        nonlocal n_passes
        n_passes += isinstance(module, torch.nn.Embedding)
        if n_passes == 5 and isinstance(module, torch.nn.Embedding):  # the first three check the model
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = write_job(tmp_path / "b", tiny_model_dir, folder)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(stop)
    try:
        assert score.main(stopped) == 3
    finally:
        handle.remove()
    assert not (stopped / "result.json").exists()
    kept = [one for file in (tmp_path / "b" / "cache").rglob("*.json") for one in read_json(file)]
    assert 0 < len(kept) < 80
    again = write_job(tmp_path / "b", tiny_model_dir, folder, 2)
    assert score.main(again) == 0
    assert read_scores(again) == pytest.approx(expected, abs=1e-4)


def test_it_ends_when_its_lease_is_anothers(tiny_model_dir: Path, folder: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path, tiny_model_dir, folder)
    write_lease(job, token=2)
    assert score.main(job) == 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reward_model": "/nowhere"}, "The reward model nowhere cannot be loaded"),
        ({"model": "/nowhere"}, "The model in nowhere cannot be loaded"),
        ({"model": 7}, "config.json cannot be read"),
    ],
)
def test_it_says_what_is_wrong(
    tiny_model_dir: Path, folder: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    job = write_job(tmp_path, tiny_model_dir, folder, **changes)
    assert score.main(job) == 1
    assert read_json(job / "error.json")["message"].startswith(sentence)
