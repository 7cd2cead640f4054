"""The public endpoints with an engine behind them: a process on a tiny model, and adapters that work as in training."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_django import Settings

from serving import adapters
from serving.models import Adapter
from tests.serving import real
from tests.serving.real import RealEngine

N_ADAPTERS = 5  # the engine has room for four


@pytest.fixture(scope="package")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters for the tiny model, with their true probes."""
    return real.trained(tiny_model_dir, tmp_path_factory.mktemp("trained"), N_ADAPTERS)


@pytest.fixture(scope="package")
def process(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    with real.running(tiny_model_dir, tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture
def site(process: RealEngine, settings: Settings, tiny_model_dir: Path) -> Iterator[RealEngine]:
    """No key has a limit."""
    settings.KEY_REQUESTS_PER_MINUTE = settings.KEY_TOKENS_PER_MINUTE = settings.KEY_MAX_CONCURRENT = 0
    with real.on(process, settings, tiny_model_dir) as engine:
        yield engine


@pytest.fixture
def rows(transactional_db: None, site: RealEngine, trained: list[Path]) -> list[Adapter]:
    """All of them, registered and not published."""
    return [adapters.register(folder) for folder in trained]
