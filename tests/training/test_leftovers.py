"""Half-made folders: removed after a day, and nothing else with them."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone
from pytest_django import Settings

from training import tasks


@pytest.mark.django_db
def test_it_removes_what_was_left_half_made_a_day_ago(tmp_path: Path, settings: Settings) -> None:
    settings.SNAPSHOTS_DIR, settings.ADAPTERS_DIR = tmp_path / "snapshots", tmp_path / "adapters"
    settings.REWARD_MODELS_DIR = tmp_path / "reward_models"  # and nothing was ever put here
    old = ("snapshots/.new-1", "adapters/.incoming-1")
    kept = ("snapshots/c0ffee", "snapshots/.other", "adapters/.incoming-2")
    for name in (*old, *kept):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
        hours = 23 if name.endswith("2") else 25
        at = (timezone.now() - timedelta(hours=hours)).timestamp()
        os.utime(tmp_path / name, (at, at))
    tasks.sweep()
    assert not any((tmp_path / name).exists() for name in old)
    assert all((tmp_path / name / "file").exists() for name in kept)
