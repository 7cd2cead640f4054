"""Runs at the gate: what a trainer leaves for it."""

import json
from typing import Any

from labeling.models import Campaign
from serving.models import Adapter
from tests.training.rows import POLICY
from training import attempts
from training.models import Run
from training.snapshots import freeze


def add_run(campaign: Campaign) -> Run:
    base = Adapter.objects.create(name="base-b", sha256="b" * 64, base_sha256="b" * 64, is_base=True)
    return Run.objects.create(campaign=campaign, snapshot=freeze(campaign), incumbent=base)


def add_adapter() -> Adapter:
    return Adapter.objects.create(name="adapter-2-abcdef", sha256="a" * 64, base_sha256="b" * 64)


def write_evaluation(run: Run, value: float, *, policy: dict[str, Any] | None = None, **changes: Any) -> None:
    assert run.snapshot
    lines = [json.loads(line) for line in (run.snapshot.folder / "heldout.jsonl").open()]
    rows = [
        {"pair": line["pair"], "prompt_sha256": line["prompt_sha256"], "margin": value, "incumbent_margin": 0.0}
        for line in lines
    ]
    run.folder.mkdir(parents=True, exist_ok=True)
    found = {"heldout": [row | changes for row in rows], "policy": POLICY | (policy or {})}
    attempts.write_json(run.folder / "evaluation.json", found)
