"""kill -9 at random moments of runs: each finishes, with the adapter of a run that nobody disturbed.

Twenty take minutes: `python -m tests.training.ml.kills MODEL FOLDER 20`; the test takes three.
"""

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]


def test_it_survives_being_killed_at_random_moments(tiny_model_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.ml.kills", str(tiny_model_dir), str(tmp_path), "3"]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    said = re.fullmatch(r"3 runs, (\d+) kills, one adapter", found.stdout.strip())
    assert said, found.stdout + found.stderr
    assert int(said[1]) >= 3  # two attempts of each run are aimed at; some are through before
