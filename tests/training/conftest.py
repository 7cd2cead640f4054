"""Run numbers start again with every test, so the folders that they name go with it."""

import shutil
from collections.abc import Iterator

import pytest
from django.conf import settings


@pytest.fixture(autouse=True)
def _no_runs_left() -> Iterator[None]:
    yield
    shutil.rmtree(settings.RUNS_DIR, ignore_errors=True)
