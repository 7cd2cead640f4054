"""More judgments where people disagree, no more than allowed; and what reviewers decide."""

import dataclasses
import uuid

import pytest

from labeling import choices, judgments, leases
from labeling.errors import AlreadyJudged, Frozen
from labeling.models import Campaign, Comparison, Judgment, Purpose
from tests.labeling import make

pytestmark = pytest.mark.django_db


def vote(comparison: Comparison, *sides: int | str, at: float = 0) -> Comparison:
    """Judged by one new person each: the place of the better response in the pair, or a verdict."""
    ids = [item.response_id for item in comparison.items.order_by("index")]
    for side in sides:
        lease = make.lease(comparison, make.person("", comparison.campaign), make.later(at))
        if isinstance(side, str):
            make.judge(lease, side, make.later(at))
        else:
            make.judge(lease, at=make.later(at), side=lease.order.index(ids[side]))
    comparison.refresh_from_db()
    return comparison


@pytest.mark.parametrize(
    ("votes", "n_wanted", "is_open", "is_disputed"),
    [
        ([0, 0], 2, False, False),
        ([0, "tie"], 2, False, False),
        ([0, 1], 3, True, True),
        ([0, 1, 0], 4, True, True),  # one of three disagrees
        ([0, 1, 0, 0], 2, False, False),  # one of four does not count as dispute
        ([0, 1, 0, 1], 5, True, True),
        ([0, 1, 0, 1, 0], 5, False, True),  # no more than the most
        (["both_bad", 0], 2, False, False),
    ],
)
def test_it_asks_more_people_where_they_disagree(votes, n_wanted, is_open, is_disputed):
    comparison = vote(make.comparison(make.campaign(overlap=2, max_overlap=5)), *votes)
    assert (comparison.n_wanted, comparison.is_open, comparison.is_disputed) == (n_wanted, is_open, is_disputed)


def test_it_asks_nobody_more_unless_the_campaign_says_so():
    comparison = vote(make.comparison(make.campaign(overlap=2)), 0, 1)
    assert (comparison.n_wanted, comparison.is_open, comparison.is_disputed) == (2, False, True)


def test_it_wants_fewer_again_when_the_dissent_is_taken_back():
    comparison = vote(make.comparison(make.campaign(overlap=2, max_overlap=5)), 0, 1, 0)
    judgments.undo(Judgment.objects.order_by("pk")[1], make.later(1))
    comparison.refresh_from_db()
    assert (comparison.n_judgments, comparison.n_wanted, comparison.is_disputed) == (2, 2, False)


def test_it_lets_a_reviewer_decide_once_and_settles_the_dispute():
    comparison = vote(make.comparison(make.campaign(overlap=2)), 0, 1)
    rita = make.person("rita", comparison.campaign, role="reviewer")
    lease = leases.decide(comparison, rita, make.NOW)
    assert leases.decide(comparison, rita, make.later(5)) == lease
    decision = make.judge(lease, at=make.later(6))
    comparison.refresh_from_db()
    assert decision.purpose == Purpose.ADJUDICATION
    assert (comparison.is_disputed, comparison.n_judgments) == (False, 2)
    with pytest.raises(AlreadyJudged):
        make.judge(lease, at=make.later(7))
    judgments.undo(decision, make.later(8))
    comparison.refresh_from_db()
    assert comparison.is_disputed


def test_it_asks_nobody_more_once_a_reviewer_has_decided():
    comparison = vote(make.comparison(make.campaign(overlap=2, max_overlap=5)), 0, 1)
    assert comparison.is_open
    decision = make.judge(
        leases.decide(comparison, make.person("rita", comparison.campaign, role="reviewer"), make.NOW)
    )
    comparison.refresh_from_db()
    assert (comparison.n_wanted, comparison.is_open) == (2, False)
    judgments.undo(decision, make.later(1))
    comparison.refresh_from_db()
    assert (comparison.n_wanted, comparison.is_open) == (3, True)


def test_it_lets_somebody_decide_who_has_voted_too():
    comparison = vote(make.comparison(make.campaign(overlap=2)), 0)
    rita = make.person("rita", comparison.campaign, role="reviewer")
    make.judge(make.lease(comparison, rita))
    assert make.judge(leases.decide(comparison, rita, make.later(1)), at=make.later(2)).purpose == Purpose.ADJUDICATION


def revised(judgment: Judgment, **fields) -> choices.Choice:
    return choices.Choice(**{"verdict": "tie", "order": judgment.order, **fields})


