"""A manager's retraction: what was said no longer counts, whatever has learned from it, and it is known who decided why."""

import uuid

import pytest

from labeling import gold, judgments, leases, retractions, votes
from labeling.choices import Choice
from labeling.errors import AlreadyJudged, Frozen, Invalid
from labeling.models import Comparison, Judgment, Purpose, Retraction
from tests.labeling.make import NOW, campaign, choice, comparison, judge, later, lease, person

pytestmark = pytest.mark.django_db
WHY = "Answered at random."


@pytest.fixture
def manager():
    return person("mia")


def frozen(judgment: Judgment) -> Judgment:
    Judgment.objects.filter(pk=judgment.pk).update(frozen_at=NOW)
    judgment.refresh_from_db()
    return judgment


def preferring(asked: Comparison) -> Choice:
    order = [item.response_id for item in asked.items.all()]
    return Choice("preference", order, chosen=order[0], strength=2)


def test_it_takes_back_what_a_snapshot_holds(manager):
    cats = campaign()
    said = frozen(judge(lease(comparison(cats), person("", cats))))
    with pytest.raises(Frozen, match="manager"):
        judgments.undo(said, NOW)
    made = retractions.retract_judgment(said, manager, f"  {WHY} ", later(60))
    assert (made.by, made.annotator, made.reason, made.at) == (manager, said.annotator, WHY, later(60))
    assert not judgments.learnable().exists()
    assert not votes.collect(cats).judgment.size
    assert list(retractions.retracted(made)) == [said]


def test_it_opens_the_comparison_for_others_and_not_for_the_same_person(manager):
    cats = campaign()
    asked, anna = comparison(cats), person("", cats)
    said = frozen(judge(lease(asked, anna)))
    asked.refresh_from_db()
    assert (asked.n_judgments, asked.is_open) == (1, False)
    retractions.retract_judgment(said, manager, WHY, later(60))
    asked.refresh_from_db()
    assert (asked.n_judgments, asked.is_open) == (0, True)
    assert leases.claim(cats, anna, later(61)) == []
    assert judgments.undo(said, later(61)) is None  # a late undo gives nothing back
    judge(lease(asked, person("", cats), later(62)), at=later(62))
    asked.refresh_from_db()
    assert (asked.n_judgments, asked.is_open) == (1, False)


def test_it_leaves_a_comparison_closed_that_has_enough_without_it(manager):
    cats = campaign(overlap=2)
    asked = comparison(cats)
    first, _second = (judge(lease(asked, person("", cats))) for _ in range(2))
    cats.overlap = 1
    cats.save()
    retractions.retract_judgment(first, manager, WHY, later(60))
    asked.refresh_from_db()
    assert (asked.n_judgments, asked.is_open) == (1, False)


def test_it_takes_back_all_that_a_person_said_in_one_campaign(manager, monkeypatch):
    monkeypatch.setattr(judgments, "BATCH", 2)
    cats, dogs = campaign(), campaign("dogs")
    anna, ben = person("anna", cats, dogs), person("ben", cats)
    mine = [judge(lease(comparison(cats), anna)) for _ in range(5)]
    frozen(mine[0])
    known = comparison(cats)
    first = known.items.get(index=0).response_id
    gold.set_answer(known, {str(item.response_id): 1 + (item.response_id != first) for item in known.items.all()})
    mine.append(judgments.add(known, anna, uuid.uuid4(), preferring(known), NOW, purpose=Purpose.GOLD))
    others = judge(lease(comparison(cats), ben))
    elsewhere = judge(lease(comparison(dogs), anna))
    made = retractions.retract_person(cats, anna, manager, WHY, later(60))
    assert made.is_everything
    assert set(retractions.retracted(made)) == set(mine)
    assert set(judgments.in_force()) == {others, elsewhere}
    counts = Comparison.objects.filter(judgments__in=mine, gold_ranks__isnull=True).values_list(
        "n_judgments", "is_open"
    )
    assert set(counts) == {(0, True)}
    known.refresh_from_db()
    assert not known.is_open


def test_it_ends_a_dispute(manager):
    cats = campaign(overlap=2, max_overlap=3)
    asked = comparison(cats)
    best = asked.items.get(index=0).response_id
    for name, wanted in (("anna", True), ("ben", False)):
        held = lease(asked, person(name, cats))
        judge(held, side=int((held.order[0] == best) is not wanted))
    asked.refresh_from_db()
    assert asked.is_disputed
    retractions.retract_judgment(Judgment.objects.earliest("pk"), manager, WHY, later(60))
    asked.refresh_from_db()
    assert (asked.is_disputed, asked.n_wanted, asked.is_open) == (False, 2, True)


def test_it_never_opens_what_was_said_in_chat(manager):
    cats = campaign()
    asked = comparison(cats)
    Comparison.objects.filter(pk=asked.pk).update(source=Comparison.Source.CHAT, is_open=False)
    asked.refresh_from_db()
    said = judgments.add(asked, person(), uuid.uuid4(), preferring(asked), NOW, purpose=Purpose.CHAT)
    retractions.retract_judgment(frozen(said), manager, WHY, later(60))
    asked.refresh_from_db()
    assert (asked.n_judgments, asked.is_open) == (0, False)


@pytest.mark.parametrize("reason", ["", " \n"])
def test_it_wants_a_reason(manager, reason):
    cats = campaign()
    said = judge(lease(comparison(cats), person("", cats)))
    with pytest.raises(Invalid, match="why"):
        retractions.retract_judgment(said, manager, reason, NOW)
    assert judgments.in_force().count() == 1


def test_it_does_nothing_twice(manager):
    cats = campaign()
    said = judge(lease(comparison(cats), person("", cats)))
    retractions.retract_judgment(said, manager, WHY, NOW)
    with pytest.raises(Invalid, match="before"):
        retractions.retract_judgment(said, manager, WHY, NOW)
    with pytest.raises(Invalid):
        retractions.retract_person(cats, said.annotator, manager, WHY, NOW)
    assert Retraction.objects.count() == 1
    assert said.lease is not None
    with pytest.raises(AlreadyJudged):
        judgments.revise(said, uuid.uuid4(), choice(said.lease), later(60))
