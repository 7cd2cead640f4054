from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_django import Settings

from serving import adapters
from serving.models import Adapter
from tests.serving import folders

pytestmark = pytest.mark.django_db
Maker = Callable[[int], Adapter]


def test_it_makes_the_base_once(base_model: Path) -> None:
    base = adapters.base()
    assert base == adapters.base()
    assert (base.name, base.is_base, base.status) == ("base-bbbbbb", True, Adapter.Status.READY)
    assert base.engine_name == "base"


def test_it_says_when_model_is_not_prepared(settings: Settings, tmp_path: Path) -> None:
    settings.MODEL = str(tmp_path)
    with pytest.raises(adapters.InvalidAdapter, match="make model"):
        adapters.base()


def test_it_registers_a_folder_under_number_and_hash(adapter: Maker) -> None:
    row = adapter(1)
    assert row.name == f"adapter-{row.pk}-{row.sha256[:6]}"
    assert row.status == Adapter.Status.REGISTERED
    assert row.manifest["run"] == 7
    assert (row.folder / "adapter_model.safetensors").is_file()


def test_it_registers_the_same_content_once(base_model: Path, tmp_path: Path) -> None:
    first = adapters.register(folders.write(tmp_path / "a", seed=1), notes="first")
    again = adapters.register(folders.write(tmp_path / "b", seed=1), notes="second")
    assert first == again
    assert again.notes == "first"
    assert adapters.register(folders.write(tmp_path / "c", seed=2)) != first
    assert len(list(first.folder.parent.iterdir())) == 2


def test_it_refuses_known_weights_with_another_scale(base_model: Path, tmp_path: Path) -> None:
    adapters.register(folders.write(tmp_path / "a"))
    with pytest.raises(adapters.InvalidAdapter, match="same weights"):
        adapters.register(folders.write(tmp_path / "b", config_changes={"lora_alpha": 16}))


def test_it_restores_a_folder_that_was_lost(base_model: Path, tmp_path: Path) -> None:
    row = adapters.register(folders.write(tmp_path / "a"))
    row.folder.rename(tmp_path / "gone")
    adapters.register(tmp_path / "a")
    assert (row.folder / "manifest.json").is_file()


def test_it_leaves_nothing_of_a_refused_folder(settings: Settings, base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(adapters.InvalidAdapter):
        adapters.register(folders.write(tmp_path / "a", config_changes={"use_dora": True}))
    assert list(settings.ADAPTERS_DIR.iterdir()) == []
    assert not Adapter.objects.filter(is_base=False).exists()


def test_it_refuses_another_chat_template(base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(adapters.InvalidAdapter, match="chat template"):
        adapters.register(folders.write(tmp_path / "a", manifest_changes={"chat_template_sha256": "d" * 64}))