def test_it_replaces_a_judgment_by_its_revision():
    comparison = make.comparison(make.campaign(rationale=Campaign.Rationale.OPTIONAL))
    lease = make.lease(comparison, make.person("", comparison.campaign))
    first, key = make.judge(lease), uuid.uuid4()
    second = judgments.revise(first, key, revised(first, reason="On second thoughts."), make.later(5))
    assert judgments.revise(first, key, revised(first), make.later(6)) == second  # a retry
    assert list(judgments.in_force()) == [second]
    assert (second.supersedes, second.lease, second.reason) == (first, lease, "On second thoughts.")
    with pytest.raises(AlreadyJudged):
        judgments.revise(first, uuid.uuid4(), revised(first), make.later(7))
    comparison.refresh_from_db()
    assert comparison.n_judgments == 1


def test_it_counts_no_skip_that_is_revised_after_its_place_was_given_on():
    comparison = make.comparison(make.campaign())
    skip = make.judge(make.lease(comparison, make.person("", comparison.campaign)), "skip")
    make.judge(make.lease(comparison, make.person("", comparison.campaign)), at=make.later(1))
    assert judgments.revise(skip, uuid.uuid4(), revised(skip), make.later(2)).is_surplus
    comparison.refresh_from_db()
    assert comparison.n_judgments == 1


def test_it_counts_a_skip_that_is_revised_while_there_is_room():
    comparison = make.comparison(make.campaign())
    skip = make.judge(make.lease(comparison, make.person("", comparison.campaign)), "skip")
    judgments.revise(skip, uuid.uuid4(), revised(skip), make.later(2))
    comparison.refresh_from_db()
    assert (comparison.n_judgments, comparison.is_open) == (1, False)


def test_it_takes_no_compared_response_for_an_edit_of_another():
    comparison = make.comparison(make.campaign(allow_edit=True))
    lease = make.lease(comparison, make.person("", comparison.campaign))
    texts = dict(comparison.responses.values_list("pk", "text"))
    for text, is_edit in ((texts[lease.order[0]], False), (texts[lease.order[1]], False), ("Better than both.", True)):
        choice = dataclasses.replace(make.choice(lease), edit=text)
        judgment = judgments.record(lease, lease.annotator, uuid.uuid4(), choice, make.NOW)
        assert (judgment.edit is not None) == is_edit
        judgments.undo(judgment, make.NOW)


def test_it_undoes_a_judgment_through_all_its_revisions():
    comparison = make.comparison(make.campaign())
    lease = make.lease(comparison, make.person("", comparison.campaign))
    first = make.judge(lease)
    judgments.revise(first, uuid.uuid4(), revised(first), make.later(5))
    assert judgments.undo(first, make.later(6)) == lease
    assert not judgments.in_force().exists()
    comparison.refresh_from_db()
    assert (comparison.n_judgments, comparison.is_open) == (0, True)


def test_it_refuses_to_revise_what_a_snapshot_holds():
    comparison = make.comparison(make.campaign())
    judgment = make.judge(make.lease(comparison, make.person("", comparison.campaign)))
    Judgment.objects.update(frozen_at=make.NOW)
    with pytest.raises(Frozen):
        judgments.revise(judgment, uuid.uuid4(), revised(judgment), make.later(1))


def test_it_keeps_an_edit_as_a_response_of_its_own():
    comparison = make.comparison(make.campaign(scale="three", allow_edit=True))
    lease = make.lease(comparison, make.person("", comparison.campaign))
    choice = choices.Choice("preference", lease.order, chosen=lease.order[1], edit="By hand,\r\nbetter.")
    edit = judgments.record(lease, lease.annotator, uuid.uuid4(), choice, make.NOW).edit
    assert edit is not None
    assert (edit.text, edit.source, edit.edited_from_id) == ("By hand,\nbetter.", "edit", lease.order[1])
    assert set(comparison.responses.values_list("pk", flat=True)) == set(lease.order)  # the pair is as it was shown


def test_it_keeps_no_edit_that_changes_nothing():
    comparison = make.comparison(make.campaign(scale="three", allow_edit=True))
    lease = make.lease(comparison, make.person("", comparison.campaign))
    same = comparison.responses.get(pk=lease.order[0]).text + "\n"
    choice = choices.Choice("preference", lease.order, chosen=lease.order[0], edit=same)
    assert judgments.record(lease, lease.annotator, uuid.uuid4(), choice, make.NOW).edit is None
