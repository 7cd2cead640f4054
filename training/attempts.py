"""The folder of one attempt at a run, `RUNS_DIR/<run>/attempt-<n>`: what the supervisor writes and the trainer answers.

The trainer is another process that knows no database; these files are all that passes between the two. What it wrote
may be cut off by a crash, so every reader here takes a missing or broken file for "not there yet"; and a degenerate model
writes any character, so what no database stores is taken out of every text.
"""

import json
import os
import re
import secrets
import shutil
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings

from training import catalog
from training.models import RewardModel, Run

LOG_TAIL_BYTES = 16 * 1024
# Megabytes, and per cent of one processor.
SYSTEM_FIGURES = ("rss_mb", "rss_peak_mb", "cpu_percent", "n_threads", "gpu_mb", "gpu_peak_mb")
LARGEST = 1e300
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Status:
    """status.json: what the trainer is doing."""

    phase: str = ""
    step: int = 0
    n_steps: int = 0
    seconds_left: float | None = None
    system: dict[str, float] = field(default_factory=dict)


def folder(run_id: int, attempt: int) -> Path:
    return settings.RUNS_DIR / str(run_id) / f"attempt-{attempt}"


def prepare(run: Run, attempt: int, token: int, until: datetime) -> Path:
    """Makes the folder with config.json and lease.json; the run must have its snapshot."""
    path = folder(run.pk, attempt)
    if path.exists():  # another run's of the same number, from before the database was restored
        path.rename(path.with_name(f"stale-{path.name}-{secrets.token_hex(4)}"))
    path.mkdir(parents=True)
    write_json(path / "config.json", _config(run, attempt, token))
    write_lease(path, token, until)
    return path


def write_lease(path: Path, token: int, until: datetime) -> None:
    """The trainer's permission to go on: it ends by itself when this grows stale or holds another token."""
    write_json(path / "lease.json", {"token": token, "until": until.timestamp()})


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a file as a whole: a reader sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return storable(value) if isinstance(value, dict) else None


def storable(value: Any) -> Any:
    """JSON without NUL and lone surrogates, in texts at any depth: PostgreSQL takes neither."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [storable(one) for one in value]
    if isinstance(value, dict):
        return {storable(name): storable(one) for name, one in value.items()}
    return value


def read_status(path: Path) -> Status:
    raw = read_json(path / "status.json") or {}
    left = _figure(raw.get("seconds_left"))
    return Status(
        phase=str(raw.get("phase") or "")[:40],
        step=_count(raw.get("step")),
        n_steps=_count(raw.get("n_steps")),
        seconds_left=left,
        system={name: value for name in SYSTEM_FIGURES if (value := _figure(raw.get(name))) is not None},
    )


def read_metrics(path: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines of metrics.jsonl from a byte offset on, and the offset to go on from."""
    try:
        with (path / "metrics.jsonl").open("rb") as file:
            file.seek(offset)
            data = file.read()
    except OSError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return [row for line in whole.splitlines() if (row := _metric(line))], offset + len(whole)


def read_error(path: Path) -> str | None:
    """The trainer's own sentence about why it failed."""
    error = read_json(path / "error.json")
    return str(error["message"]) if error and error.get("message") else None


def read_log_tail(path: Path) -> str:
    try:
        with (path / "log.txt").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def newest_checkpoint(run: Run) -> Path | None:
    """The checkpoint with the most steps of any attempt at this run's work, its own or of the run that it retries.

    A checkpoint's folder gets its name by rename once it is complete, so a name that fits is one to resume from.
    """
    found = [
        (int(match[1]), path.stat().st_mtime, path)
        for folder in _same_work(run)
        for path in folder.glob("checkpoint-*")
        if (match := CHECKPOINT.fullmatch(path.name))
    ]
    return max(found)[2] if found else None


def resumed_step(path: Path) -> int:
    """The steps that the checkpoint which an attempt begins with had done; 0 without one."""
    match = CHECKPOINT.fullmatch(Path((read_json(path / "config.json") or {}).get("resume") or "").name)
    return int(match[1]) if match else 0


