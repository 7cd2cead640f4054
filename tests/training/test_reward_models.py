"""Reward models as rows: what may become one, what it is worth, which one is used."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.utils import timezone
from pytest_django import Settings
from safetensors.numpy import save_file

from labeling.models import Campaign, Response
from serving import adapters
from serving.adapters import InvalidAdapter
from serving.models import Adapter
from tests.serving import folders
from tests.training.rows import add_annotator, add_campaign, add_comparison, add_prompt
from training import attempts, catalog, gates, reward_models, runs
from training.models import RewardModel, Run, Snapshot

pytestmark = pytest.mark.django_db
WIDTH = 8


@pytest.fixture(autouse=True)
def _base(tmp_path: Path, settings: Settings) -> None:
    """The identity of a base model, which is all that the control plane asks of it here."""
    model = tmp_path / "model"
    model.mkdir()
    card = {"sha256": folders.BASE_SHA256, "chat_template_sha256": folders.TEMPLATE_SHA256}
    (model / "alignapp-model.json").write_text(json.dumps(card))
    settings.MODEL = str(model)
    settings.REWARD_MODELS_DIR = tmp_path / "reward_models"


def row(number: int, margin: float, incumbent_margin: float = 0.0, label: float = 1.0) -> dict[str, Any]:
    return {
        "pair": f"p{number}", "prompt_sha256": str(number), "label": label, "weight": 1.0,
        "margin": margin, "incumbent_margin": incumbent_margin, "chars_chosen": 5, "chars_rejected": 5,
    }  # fmt: skip


def rows(n_right: int, n_wrong: int, incumbent: float = 0.0) -> list[dict[str, Any]]:
    return [row(i, 1.0 if i < n_right else -1.0, incumbent) for i in range(n_right + n_wrong)]


def leave(folder: Path, held: list[dict[str, Any]], **figures: Any) -> Path:
    """What a trainer leaves behind: reward_model/ and evaluation.json."""
    made = folder / "reward_model"
    folders.write(made / "adapter", seed=len(held))
    (made / "adapter" / "probes.json").unlink()
    save_file({"weight": np.ones((1, WIDTH), dtype=np.float32)}, made / "head.safetensors")
    card = {"base_sha256": folders.BASE_SHA256, "temperature": 2.0, "mean": 0.1, "std": 1.0, "max_tokens": 512}
    (made / "reward.json").write_text(json.dumps(card | figures))
    (folder / "evaluation.json").write_text(json.dumps({"heldout": held}))
    return folder


def add_run(**fields: Any) -> Run:
    values = {"campaign": add_campaign(), "method": "reward_model", "status": Run.Status.SUCCEEDED} | fields
    return Run.objects.create(**values)


def test_it_registers_and_uses_what_agrees_with_people(tmp_path: Path) -> None:
    run = add_run()
    made = reward_models.register(run, leave(tmp_path / "a", rows(40, 10)))
    assert (made.is_passed, made.is_active, made.base_sha256) == (True, True, folders.BASE_SHA256)
    assert made.verdict.startswith("agrees with people on 80.0% of 50 held-out pairs, 95 % 6")
    assert made.figures["temperature"] == 2.0
    assert made.evidence["n_pairs"] == 50
    files = sorted(path.name for path in made.folder.rglob("*") if path.is_file())
    assert files == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "manifest.json",
        "reward.json",
    ]
    assert reward_models.in_use(run.campaign) == made
    assert not Adapter.objects.filter(is_base=False).exists()  # nothing that could be published


def test_it_takes_out_of_a_card_what_no_database_stores(tmp_path: Path) -> None:
    made = reward_models.register(add_run(), leave(tmp_path, rows(16, 4), note="a\0b"))
    made.refresh_from_db()
    assert made.figures["note"] == "ab"


def test_it_registers_a_run_once(tmp_path: Path) -> None:
    run, folder = add_run(), leave(tmp_path / "a", rows(40, 10))
    assert reward_models.register(run, folder) == reward_models.register(run, folder)
    again = reward_models.register(add_run(campaign=run.campaign), folder)  # the same files, of another run
    assert again.folder == RewardModel.objects.get(run=run).folder
    assert not list(reward_models.settings.REWARD_MODELS_DIR.glob(".*"))


@pytest.mark.parametrize(
    ("held", "verdict"),
    [
        (rows(10, 9), "not enough judgments to tell: 19 held-out pairs, at least 20 wanted"),
        ([], "not enough judgments to tell: 0 held-out pairs, at least 20 wanted"),
        ([row(i % 3, 1.0) for i in range(30)], "not enough prompts to tell: 3 held-out prompts"),
        (rows(26, 24), "no better than chance: agrees on 52.0% of 50 held-out pairs"),
        (rows(0, 50), "no better than chance: agrees on 0.0% of 50 held-out pairs"),
    ],
)
def test_it_does_not_use_what_cannot_be_believed(tmp_path: Path, held: list[dict[str, Any]], verdict: str) -> None:
    made = reward_models.register(add_run(), leave(tmp_path / "a", held))
    assert made.verdict.startswith(verdict)
    assert (made.is_passed, made.is_active) == (False, False)
    assert reward_models.in_use(made.campaign) is None


def test_it_keeps_the_one_in_use_when_the_new_one_is_worse(tmp_path: Path) -> None:
    first = reward_models.register(add_run(), leave(tmp_path / "a", rows(40, 10)))
    run = add_run(campaign=first.campaign)
    second = reward_models.register(
        run, leave(tmp_path / "b", [row(i, 1.0 if i < 36 else -1.0, 1.0) for i in range(49)])
    )
    assert (second.is_passed, second.is_active) == (True, False)
    assert "than the one before: worse by 26.5 points" in second.verdict
    third = reward_models.register(
        add_run(campaign=first.campaign), leave(tmp_path / "c", [row(i, 1.0, -1.0) for i in range(48)])
    )
    assert reward_models.in_use(first.campaign) == third
    assert RewardModel.objects.filter(is_active=True).count() == 1
    reward_models.use(first, add_annotator())  # a person knows better
    assert reward_models.in_use(first.campaign) == first
    with pytest.raises(gates.ReasonWanted, match="worse than the one before"):
        reward_models.use(second, add_annotator())


def test_it_leaves_ties_out(tmp_path: Path) -> None:
    held = rows(40, 0) + [row(i, -1.0, label=0.5) for i in range(100, 120)]
    made = reward_models.register(add_run(), leave(tmp_path / "a", held))
    assert made.evidence["n_pairs"] == 40
    assert made.evidence["ties_left_out"] == 20


def test_it_uses_none_of_another_base(tmp_path: Path, settings: Settings) -> None:
    made = reward_models.register(add_run(), leave(tmp_path / "a", rows(40, 10)))
    other = tmp_path / "other"
    other.mkdir()
    (other / "alignapp-model.json").write_text(json.dumps({"sha256": "d" * 64, "chat_template_sha256": "c" * 64}))
    settings.MODEL = str(other)
    assert reward_models.in_use(made.campaign) is None


def change_card(**values: Any) -> Callable[[Path], object]:
    def change(made: Path) -> None:
        (made / "reward.json").write_text(json.dumps(json.loads((made / "reward.json").read_text()) | values))

    return change


def head_of(shape: tuple[int, ...], value: float = 1.0, name: str = "weight") -> Callable[[Path], object]:
    return lambda made: save_file({name: np.full(shape, value, dtype=np.float32)}, made / "head.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        change_card(temperature=0),
        change_card(temperature=math.nan),
        change_card(temperature=True),
        change_card(mean="1"),
        change_card(base_sha256="e" * 64),
        lambda made: (made / "reward.json").write_text("[]"),
        lambda made: (made / "reward.json").write_bytes(b"\xff"),
        lambda made: (made / "reward.json").unlink(),
        head_of((2, WIDTH)),
        head_of((WIDTH,)),
        head_of((1, WIDTH), math.inf),
        head_of((1, WIDTH), name="more"),
        lambda made: (made / "head.safetensors").write_bytes(b"\x80\x04."),
        lambda made: (made / "adapter" / "manifest.json").unlink(),
        lambda made: folders.write_manifest(made / "adapter", base_sha256="e" * 64),
        lambda made: (made / "adapter" / "adapter_model.safetensors").write_bytes(b"x"),
    ],
)
def test_it_refuses_a_folder_that_is_no_reward_model(tmp_path: Path, change: Callable[[Path], object]) -> None:
    folder = leave(tmp_path / "a", rows(40, 10))
    change(folder / "reward_model")
    with pytest.raises(InvalidAdapter):
        reward_models.register(add_run(), folder)
    assert not RewardModel.objects.exists()
    assert not list(reward_models.settings.REWARD_MODELS_DIR.iterdir())


def test_it_follows_no_link(tmp_path: Path) -> None:
    folder = leave(tmp_path / "a", rows(40, 10))
    head = folder / "reward_model" / "head.safetensors"
    shutil.move(head, tmp_path / "elsewhere")
    head.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidAdapter):
        reward_models.register(add_run(), folder)


def test_it_tells_the_next_run_of_the_one_in_use(tmp_path: Path) -> None:
    made = reward_models.register(add_run(), leave(tmp_path / "a", rows(40, 10)))
    snapshot = Snapshot.objects.create(campaign=made.campaign, sha256="5" * 64)
    run = Run.objects.create(campaign=made.campaign, snapshot=snapshot, incumbent=adapters.base(), method="dpo")

    def told(attempt: int) -> Any:
        folder = attempts.prepare(run, attempt, attempt, timezone.now())
        return json.loads((folder / "config.json").read_text())["reward_model"]

    assert told(1) == str(made.folder)
    RewardModel.objects.update(base_sha256="e" * 64)  # made for another base
    assert told(2) is None
    RewardModel.objects.update(base_sha256=folders.BASE_SHA256, is_active=False)
    assert told(3) is None


def test_it_has_a_conclusion_for_everything_that_a_method_can_leave() -> None:
    assert {method.output for method in catalog.METHODS.values()} == {"adapter", "reward_model"}
    assert runs.create(add_campaign(), "reward_model", {}).params["centre"] == 0.01


def test_it_takes_its_scores_out_of_use_with_it(tmp_path: Path) -> None:
    campaign = add_campaign(strategy=Campaign.Strategy.UNCERTAINTY)
    made = reward_models.register(add_run(campaign=campaign), leave(tmp_path / "a", rows(40, 10)))
    own, elsewhere = (add_comparison(add_prompt(where)) for where in (campaign, add_campaign()))
    Response.objects.update(reward=1.0, reward_model=made.sha256)
    Campaign.objects.update(plan_wanted_at=None)
    assert reward_models.put_away(made, add_annotator(), "It is wrong.")
    assert Response.objects.filter(items__comparison=own, reward=None, reward_model="").count() == 2
    assert Response.objects.filter(items__comparison=elsewhere, reward=1.0).count() == 2
    campaign.refresh_from_db()
    assert campaign.plan_wanted_at
