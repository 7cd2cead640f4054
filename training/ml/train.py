"""The trainer: `python -m training.ml.train RUN_DIR/attempt-n`. Files in, files out; no Django, no Celery.

Exit codes: 0 done · 1 failed, error.json says why · 3 stopped by SIGTERM, resumable · 4 lease lost
· 5 another process of the same run is gone.
"""

import os
import signal
import sys

from training.ml import parents

if __name__ == "__main__":
    if "RANK" in os.environ:
        parents.end_with_parent()
    # The imports below take seconds. A signal that comes meanwhile finds nothing to save.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    # Threads that wait for each other by spinning take the processor from the one they wait for: on two cores shared
    # with a server a step took up to 20 times as long. libgomp reads this when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import traceback
from dataclasses import replace
from pathlib import Path

import torch

from training import catalog
from training.ml import files, jobs, lanes, parallel
from training.ml.attempt import Attempt
from training.ml.errors import LeaseLost, Stopped, describe
from training.ml.policy_attempt import PolicyAttempt
from training.ml.reward_attempt import RewardAttempt
from training.ml.watch import Watch

# By what the method leaves behind: Method.output.
ATTEMPTS: dict[str, type[Attempt]] = {"adapter": PolicyAttempt, "reward_model": RewardAttempt}


def main(folder: Path) -> int:
    """Runs the attempt in the folder; the exit code."""
    try:
        lanes.share_heap()
        job = _read(folder)
        os.nice(job.nice)
        if job.threads:
            torch.set_num_threads(max(1, job.threads // int(os.environ.get("WORLD_SIZE", "1"))))
        with parallel.joined(folder) as own, Watch(own, job.token) as watch:
            parallel.follow_the_first()
            return _carry_out(ATTEMPTS[catalog.get(job.method).output](replace(job, folder=own), watch))
    except Stopped as stop:
        return stop.exit_code
    except Exception as error:  # the process's loop: whatever it was, the row must say so
        traceback.print_exc()
        return _fail(folder, error)


def _read(folder: Path) -> jobs.Job:
    try:
        return jobs.read(folder)
    except Exception:  # whatever it is, all processes find it
        parallel.let_the_first_speak(folder)
        raise


def _carry_out(attempt: Attempt) -> int:
    try:
        attempt.execute()
    except Stopped as stop:
        print(f"stopped ({type(stop).__name__})", flush=True)
        attempt.watch.is_stopping = False  # obeyed: it must not interrupt the checkpoint
        if not isinstance(stop, LeaseLost):
            with attempt.watch.shielded():
                attempt.save_checkpoint()
        return stop.exit_code
    return 0


def _fail(folder: Path, error: Exception) -> int:
    message, kind = describe(error)
    if not parallel.is_first():
        return 1
    try:
        files.write_json(folder / "error.json", {"message": message, "kind": kind})
    except OSError as unwritten:
        print(f"error.json could not be written: {unwritten}", flush=True)
    return 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m training.ml.train RUN_DIR/attempt-n")
    code = main(Path(sys.argv[1]))
    if os.environ.get("RANK") == "0":
        (Path(sys.argv[1]) / parallel.EXIT_CODE).write_text(str(code))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is written: a lane that is still computing for a run that was stopped is not waited for
