"""From a judgment to everything that learned from it, and from a version back to what it learned from."""

from datetime import timedelta

import pytest
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from labeling import judgments
from labeling.models import Campaign, ComparisonItem, Judgment, Response
from serving.models import Adapter, Conversation, DeploymentEvent, Message
from tests.training.rows import NOW, add_annotator, add_campaign, add_comparison, add_judged, add_prompt, judge
from training import lineage
from training.models import RewardModel, Run, Snapshot
from training.snapshots import freeze

pytestmark = pytest.mark.django_db


def add_version(number: int) -> Adapter:
    return Adapter.objects.create(name=f"adapter-{number}-abcdef", sha256=f"{number:064}", base_sha256="b" * 64)


def add_run(campaign: Campaign, adapter: Adapter | None, snapshot: Snapshot | None = None, **fields) -> Run:
    values = {"status": Run.Status.SUCCEEDED, "method": "dpo", "adapter": adapter, "snapshot": snapshot, **fields}
    return Run.objects.create(campaign=campaign, **values)


def only(row: Judgment):
    return Judgment.objects.filter(pk=row.pk)


def test_it_follows_a_judgment_to_the_alias_and_back():
    campaign = add_campaign()
    rows = add_judged(campaign, 5)
    snapshot, version = freeze(campaign), add_version(1)
    run = add_run(campaign, version, snapshot)
    DeploymentEvent.objects.create(alias="current", generation=1, adapter=version)
    [late] = add_judged(campaign, 1)
    found = lineage.downstream(only(rows[0]))
    assert [held.snapshot for held in found.snapshots] == [snapshot]
    assert [trained.run for trained in found.runs] == [run]
    assert [one.adapter for one in found.versions] == [version]
    assert found.versions[0].is_deployed
    assert not any([*lineage.downstream(only(late)).snapshots, *lineage.downstream(only(late)).versions])
    back = lineage.upstream(version)
    assert {row.pk for row in back.judgments} == {row.pk for row in rows}
    assert [held.snapshot for held in back.snapshots] == [snapshot]
    assert [trained.run for trained in back.runs] == [run]


def test_it_follows_runs_that_go_on_from_what_others_learned():
    campaign = add_campaign()
    rows = add_judged(campaign, 5)
    first, second, third, apart = (add_version(number) for number in range(1, 5))
    direct = add_run(campaign, first, freeze(campaign))
    add_judged(campaign, 3)
    later = freeze(campaign, first)
    Snapshot.judgments.through.objects.filter(snapshot=later, judgment=rows[0]).delete()  # retracted before `later`
    continued = {"start": "incumbent"}
    child = add_run(campaign, second, later, params=continued, incumbent=first)
    grandchild = add_run(campaign, third, later, params=continued, incumbent=second)
    add_run(campaign, apart, later, params={"start": "base"}, incumbent=first)
    found = lineage.downstream(only(rows[0]))
    assert [(one.run, one.is_inherited) for one in found.runs] == [(grandchild, True), (child, True), (direct, False)]
    assert [one.adapter for one in found.versions] == [third, second, first]
    back = lineage.upstream(third)
    assert [one.adapter for one in back.versions] == [third, second, first]
    assert [(one.run, one.is_inherited) for one in back.runs] == [(grandchild, False), (child, True), (direct, True)]
    assert rows[0] in back.judgments
    assert rows[0] not in lineage.upstream(apart).judgments


def test_it_says_from_when_until_when_an_alias_pointed_at_a_version():
    old, new = add_version(1), add_version(2)
    at = timezone.now()
    for generation, (alias, version) in enumerate([("current", old), ("candidate", new), ("current", new)], 1):
        event = DeploymentEvent.objects.create(alias=alias, generation=generation, adapter=version)
        DeploymentEvent.objects.filter(pk=event.pk).update(at=at + timedelta(hours=generation))
    of_old, of_new = lineage.versions([old, new])
    assert [(stay.event.at, stay.until) for stay in of_old.stays] == [
        (at + timedelta(hours=1), at + timedelta(hours=3))
    ]
    assert not of_old.is_deployed
    assert [(stay.event.alias, stay.is_current) for stay in of_new.stays] == [("current", True), ("candidate", True)]


def test_it_ends_a_stay_with_its_alias():
    version = add_version(1)
    DeploymentEvent.objects.create(alias="beta", generation=1, adapter=version)
    [found] = lineage.versions([version])
    assert found.is_deployed
    removed = DeploymentEvent.Kind.ALIAS_REMOVED
    event = DeploymentEvent.objects.create(alias="beta", generation=2, adapter=version, kind=removed)
    [found] = lineage.versions([version])
    assert [stay.until for stay in found.stays] == [event.at]
    assert not found.is_deployed


