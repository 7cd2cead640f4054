"""`python -m tests.training.ml.kills MODEL_DIR FOLDER N`: kills N runs at random moments and compares their adapters.

The trainers are forked from this process: it has imported torch, which takes seconds, and started no threads of it.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.training.ml.cases import read_metrics, write_attempt
from training.ml import checkpoint, loop, train

KILLS = 2  # a run


def fork_trainer(attempt: Path) -> int:
    """Its process id."""
    if pid := os.fork():
        return pid
    log = os.open(attempt / "log.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        code = train.main(attempt)
    finally:
        os._exit(code)


def wait_for(pid: int, attempt: Path, n_steps: int) -> int | None:
    """Until the trainer ends, or has taken n_steps steps: its exit code or None."""
    while len(read_metrics(attempt)) < n_steps:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def finish(root: Path, model: Path, moments: list[tuple[int, float]]) -> tuple[bytes, int]:
    """One run, killed in its i-th attempt after so many steps and seconds, then left alone.

    Returns its adapter and how often it was killed.
    """
    resume: str | None = None
    for number, moment in enumerate([*moments, None], start=1):
        attempt = write_attempt(root, model, number, resume=resume, threads=1)
        pid = fork_trainer(attempt)
        code = wait_for(pid, attempt, moment[0] if moment else sys.maxsize)
        if code is None and moment:
            time.sleep(moment[1])
            os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            return (attempt / "adapter" / "adapter_model.safetensors").read_bytes(), number - 1
        if code != -signal.SIGKILL:
            raise SystemExit(f"the trainer ended with {code}: {(attempt / 'log.txt').read_text()}")
        resume = str(checkpoint.kept(attempt)[-1]) if checkpoint.kept(attempt) else resume
    raise SystemExit("The last attempt is left alone and must end.")


def main(model: Path, root: Path, n_runs: int) -> None:
    loop.CHECKPOINT_SECONDS = 0.0  # after every step, so that some kills fall into a checkpoint
    undisturbed, _ = finish(root / "undisturbed", model, [])
    rng, n_killed = random.Random(0), 0
    for run in range(n_runs):
        moments = [(rng.randint(0, 5), rng.uniform(0, 0.1)) for _ in range(KILLS)]
        found, died = finish(root / f"run-{run}", model, moments)
        if found != undisturbed:
            raise SystemExit(f"Run {run}, killed {died} times, made another adapter.")
        n_killed += died
    sys.stdout.write(f"{n_runs} runs, {n_killed} kills, one adapter\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
