"""`python -m training.ml.launch N RUN_DIR/attempt-n`: the trainer on N processes of this machine, by torchrun.

Passes SIGTERM on, and ends with the trainer's own exit code, of which torchrun only tells whether it was 0.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from training.ml import parents

STOPPED = 3  # the trainer's code after SIGTERM
LOST = 5  # the trainer ended without a word, or with another of its processes: killed, or torchrun could not start it


def main(n_processes: int, folder: Path) -> int:
    said = folder / "exit_code"
    said.unlink(missing_ok=True)
    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    # In a session of its own: a second SIGTERM, to the group, would end torchrun before its workers are through.
    process = subprocess.Popen(
        [*command, "-m", "training.ml.train", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": str(max(1, threads // n_processes))},
        start_new_session=True,
        preexec_fn=parents.end_with_parent,
    )
    asked: list[int] = []

    def pass_on(number: int, _: object) -> None:
        if not asked:
            process.terminate()
        asked.append(number)

    signal.signal(signal.SIGTERM, pass_on)
    process.wait()
    return judge(int(said.read_text()) if said.exists() else None, is_asked=bool(asked))


def judge(said: int | None, *, is_asked: bool) -> int:
    """The exit code, of what the first process said, if anything, and whether the launcher was asked to stop.

    torchrun sends SIGTERM too, when one of its workers dies: that is a loss, which counts as a try.
    """
    if said is None:
        return STOPPED if is_asked else LOST
    return LOST if said == STOPPED and not is_asked else said


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[1].isdigit():
        sys.exit("usage: python -m training.ml.launch N RUN_DIR/attempt-n")
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
