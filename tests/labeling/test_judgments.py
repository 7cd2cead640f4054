import uuid

import pytest

from labeling import choices, judgments, leases
from labeling.errors import AlreadyJudged, Frozen, Invalid
from labeling.models import Campaign, Judgment, Lease
from tests.labeling import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def campaign():
    return make.campaign(lease_seconds=60)


@pytest.fixture
def anna(campaign):
    return make.person("anna", campaign)


@pytest.fixture
def lease(campaign, anna):
    return make.lease(make.comparison(campaign), anna)


def _comparison(lease):
    lease.comparison.refresh_from_db()
    return lease.comparison


def test_it_records_ranks_strength_and_the_order_shown(lease):
    judgment = make.judge(lease, side=1, strength=3)
    left, right = lease.order
    assert judgment.ranks == {str(right): 1, str(left): 2}
    assert (judgment.strength, judgment.order, judgment.lease) == (3, lease.order, lease)
    assert (_comparison(lease).n_judgments, lease.comparison.is_open) == (1, False)
    lease.refresh_from_db()
    assert lease.ended_at == make.NOW


@pytest.mark.parametrize(("verdict", "ranks", "n", "is_open"), [
    ("tie", [1, 1], 1, False),
    ("both_bad", [], 1, False),
    ("skip", [], 0, True),
])  # fmt: skip
def test_it_ranks_nothing_but_preferences_and_ties(lease, verdict, ranks, n, is_open):
    assert list(make.judge(lease, verdict).ranks.values()) == ranks
    assert (_comparison(lease).n_judgments, lease.comparison.is_open) == (n, is_open)


def test_it_stores_a_retry_once(lease, anna):
    key = uuid.uuid4()
    first = judgments.record(lease, anna, key, make.choice(lease), make.NOW)
    again = judgments.record(lease, anna, key, make.choice(lease, side=1), make.later(500))
    assert again == first
    assert Judgment.objects.count() == 1


def test_it_refuses_one_key_for_two_pairs(campaign, lease, anna):
    key = uuid.uuid4()
    judgments.record(lease, anna, key, make.choice(lease), make.NOW)
    other = make.lease(make.comparison(campaign), anna)
    with pytest.raises(Invalid, match="client_key"):
        judgments.record(other, anna, key, make.choice(other), make.NOW)


def test_it_refuses_another_order_another_pair_and_another_person(campaign, lease, anna):
    wrong_order = choices.Choice(verdict="tie", order=lease.order[::-1])
    with pytest.raises(Invalid, match="not the pair"):
        judgments.record(lease, anna, uuid.uuid4(), wrong_order, make.NOW)
    other = make.lease(make.comparison(campaign), make.person("ben", campaign))
    with pytest.raises(Invalid, match="not the pair"):
        judgments.record(lease, anna, uuid.uuid4(), make.choice(other), make.NOW)
    with pytest.raises(Invalid, match="not the pair"):
        judgments.record(other, anna, uuid.uuid4(), make.choice(other), make.NOW)
    assert not Judgment.objects.exists()


def test_it_refuses_a_second_judgment_by_the_same_person(lease):
    make.judge(lease)
    with pytest.raises(AlreadyJudged):
        make.judge(lease)


@pytest.mark.parametrize(("scale", "fields", "choice", "is_fine"), [
    ("seven", {}, {"verdict": "preference", "chosen": 1, "strength": 3}, True),
    ("seven", {}, {"verdict": "preference", "chosen": 1}, False),
    ("seven", {}, {"verdict": "preference", "chosen": 1, "strength": 4}, False),
    ("seven", {}, {"verdict": "preference", "chosen": 3, "strength": 1}, False),
    ("seven", {}, {"verdict": "preference", "strength": 1}, False),
    ("seven", {}, {"verdict": "tie"}, True),
    ("seven", {}, {"verdict": "tie", "strength": 1}, False),
    ("seven", {}, {"verdict": "tie", "chosen": 1}, False),
    ("seven", {}, {"verdict": "skip"}, True),
    ("seven", {}, {"verdict": "retracted"}, False),
    ("seven", {}, {"verdict": "nonsense"}, False),
    ("seven", {"allow_tie": False}, {"verdict": "tie"}, False),
    ("seven", {"allow_both_bad": False}, {"verdict": "both_bad"}, False),
    ("three", {}, {"verdict": "preference", "chosen": 2}, True),
    ("three", {}, {"verdict": "preference", "chosen": 2, "strength": 1}, False),
    ("three", {}, {"verdict": "tie"}, True),
    ("binary", {}, {"verdict": "preference", "chosen": 2}, True),
    ("binary", {}, {"verdict": "tie"}, False),
])  # fmt: skip
def test_it_takes_what_the_scale_offers(scale, fields, choice, is_fine):
    campaign = Campaign(scale=scale, **fields)
    made = choices.Choice(order=[1, 2], **choice)
    if is_fine:
        choices.check(campaign, made)
    else:
        with pytest.raises(Invalid):
            choices.check(campaign, made)