def metrics_so_far(run: Run, until: float) -> list[dict[str, Any]]:
    """What attempts at this run's work, its own or of the run that it retries, wrote of steps 1 to `until`; of a step taken twice, the last.

    A supervisor that died copied the last lines of its trainer to no table.
    """
    rows: dict[int, dict[str, Any]] = {}
    for path in _same_work(run):
        rows |= {row["step"]: row for row in read_metrics(path, 0)[0] if row["step"] <= until}
    return [rows[step] for step in sorted(rows)]


def delete_checkpoints(run: Run) -> None:
    """Removes what only a run that is not done needs: three times the adapter's size for every checkpoint."""
    for path in run.folder.glob("attempt-*/checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def finished(run: Run) -> Path | None:
    """An earlier attempt whose trainer was done, though its supervisor did not live to say so."""
    output = catalog.get(run.method).output
    done = [
        path.parent
        for path in run.folder.glob("attempt-*/result.json")
        if _is_of(run, path.parent) and (path.parent / output).is_dir()
    ]
    return max(done, key=lambda path: path.stat().st_mtime, default=None)


def _is_of(run: Run, path: Path) -> bool:
    """Whether an attempt did this run's work: after a restore of the database numbers come again, and where judgments were
    retracted between two attempts, the later one learns from others.
    """
    config = read_json(path / "config.json") or {}
    ours = (run.method, run.params, run.snapshot.sha256 if run.snapshot else None, _incumbent_name(run))
    names = ("method", "params", "snapshot_sha256", "incumbent_name")
    return tuple(config.get(name) for name in names) == ours


def _incumbent_name(run: Run) -> str | None:
    """The base is no incumbent: there is nothing to continue, and its margins are known."""
    return run.incumbent.name if run.incumbent and not run.incumbent.is_base else None


def _lineage(run: Run) -> list[int]:
    """The run, and the one it retries if that one's judgments are the same and it did not fail by its own doing."""
    before = run.retry_of
    if before is None or before.snapshot_id != run.snapshot_id or before.params != run.params:
        return [run.pk]
    return [run.pk] if any(before.folder.glob("attempt-*/error.json")) else [run.pk, before.pk]


def _same_work(run: Run) -> list[Path]:
    """The attempts at this run's work, oldest first: what they left can be gone on from."""
    folders = [
        path
        for run_id in reversed(_lineage(run))
        for path in sorted((settings.RUNS_DIR / str(run_id)).glob("attempt-*"), key=_number)
    ]
    return [path for path in folders if _is_of(run, path)]


def _config(run: Run, attempt: int, token: int) -> dict[str, Any]:
    if run.snapshot is None:
        raise ValueError(f"{run} has no snapshot yet: freeze one before an attempt is prepared")
    incumbent = _incumbent_name(run)
    checkpoint = newest_checkpoint(run)
    return {
        "run": run.pk,
        "attempt": attempt,
        "token": token,
        "method": run.method,
        "params": run.params,
        "model": str(settings.MODEL),
        "snapshot": str(run.snapshot.folder),
        "snapshot_sha256": run.snapshot.sha256,
        "cache": str(settings.ARTIFACTS_DIR / "cache" / "reference"),
        "incumbent": str(settings.ADAPTERS_DIR / incumbent) if incumbent else None,
        "incumbent_name": incumbent,
        "reward_model": _reward_model(run),
        "resume": str(checkpoint) if checkpoint else None,
        "budget_halvings": run.n_lost,
        "threads": settings.TRAIN_THREADS,
        "nice": settings.TRAIN_NICE,
    }


def _reward_model(run: Run) -> str | None:
    """The folder of the campaign's reward model in use, if it reads the same base."""
    active = RewardModel.objects.filter(campaign=run.campaign_id, is_active=True)
    found = active.filter(base_sha256=run.incumbent.base_sha256).first() if run.incumbent else None
    return str(found.folder) if found else None


def _number(path: Path) -> int:
    """n of attempt-n"""
    text = path.name.rpartition("-")[2]
    return int(text) if text.isdecimal() else 0


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _figure(value: Any) -> float | None:
    """A number that a float can hold; JSON knows longer ones."""
    return float(value) if isinstance(value, int | float) and abs(value) < LARGEST else None


def _metric(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line, parse_constant=lambda _name: None)  # NaN is no JSON: the database would refuse it
    except ValueError:
        return None
    return storable(row) if isinstance(row, dict) and isinstance(row.get("step"), int) else None
