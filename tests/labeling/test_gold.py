"""What measures people comes in its share, counts for nothing, and ends."""

import pytest

from labeling import gold, judgments, leases
from labeling.errors import Invalid
from labeling.models import Campaign, Comparison, Judgment, Lease, Membership, Purpose
from tests.labeling import make

pytestmark = pytest.mark.django_db
FIRST, SECOND = 0, 1


def golden(campaign: Campaign, better: int = FIRST) -> Comparison:
    comparison = make.comparison(campaign)
    ids = [item.response_id for item in comparison.items.order_by("index")]
    gold.set_answer(comparison, {str(pk): 1 if place == better else 2 for place, pk in enumerate(ids)})
    return comparison


def work(campaign: Campaign, user, n: int, at: float = 0) -> list[Lease]:
    """The leases of `n` pairs, each judged before the next is claimed."""
    done = []
    for step in range(n):
        [lease] = leases.claim(campaign, user, make.later(at + step), n=1)
        make.judge(lease, at=make.later(at + step))
        done.append(lease)
    return done


def test_it_mixes_gold_in_by_its_share_and_never_twice():
    campaign = make.campaign(gold_share=0.5)
    known = [golden(campaign) for _ in range(12)]
    for _ in range(40):
        make.comparison(campaign)
    done = work(campaign, make.person("", campaign), 40)
    shown = [lease.comparison_id for lease in done if lease.purpose == Purpose.GOLD]
    assert len(set(shown)) == len(shown) > 3
    assert set(shown) <= {comparison.pk for comparison in known}


def test_it_counts_no_gold_towards_anything():
    campaign = make.campaign(gold_share=0.5)
    known = golden(campaign)
    lease = Lease.objects.create(
        comparison=known,
        annotator=make.person("", campaign),
        purpose=Purpose.GOLD,
        order=[item.response_id for item in known.items.all()],
        created_at=make.NOW,
        expires_at=make.later(60),
    )
    make.judge(lease)
    assert not judgments.counting().exists()
    known.refresh_from_db()
    assert (known.n_judgments, known.is_open) == (0, False)


def test_it_gives_no_gold_and_no_repeat_when_everything_is_judged():
    campaign = make.campaign()
    for _ in range(5):
        golden(campaign)
    anna = make.person("anna", campaign)
    make.judge(make.lease(make.comparison(campaign), anna))
    campaign.gold_share = campaign.repeat_share = 0.5
    assert leases.claim(campaign, anna, make.later(3600)) == []


def test_it_shows_a_repeat_with_the_sides_swapped_after_a_while():
    campaign = make.campaign(repeat_share=0.5, overlap=3)
    for _ in range(40):
        make.comparison(campaign)
    anna = make.person("anna", campaign)
    soon = work(campaign, anna, 10)
    assert {lease.purpose for lease in soon} == {Purpose.LABEL}
    later = work(campaign, anna, 20, at=gold.REPEAT_AFTER.total_seconds() + 60)
    again = [lease for lease in later if lease.purpose == Purpose.REPEAT]
    assert again
    orders = {lease.comparison_id: lease.order for lease in soon}
    assert all(lease.order == orders[lease.comparison_id][::-1] and lease.repeat == leases.SWAPPED for lease in again)
    assert len({lease.comparison_id for lease in again}) == len(again)
    counted = judgments.counting().filter(annotator=anna).values_list("comparison", flat=True)
    assert len(counted) == len(set(counted)) == 30 - len(again)


def test_it_begins_with_practice_and_ends_it_once():
    campaign = make.campaign(practice_pairs=2)
    for _ in range(3):
        golden(campaign)
    make.comparison(campaign)
    anna = make.person("anna", campaign)
    assert gold.n_to_practise(campaign, anna) == 2
    done = work(campaign, anna, 3)
    assert [lease.purpose for lease in done] == [Purpose.PRACTICE, Purpose.PRACTICE, Purpose.LABEL]
    assert Membership.objects.get(user=anna).practised_at == make.later(1)
    assert gold.n_to_practise(campaign, anna) == 0


def test_it_ends_practice_when_there_is_too_little_gold():
    campaign = make.campaign(practice_pairs=5)
    golden(campaign)
    make.comparison(campaign)
    done = work(campaign, make.person("", campaign), 2)
    assert [lease.purpose for lease in done] == [Purpose.PRACTICE, Purpose.LABEL]


