"""From judgments to rewards with the real trainer and the real scorer, on a tiny model."""

from pathlib import Path

import pytest
from django.utils import timezone
from pytest_django import Settings

from labeling.models import Campaign, Response
from serving.models import Adapter
from tests.training.rows import add_campaign, add_comparison, add_judged, add_prompt
from training import runs, scorings, supervisor
from training.models import Evaluation, RewardModel, Run, Scoring

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _model(tiny_model_dir: Path, tmp_path: Path, settings: Settings) -> None:
    settings.MODEL = str(tiny_model_dir)
    settings.ARTIFACTS_DIR = tmp_path
    settings.REWARD_MODELS_DIR = tmp_path / "reward_models"
    settings.SCORINGS_DIR = tmp_path / "scorings"
    supervisor.resume()


def test_it_learns_from_judgments_and_orders_what_comes_next() -> None:
    campaign = add_campaign(strategy=Campaign.Strategy.UNCERTAINTY)
    add_judged(campaign, 16, 24)
    run = runs.create(
        campaign, "reward_model", {"epochs": 4.0, "batch_pairs": 4, "learning_rate": 3e-3, "lora_rank": 4}
    )
    supervisor.supervise(run.pk)
    run.refresh_from_db()
    assert (run.status, run.error) == (Run.Status.SUCCEEDED, "")
    assert run.adapter is None
    made = RewardModel.objects.get(run=run)
    assert made.is_active, made.verdict  # one kind of answer is always preferred: easy to see
    assert made.figures["n_heldout"] == 24
    assert not Evaluation.objects.exists()
    assert not Adapter.objects.filter(is_base=False).exists()

    Response.objects.update(reward=None)
    coming = [add_comparison(add_prompt(campaign)) for _ in range(3)]
    scorings.carry_out_all()
    (scoring,) = Scoring.objects.all()
    assert (scoring.status, scoring.error) == (Scoring.Status.SUCCEEDED, "")
    for comparison in coming:
        good, bad = comparison.responses.order_by("pk")
        assert good.reward is not None
        assert bad.reward is not None
        assert good.reward > bad.reward
        assert {good.reward_model, bad.reward_model} == {made.sha256}
    assert not scorings.is_wanted(made, timezone.now())