def test_it_takes_a_late_judgment_while_there_is_room(lease):
    make.judge(lease, at=make.later(9_999))
    assert _comparison(lease).n_judgments == 1


def test_it_takes_a_judgment_after_a_release_while_there_is_room(lease):
    leases.release(lease, make.later(1))
    make.judge(lease, at=make.later(2))
    assert _comparison(lease).n_judgments == 1


def test_it_keeps_a_late_judgment_as_surplus_when_the_pair_was_given_on(campaign, lease):
    theirs = make.lease(lease.comparison, make.person("ben", campaign), make.later(61))
    late = make.judge(lease, at=make.later(62))
    assert late.is_surplus
    assert not make.judge(theirs, at=make.later(63)).is_surplus
    assert _comparison(lease).n_judgments == 1
    judgments.undo(Judgment.objects.get(annotator=theirs.annotator), make.later(64))
    assert _comparison(lease).n_judgments == 0  # surplus never counts, not even in an empty place
    assert not judgments.counting().exists()
    assert not judgments.learnable().exists()


def test_it_takes_a_late_skip_which_needs_no_place(campaign, lease):
    make.lease(lease.comparison, make.person("ben", campaign), make.later(61))
    assert not make.judge(lease, "skip", at=make.later(62)).is_surplus


def test_it_undoes_and_judges_again(lease):
    first = make.judge(lease, side=0)
    given_back = judgments.undo(first, make.later(5))
    assert given_back == lease
    assert given_back is not None
    assert given_back.expires_at == make.later(65)
    assert (_comparison(lease).n_judgments, lease.comparison.is_open) == (0, True)
    second = make.judge(lease, side=1, at=make.later(6))
    assert list(judgments.in_force()) == [second]
    assert [row.verdict for row in Judgment.objects.all()] == ["preference", "retracted", "preference"]
    assert _comparison(lease).n_judgments == 1


def test_it_undoes_once_however_often_it_is_asked(lease):
    first = make.judge(lease)
    assert judgments.undo(first, make.later(1)) == lease
    assert judgments.undo(first, make.later(2)) == lease
    assert Judgment.objects.count() == 2
    make.judge(lease, at=make.later(3))
    assert judgments.undo(first, make.later(4)) is None  # an old undo does not take the new judgment back
    assert judgments.in_force().count() == 1


def test_it_takes_a_skip_back_without_crowding_out_who_has_the_pair_now(campaign, lease):
    skip = make.judge(lease, "skip")
    make.lease(lease.comparison, make.person("ben", campaign))
    assert judgments.undo(skip, make.later(1)) is None
    assert not judgments.in_force().exists()


def test_it_refuses_to_undo_what_a_snapshot_holds(lease):
    judgment = make.judge(lease)
    Judgment.objects.update(frozen_at=make.NOW)
    with pytest.raises(Frozen, match="training snapshot"):
        judgments.undo(judgment, make.later(1))
    assert list(judgments.in_force()) == [judgment]


def test_it_lists_what_can_be_undone_newest_last(campaign, anna):
    keys = []
    for _ in range(3):
        judgment = make.judge(make.lease(make.comparison(campaign), anna))
        keys.append(judgment.client_key)
    Judgment.objects.filter(client_key=keys[0]).update(frozen_at=make.NOW)
    assert judgments.undoable(campaign, anna) == keys[1:]
    assert judgments.undoable(campaign, make.person("ben", campaign)) == []


def test_it_opens_and_closes_pairs_when_the_overlap_changes(campaign, lease):
    make.judge(lease)
    campaign.overlap = 2
    campaign.save()
    judgments.reopen(campaign)
    assert _comparison(lease).is_open
    ben = make.person("ben", campaign)
    assert [claimed.comparison for claimed in leases.claim(campaign, ben, make.NOW)] == [lease.comparison]
    Lease.objects.filter(annotator=ben).delete()
    campaign.overlap = 1
    campaign.save()
    judgments.reopen(campaign)
    assert not _comparison(lease).is_open