def test_it_takes_no_trial_for_a_stay():
    """A canary answers some conversations; the alias stays where it is."""
    old, tried = add_version(1), add_version(2)
    Kind = DeploymentEvent.Kind
    moved = [(Kind.PUBLISHED, old), (Kind.CANARY_STARTED, tried), (Kind.CANARY_STOPPED, tried)]
    for generation, (kind, version) in enumerate(moved, 1):
        DeploymentEvent.objects.create(alias="current", kind=kind, generation=generation, adapter=version)
    DeploymentEvent.objects.create(kind=Kind.SELF_TEST_PASSED, adapter=old, engine="http://engine:8001")
    of_old, of_tried = lineage.versions([old, tried])
    assert [stay.is_current for stay in of_old.stays] == [True]
    assert of_tried.stays == []
    DeploymentEvent.objects.create(alias="current", kind=Kind.CANARY_PROMOTED, generation=4, adapter=tried)
    of_old, of_tried = lineage.versions([old, tried])
    assert [stay.is_current for stay in of_old.stays + of_tried.stays] == [False, True]


def test_it_counts_what_people_said_of_a_versions_responses():
    campaign, version = add_campaign(scale="three"), add_version(1)
    comparisons = [add_comparison(add_prompt(campaign)) for _ in range(5)]
    written = ComparisonItem.objects.filter(comparison__in=comparisons, index=0).values("response")
    Response.objects.filter(pk__in=written).update(adapter=version)
    for comparison, verdict, chosen in zip(
        comparisons, ("preference", "preference", "tie", "both_bad", "skip"), (0, 1, 0, 0, 0), strict=True
    ):
        judge(comparison, verdict, chosen=chosen, strength=None)
    judgments.undo(judge(comparisons[0], chosen=1, strength=None), NOW)  # no longer said
    talk = Conversation.objects.create(owner=add_annotator())
    for rating in (1, 1, -1, 0):
        Message.objects.create(conversation=talk, role="assistant", adapter=version, rating=rating)
    said = lineage.feedback([version])[version.pk]
    assert (said.n_preferred, said.n_beaten, said.n_ties, said.n_both_bad) == (1, 1, 1, 1)
    assert (said.n_responses, said.n_judgments) == (5, 4)
    assert (said.n_answers, said.n_thumbs_up, said.n_thumbs_down) == (4, 2, 1)
    assert lineage.judgments_on(version).paginator.count == 5


def test_it_reads_through_preferences_only(django_assert_num_queries: DjangoAssertNumQueries):
    campaign, version = add_campaign(), add_version(1)
    comparison = add_comparison(add_prompt(campaign))
    Response.objects.update(adapter=version)
    for _ in range(3):
        judge(comparison, "tie")
    judge(comparison)
    with django_assert_num_queries(4) as asked:
        said = lineage.feedback([version])[version.pk]
    assert (said.n_ties, said.n_preferred, said.n_beaten, said.n_responses) == (6, 1, 1, 2)
    [streamed] = [query["sql"] for query in asked.captured_queries if '"ranks"' in query["sql"]]
    assert "preference" in streamed


def test_it_names_the_versions_that_wrote_what_is_judged():
    campaign = add_campaign()
    judgment = judge(add_comparison(add_prompt(campaign)))
    assert lineage.written_by(judgment) == []
    first, second = add_version(1), add_version(2)
    for version, response in zip((second, first), Response.objects.order_by("pk"), strict=True):
        Response.objects.filter(pk=response.pk).update(adapter=version)
    assert lineage.written_by(judgment) == [first, second]


def test_it_lists_first_what_is_in_use():
    campaign = add_campaign()
    add_judged(campaign, 5)
    snapshot = freeze(campaign)
    made = [add_version(number) for number in range(1, lineage.PER_PAGE + 3)]
    for version in made:
        run = add_run(campaign, version, snapshot)
        RewardModel.objects.create(
            campaign=campaign,
            run=run,
            sha256="c" * 64,
            base_sha256="b" * 64,
            is_passed=True,
            is_active=version == made[1],
        )
    for generation, version in enumerate((made[3], made[0]), 1):
        DeploymentEvent.objects.create(alias="current", generation=generation, adapter=version)
    down = lineage.downstream_of_snapshot(snapshot)
    assert [version.adapter for version in down.versions[:2]] == [made[0], made[-1]]
    assert [one.run.adapter for one in down.reward_models[:2]] == [made[1], made[-1]]


def test_it_pages_what_a_snapshot_holds():
    campaign = add_campaign()
    rows = add_judged(campaign, lineage.PER_PAGE + 3)
    snapshot = freeze(campaign)
    assert [row.pk for row in lineage.judgments_in(snapshot, 2)] == [row.pk for row in rows[2::-1]]
    assert lineage.downstream_of_snapshot(snapshot).snapshots[0].n_judgments == len(rows)


def test_it_asks_as_often_for_many_as_for_few(django_assert_max_num_queries: DjangoAssertNumQueries):
    campaign = add_campaign()
    for number in range(1, 9):
        rows = add_judged(campaign, 4)
        version = add_version(number)
        add_run(campaign, version, freeze(campaign))
        DeploymentEvent.objects.create(alias="current", generation=number, adapter=version)
    everybody = Judgment.objects.filter(comparison__campaign=campaign)
    for said in (only(rows[0]), everybody):
        with django_assert_max_num_queries(16):
            found = lineage.downstream(said)
    assert len(found.versions) == 8
    with django_assert_max_num_queries(16):
        assert len(lineage.upstream(version).judgments) == lineage.PER_PAGE