def test_it_gives_a_practice_pair_again_when_its_lease_ran_out():
    campaign = make.campaign(practice_pairs=1, lease_seconds=60)
    golden(campaign)
    anna = make.person("anna", campaign)
    [first] = leases.claim(campaign, anna, make.NOW)
    [again] = leases.claim(campaign, anna, make.later(120))
    assert (again.pk, again.purpose) == (first.pk, Purpose.PRACTICE)


@pytest.mark.parametrize("role", ["reviewer", "manager"])
def test_it_spares_those_who_lead_the_practice(role):
    campaign = make.campaign(practice_pairs=2)
    golden(campaign)
    make.comparison(campaign)
    [lease] = leases.claim(campaign, make.person("", campaign, role=role), make.NOW, n=1)
    assert lease.purpose == Purpose.LABEL


@pytest.mark.parametrize(
    ("said", "is_right"),
    [({"1": 1, "2": 2}, True), ({"1": 2, "2": 1}, False), ({"1": 1, "2": 1}, False), ({}, False)],
)
def test_it_says_whether_an_answer_is_right(said, is_right):
    assert gold.is_right(Comparison(gold_ranks={"1": 1, "2": 2}), said) is is_right


def test_it_asks_nothing_of_responses_that_are_known_to_be_equal():
    known = Comparison(gold_ranks={"1": 1, "2": 2, "3": 2})
    assert gold.is_right(known, {"1": 1, "2": 3, "3": 2})
    assert not gold.is_right(known, {"1": 2, "2": 3, "3": 1})


def test_it_refuses_an_answer_that_measures_nothing():
    comparison = make.comparison(make.campaign())
    ids = [str(item.response_id) for item in comparison.items.all()]
    for ranks in ({ids[0]: 1}, dict.fromkeys(ids, 1), {ids[0]: 1, "0": 2}):
        with pytest.raises(Invalid):
            gold.set_answer(comparison, ranks)


def test_it_takes_a_pair_out_of_the_stream_and_puts_it_back():
    campaign = make.campaign()
    comparison = golden(campaign)
    anna = make.person("anna", campaign)
    assert leases.claim(campaign, anna, make.NOW) == []
    gold.set_answer(comparison, None)
    assert make.lease(comparison, anna).purpose == Purpose.LABEL


def test_it_wants_again_what_was_taken_back_while_the_answer_was_known():
    campaign = make.campaign()
    comparison = make.comparison(campaign)
    first = make.judge(make.lease(comparison, make.person("anna", campaign)))
    ids = [str(item.response_id) for item in comparison.items.all()]
    gold.set_answer(comparison, dict(zip(ids, (1, 2), strict=True)))
    judgments.undo(first, make.later(1))
    gold.set_answer(comparison, None)
    comparison.refresh_from_db()
    assert (comparison.n_judgments, comparison.is_open) == (0, True)


def test_it_never_shows_anybody_what_was_compared_in_a_chat():
    campaign = make.campaign(overlap=2)
    comparison = make.comparison(campaign)
    comparison.source, comparison.is_open = Comparison.Source.CHAT, False
    comparison.save()
    ids = [str(item.response_id) for item in comparison.items.all()]
    for ranks in (dict(zip(ids, (1, 2), strict=True)), None):
        with pytest.raises(Invalid, match="private"):
            gold.set_answer(comparison, ranks)
    assert leases.claim(campaign, make.person("anna", campaign), make.NOW) == []


def test_it_leaves_an_ordinary_pair_as_it_is_when_its_answer_is_forgotten_again():
    comparison = make.comparison(make.campaign())
    comparison.is_open = False
    comparison.save()
    gold.set_answer(comparison, None)
    comparison.refresh_from_db()
    assert not comparison.is_open


def test_it_keeps_the_purpose_of_a_judgment_that_is_revised_or_undone():
    campaign = make.campaign(practice_pairs=1)
    golden(campaign)
    anna = make.person("anna", campaign)
    [lease] = work(campaign, anna, 1)
    judgments.undo(Judgment.objects.get(), make.later(5))
    assert set(Judgment.objects.values_list("purpose", flat=True)) == {Purpose.PRACTICE}
    make.judge(lease, at=make.later(6))
    assert not judgments.counting().exists()
