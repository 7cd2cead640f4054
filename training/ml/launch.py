"""`python -m training.ml.launch N RUN_DIR/attempt-n`: the trainer on N processes of this machine, by torchrun.

Passes SIGTERM on, and ends with the trainer's own exit code, of which torchrun only tells whether it was 0.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

LOST = 5  # the trainer ended without a word: killed, or torchrun could not start it


def main(n_processes: int, folder: Path) -> int:
    said = folder / "exit_code"
    said.unlink(missing_ok=True)
    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or os.cpu_count() or 1
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, threads // n_processes))}
    process = subprocess.Popen([*command, "-m", "training.ml.train", str(folder)], env=environment)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    process.wait()
    return int(said.read_text()) if said.exists() else LOST


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[1].isdigit():
        sys.exit("usage: python -m training.ml.launch N RUN_DIR/attempt-n")
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
