"""What had learned from retracted judgments, and the run once more without them."""

import hashlib
import json

import pytest
from django.contrib.admin.models import LogEntry

from labeling import judgments
from labeling import retractions as labeling_retractions
from labeling.models import Judgment
from serving import adapters
from serving.models import Adapter
from tests.training.rows import NOW, add_annotator, add_campaign, add_judged, add_prompt
from training import lineage, retractions, runs, snapshots
from training.models import RewardModel, Run
from training.snapshots import freeze

pytestmark = pytest.mark.django_db
WHY = "Answered at random."


def add_run(campaign, number: int, snapshot=None, **fields) -> Run:
    adapter = Adapter.objects.create(
        name=f"adapter-{number}-abcdef", sha256=f"{number:064}", base_sha256=adapters.base().sha256
    )
    values = {"status": Run.Status.SUCCEEDED, "method": "dpo", "params": {"epochs": 2.0}, "adapter": adapter, **fields}
    return Run.objects.create(campaign=campaign, snapshot=snapshot, **values)


def retract(row: Judgment):
    return labeling_retractions.retract_judgment(row, add_annotator(), WHY, NOW)


def test_it_names_what_had_learned_from_a_judgment():
    campaign = add_campaign()
    rows = add_judged(campaign, 5)
    run = add_run(campaign, 1, freeze(campaign))
    down = retractions.touched(retract(rows[0]))
    assert [trained.run for trained in down.runs] == [run]
    assert [version.adapter for version in down.versions] == [run.adapter]
    assert [(held.snapshot, held.n_judgments, held.n_retracted) for held in down.snapshots] == [(run.snapshot, 5, 1)]


def test_it_names_nothing_for_what_no_snapshot_holds():
    campaign = add_campaign()
    add_judged(campaign, 5)
    add_run(campaign, 1, freeze(campaign))
    [late] = add_judged(campaign, 1)
    down = retractions.touched(retract(late))
    assert not any([*down.snapshots, *down.runs, *down.versions])


def test_it_leaves_the_old_snapshot_as_it_was_and_the_next_without_it():
    campaign = add_campaign()
    rows = add_judged(campaign, 5)
    old = freeze(campaign)
    before = {path.name: path.read_bytes() for path in old.folder.iterdir()}
    retract(rows[0])
    new = freeze(campaign)
    assert {path.name: path.read_bytes() for path in old.folder.iterdir()} == before
    old.refresh_from_db()
    assert old.judgments.filter(pk=rows[0].pk).exists()
    assert lineage.count_retracted([old, new]) == {old.pk: 1, new.pk: 0}
    assert new.sha256 != old.sha256
    assert rows[0].pk not in {
        pk for line in (new.folder / "train.jsonl").open() for pk in json.loads(line)["judgments"]
    }
    assert json.loads((new.folder / "card.json").read_text())["not_learned"]["retracted"] == 1


def test_it_runs_the_same_again_on_judgments_still_to_be_frozen():
    campaign = add_campaign()
    rows = add_judged(campaign, 5)
    run = add_run(campaign, 1, freeze(campaign))
    retraction = retract(rows[0])
    again = retractions.run_again(run, retraction, add_annotator())
    assert (again.retry_of, again.without, again.method, again.params["epochs"]) == (run, retraction, "dpo", 2.0)
    assert (again.snapshot, again.incumbent, again.status) == (None, None, Run.Status.QUEUED)
    with pytest.raises(runs.RunExists):
        retractions.run_again(run, retraction)
    with pytest.raises(runs.NotRetryable):
        retractions.run_again(again, retraction)


def test_it_begins_from_the_base_where_the_current_version_had_learned_it():
    campaign = add_campaign()
    rows = add_judged(campaign, 5)
    run = add_run(campaign, 1, freeze(campaign), params={"start": "incumbent"})
    clean = retractions.run_again(run, retract(rows[0]))
    assert clean.params["start"] == "incumbent"  # the base is current: nothing was learned
    runs.request_cancel(clean, NOW)
    alias = adapters.deployment()
    assert run.adapter is not None
    alias.adapter = run.adapter
    alias.save()
    assert retractions.run_again(run, retract(rows[1])).params["start"] == "base"


def add_reward_model(run: Run, **fields) -> RewardModel:
    values = {"sha256": "c" * 64, "base_sha256": "b" * 64, "is_passed": True, "is_active": True, **fields}
    return RewardModel.objects.create(campaign=run.campaign, run=run, **values)


def test_it_names_reward_models_and_takes_them_out_of_use_when_told_to():
    campaign = add_campaign()
    rows = add_judged(campaign, 5)
    made = add_reward_model(add_run(campaign, 1, freeze(campaign), method="reward_model", adapter=None))
    add_judged(campaign, 1)
    apart = add_reward_model(add_run(add_campaign(), 2, method="reward_model", adapter=None), sha256="d" * 64)
    user, retraction = add_annotator(), retract(rows[0])
    assert list(retractions.touched(retraction).reward_models) == [made]
    made.refresh_from_db()
    assert made.is_active  # by itself it goes on, as a version in chat does
    with pytest.raises(retractions.NotTouched, match="learned nothing"):
        retractions.put_away(apart, retraction, user)
    assert retractions.put_away(made, retraction, user)
    assert not retractions.put_away(made, retraction, user)
    assert list(RewardModel.objects.filter(is_active=True)) == [apart]
    entry = LogEntry.objects.get()
    assert (entry.user, entry.get_edited_object()) == (user, made)
    assert str(retraction) in entry.get_change_message()


def test_it_refuses_a_run_that_learned_nothing_of_it():
    campaign = add_campaign()
    rows = add_judged(campaign, 5)
    run = add_run(campaign, 1, freeze(campaign))
    [late] = add_judged(campaign, 1)
    with pytest.raises(retractions.NotTouched, match="learned nothing"):
        retractions.run_again(run, retract(late))
    retractions.run_again(run, retract(rows[0]))


def test_it_never_freezes_what_is_retracted_between_reading_and_freezing(monkeypatch):
    campaign = add_campaign()
    rows = add_judged(campaign, 6)
    write = snapshots._write

    def retract_then_write(made, card):
        if judgments.in_force().filter(pk=rows[0].pk).exists():
            retract(rows[0])
        return write(made, card)

    monkeypatch.setattr(snapshots, "_write", retract_then_write)
    assert not freeze(campaign).judgments.filter(pk=rows[0].pk).exists()


def test_it_says_in_words_what_is_in_and_what_is_not():
    campaign = add_campaign()
    rows = add_judged(campaign, 5, 2)
    add_prompt(campaign)
    retract(rows[0])
    snapshot = freeze(campaign)
    text = (snapshot.folder / "README.md").read_text()
    card = json.loads((snapshot.folder / "card.json").read_text())
    assert snapshot.sha256 in text
    assert "1: retracted, with a reason that is recorded" in text
    assert not {row.annotator.username for row in rows} & set(text.split())
    for name, sha256 in card["files"].items():
        assert hashlib.sha256((snapshot.folder / name).read_bytes()).hexdigest() == sha256
        assert f"`{name}`" in text
    assert card["guidelines"] == {"1": 6}
    assert card["filter"]["until_judgment"] == rows[-1].pk
