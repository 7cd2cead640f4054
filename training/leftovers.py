"""Folders that a process left half made when it was killed. What is complete has been renamed to its own name."""

import shutil
from datetime import datetime, timedelta
from pathlib import Path

from django.conf import settings

KEPT = timedelta(days=1)  # far longer than anybody works on one


def remove(now: datetime) -> None:
    """Removes half-made snapshots, versions and reward models on which nobody has worked for a day."""
    wanted = ((settings.SNAPSHOTS_DIR, ".new-*"), (settings.ADAPTERS_DIR, ".incoming-*"))
    for parent, pattern in (*wanted, (settings.REWARD_MODELS_DIR, ".incoming-*")):
        for folder in parent.glob(pattern):
            if _changed_at(folder) < (now - KEPT).timestamp():
                shutil.rmtree(folder, ignore_errors=True)


def _changed_at(folder: Path) -> float:
    """In unix seconds; of a folder that another sweeper removed meanwhile, as old as can be."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0
