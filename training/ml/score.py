"""Score responses with a reward model: `python -m training.ml.score FOLDER`. Files in, files out; no Django, no Celery.

FOLDER holds config.json (token, model, reward_model, input, cache, threads, nice) and lease.json, as an attempt at a run
does. `input` has a line per response, as a snapshot's edits.jsonl. Leaves scores.jsonl, lines of {"response_id", "reward"}
in the same order with rewards in logits, and result.json, the last.

Exit codes are the trainer's: 0 done · 1 failed, error.json says why · 3 stopped by SIGTERM · 4 lease lost. What was
scored before it stopped is in the cache, by reward model and tokens: another attempt goes on from there.
"""

import os
import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(3))  # as in training.ml.train
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import json
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.ml import data, files, lanes, lines, policy, reward, rows
from training.ml.attempt import BUDGET
from training.ml.errors import Stopped, TrainingError, describe
from training.ml.progress import Progress
from training.ml.scores import Alone
from training.ml.watch import Watch


@dataclass(frozen=True)
class Job:
    folder: Path
    token: int
    model: Path
    reward_model: Path
    input: Path
    cache: Path
    threads: int
    nice: int


def read_job(folder: Path) -> Job:
    """The job in folder/config.json. Raises TrainingError."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        paths = {name: Path(config[name]) for name in ("model", "reward_model", "input", "cache")}
        return Job(folder, config["token"], **paths, threads=config.get("threads", 0), nice=config.get("nice", 0))
    except KeyError as error:
        raise TrainingError(f"config.json lacks {error}.", "config") from None
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"config.json cannot be read ({error}).", "config") from None


def execute(job: Job, watch: Watch) -> None:
    """All of it, up to result.json. Raises TrainingError, Stopped, or whatever goes wrong."""
    watch.phase("Loading the model")
    base = policy.load_base(job.model)
    judge = reward.load(base, job.reward_model)
    watch.phase("Reading the responses")
    wanted = lines.singles(job.input)
    tokenise = data.Tokenise(base.tokenizer, judge.max_tokens, Counter())
    items = [Alone(single.prompt, single.response) for single in tokenise.singles(wanted)]
    progress = Progress()
    progress.plan(rows.count_tokens(items, BUDGET, keep_last=True))
    watch.phase("Scoring responses")
    scores = reward.score(judge, items, job.cache, BUDGET, watch, progress)
    found = [
        {"response_id": int(one.id.rpartition("-")[2]), "reward": scores[item.prompt, item.response]}
        for one, item in zip(wanted, items, strict=True)
    ]
    (job.folder / "scores.jsonl").write_text("".join(json.dumps(one, allow_nan=False) + "\n" for one in found))
    files.write_json(job.folder / "result.json", {"n_responses": len(found)})
    watch.phase("Done")


def main(folder: Path) -> int:
    """Carries out the job in the folder; the exit code."""
    try:
        lanes.share_heap()
        job = read_job(folder)
        os.nice(job.nice)
        if job.threads:
            torch.set_num_threads(job.threads)
        with Watch(folder, job.token) as watch:
            execute(job, watch)
            return 0
    except Stopped as stop:
        print(f"stopped ({type(stop).__name__})", flush=True)
        return stop.exit_code
    except Exception as error:  # the process's loop: whatever it was, the row must say so
        traceback.print_exc()
        message, kind = describe(error)
        files.write_json(folder / "error.json", {"message": message, "kind": kind})
        return 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m training.ml.score FOLDER")
    sys.exit(main(Path(sys.argv[1])))
