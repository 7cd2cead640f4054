"""What a person must say to publish a version about which there is doubt."""

from pathlib import Path

import pytest
from pytest_django import Settings

from labeling.retractions import retract_judgment
from serving import adapters
from serving.models import Adapter, Deployment
from tests.training.evaluations import add_adapter, add_run, write_evaluation
from tests.training.rows import NOW, add_annotator, add_campaign, add_judged, model_card
from training import gates
from training.gates import ReasonWanted
from training.models import Policy


@pytest.fixture
def _model(tmp_path: Path, settings: Settings) -> None:
    settings.MODEL = model_card(tmp_path)


@pytest.mark.django_db
@pytest.mark.usefixtures("_model")
def test_it_publishes_what_did_not_pass_only_with_a_reason() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4, 1)
    run = add_run(campaign)
    with pytest.raises(adapters.NotServable):
        gates.publish(run, actor=None)
    run.adapter = add_adapter()
    for reason in ("", "  "):
        with pytest.raises(ReasonWanted, match="adapter-2-abcdef"):
            gates.publish(run, actor=None, reason=reason)
    write_evaluation(run, 0.3)
    gates.evaluate(run, run.adapter, run.folder)
    assert gates.needs_reason(run.adapter)  # one pair is not enough to pass


@pytest.mark.django_db
@pytest.mark.usefixtures("_model")
def test_it_wants_a_reason_when_the_gate_compared_with_a_version_that_is_not_current_any_more() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4, 10)
    Policy.objects.create(campaign=campaign, min_heldout_pairs=5)
    run = add_run(campaign)
    run.adapter = add_adapter()
    write_evaluation(run, 0.3)
    gates.evaluate(run, run.adapter, run.folder)
    assert run.incumbent
    deployment = Deployment.objects.create(alias=adapters.CURRENT, adapter=run.incumbent)
    assert not gates.needs_reason(run.adapter)
    other = Adapter.objects.create(name="adapter-3-abcdef", sha256="c" * 64, base_sha256="b" * 64)
    Deployment.objects.filter(pk=deployment.pk).update(adapter=other)
    with pytest.raises(ReasonWanted, match="not the current one any more"):
        gates.publish(run, actor=None)
    Deployment.objects.filter(pk=deployment.pk).update(adapter=run.adapter)
    assert not gates.needs_reason(run.adapter)  # publishing it again changes nothing


@pytest.mark.django_db
def test_it_wants_a_reason_for_what_learned_from_a_judgment_that_was_taken_back() -> None:
    campaign = add_campaign()
    rows = add_judged(campaign, 4, 10)
    Policy.objects.create(campaign=campaign, min_heldout_pairs=5)
    run = add_run(campaign)
    run.adapter = add_adapter()
    run.save()
    write_evaluation(run, 0.3)
    gates.evaluate(run, run.adapter, run.folder)
    assert gates.doubt(run.adapter) == ""
    retract_judgment(rows[0], add_annotator(), "a mistake", NOW)
    assert "taken back since" in gates.doubt(run.adapter)
    Deployment.objects.create(alias=adapters.CURRENT, adapter=run.adapter)
    assert gates.doubt(run.adapter) == ""  # publishing it again changes nothing
