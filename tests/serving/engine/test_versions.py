"""Resident versions: pinned by requests, hidden at once, freed when the last request has ended."""

import threading
from pathlib import Path

import pytest

from serving.engine.engine import Engine, Options, build
from serving.engine.versions import Full, Refused, UnknownVersion
from tests.serving.engine.conftest import drain, make_adapter, submit


def test_it_loads_and_unloads(tiny: Engine, tiny_model_dir: Path, adapters_dir: Path) -> None:
    folder = make_adapter(adapters_dir / "adapter-1-aa", tiny_model_dir)
    version = tiny.versions.load("adapter-1-aa", str(folder), now=5)
    assert [v.name for v in tiny.versions.names()] == ["base", "adapter-1-aa"]
    assert (version.created_at, version.path) == (5, folder)
    tiny.versions.unload("adapter-1-aa")
    assert [v.name for v in tiny.versions.names()] == ["base"]
    with pytest.raises(UnknownVersion):
        tiny.versions.acquire("adapter-1-aa")


def test_it_takes_the_same_file_twice_but_not_another(tiny: Engine, tiny_model_dir: Path, adapters_dir: Path) -> None:
    make_adapter(adapters_dir / "one", tiny_model_dir, seed=1)
    make_adapter(adapters_dir / "two", tiny_model_dir, seed=2)
    first = tiny.versions.load("x", "one", 0)
    assert tiny.versions.load("x", "one", 0) is first
    with pytest.raises(Refused, match="new name"):
        tiny.versions.load("x", "two", 0)


def test_it_refuses_more_than_its_limit(tiny_model_dir: Path, adapters_dir: Path) -> None:
    engine = build(Options(model=tiny_model_dir, adapters=adapters_dir, max_adapters=1))
    make_adapter(adapters_dir / "one", tiny_model_dir)
    engine.versions.load("x", "one", 0)
    with pytest.raises(Full, match="unload one first"):
        engine.versions.load("y", "one", 0)
    engine.versions.unload("x")
    engine.versions.load("y", "one", 0)


def test_it_keeps_a_version_until_its_last_request_has_ended(
    tiny: Engine, tiny_model_dir: Path, adapters_dir: Path
) -> None:
    make_adapter(adapters_dir / "one", tiny_model_dir)
    version = tiny.versions.load("x", "one", 0)
    _, listener = submit(tiny, [1, 2, 3], "x", max_tokens=6)
    tiny.scheduler.step()
    tiny.versions.unload("x")
    assert "x" not in [v.name for v in tiny.versions.names()]
    with pytest.raises(UnknownVersion):
        tiny.versions.acquire("x")
    assert version.n_users == 1
    drain(tiny, listener)
    assert listener.done
    assert version.n_users == 0
    assert len(tiny.prefixes) == 0
    with pytest.raises(UnknownVersion):
        tiny.versions.unload("x")


def test_it_takes_back_a_version_that_was_leaving(tiny: Engine, tiny_model_dir: Path, adapters_dir: Path) -> None:
    make_adapter(adapters_dir / "one", tiny_model_dir)
    version = tiny.versions.load("x", "one", 0)
    _, listener = submit(tiny, [1, 2, 3], "x")
    tiny.versions.unload("x")
    assert tiny.versions.load("x", "one", 0) is version
    drain(tiny, listener)
    tiny.versions.release(tiny.versions.acquire("x"))


def test_it_loads_only_from_directly_below_its_root(tiny: Engine, tiny_model_dir: Path, adapters_dir: Path) -> None:
    outside = make_adapter(adapters_dir.parent / "outside", tiny_model_dir)
    make_adapter(adapters_dir / "nested" / "deeper", tiny_model_dir)
    (adapters_dir / "link").symlink_to(outside)
    places = ["../outside", str(outside), "link", "nested/deeper", ".", "..", "", "missing", "a\0b", "a" * 5000]
    for place in places:
        with pytest.raises(Refused, match="directly below"):
            tiny.versions.load("x", place, 0)


def test_it_refuses_names(tiny: Engine) -> None:
    for name in ("base", "", "-x", "a b", "a/b", "é", "x" * 129, "x\n"):
        with pytest.raises(Refused, match="lora_name"):
            tiny.versions.load(name, "one", 0)


def test_it_never_unloads_the_base(tiny: Engine) -> None:
    with pytest.raises(Refused):
        tiny.versions.unload("base")


def test_it_loads_once_when_asked_from_many_sides(tiny: Engine, tiny_model_dir: Path, adapters_dir: Path) -> None:
    make_adapter(adapters_dir / "one", tiny_model_dir)
    found = []
    threads = [threading.Thread(target=lambda: found.append(tiny.versions.load("x", "one", 0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


def test_it_ends_a_load_when_the_engine_stops(tiny: Engine, tiny_model_dir: Path, adapters_dir: Path) -> None:
    make_adapter(adapters_dir / "one", tiny_model_dir)
    tiny.versions.close()
    with pytest.raises(Refused, match="shutting down"):
        tiny.versions.load("x", "one", 0)
