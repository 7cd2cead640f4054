"""Fixtures of the serving tests that need no torch: a described base model and a scripted engine."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connections
from pytest_django import Settings

from serving import adapters, client
from serving.models import Adapter
from tests.serving import folders
from tests.serving.scripted import TOKEN, ScriptedEngine, running


@pytest.fixture
def base_model(settings: Settings, tmp_path: Path) -> Path:
    """MODEL as a folder with its card only, and an empty ADAPTERS_DIR."""
    folder = tmp_path / "model"
    folder.mkdir()
    card = {"sha256": folders.BASE_SHA256, "chat_template_sha256": folders.TEMPLATE_SHA256}
    (folder / "alignapp-model.json").write_text(json.dumps(card))
    settings.MODEL = str(folder)
    settings.ADAPTERS_DIR = tmp_path / "adapters"
    return folder


@pytest.fixture
def engine(settings: Settings, base_model: Path) -> Iterator[ScriptedEngine]:
    scripted = ScriptedEngine()
    with running(scripted) as url:
        settings.ENGINE_URLS = [url]
        settings.ENGINE_TOKEN = TOKEN
        yield scripted


@pytest.fixture
def adapter(db: None, base_model: Path, tmp_path: Path) -> Callable[[int], Adapter]:
    """Registers the adapter of a seed."""
    return lambda seed: adapters.register(folders.write(tmp_path / f"trained-{seed}", seed=seed))


@pytest.fixture
def good_adapter(engine: ScriptedEngine, adapter: Callable[[int], Adapter]) -> Callable[[int], Adapter]:
    """Registers the adapter of a seed, and has the engine apply it as the trainer did."""

    def make(seed: int) -> Adapter:
        learn_effects(engine, seed)
        return adapter(seed)

    return make


def learn_effects(engine: ScriptedEngine, seed: int) -> None:
    probes = folders.probes(seed)
    for ids, effects in zip(probes["token_ids"], probes["effects"], strict=True):
        engine.effects[tuple(ids)] = effects


@pytest.fixture
def ada(db: None) -> User:
    return User.objects.create_user("ada", password="a long enough password")


@pytest.fixture
def eve(db: None) -> User:
    return User.objects.create_user("eve", password="a long enough password")


@pytest.fixture
async def closed_connections() -> AsyncIterator[None]:
    """For asynchronous tests: their event loop keeps no connection to an engine, and the thread of their own
    `sync_to_async` and asynchronous queries none to the test's database. (Those of serving.database need no help: what
    they keep is a file's.)
    """
    yield
    await client.close_shared()
    await sync_to_async(connections.close_all)()
