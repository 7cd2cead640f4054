"""Rows of one campaign as arrays: every vote once, with its side, and nothing from elsewhere."""

import uuid
from collections.abc import Sequence

import numpy as np
import pytest
from django.contrib.auth.models import User

from labeling import agreement, bias, exchange, judgments, pairs, ratings, reliability, responses, suspects, votes
from labeling.choices import Choice
from labeling.models import Campaign, Comparison, Judgment, Purpose
from serving.models import Adapter
from tests.labeling import make

pytestmark = pytest.mark.django_db
V = Judgment.Verdict


@pytest.fixture
def cats() -> Campaign:
    return make.campaign(overlap=3)


def say(
    comparison: Comparison,
    annotator: User,
    best: int | None = 0,
    *,
    left: int = 0,
    strength: int | None = 2,
    purpose: Purpose = Purpose.LABEL,
    **fields,
) -> Judgment:
    """`best` and `left` are indices of the pair's responses by id; None is a tie."""
    ids = sorted(comparison.responses.values_list("pk", flat=True))
    order = ids if left == 0 else ids[::-1]
    if best is None:
        choice = Choice(verdict=V.TIE, order=order, **fields)
    else:
        choice = Choice(verdict=V.PREFERENCE, order=order, chosen=ids[best], strength=strength, **fields)
    return judgments.add(comparison, annotator, uuid.uuid4(), choice, make.NOW, purpose=purpose)


def rank(comparison: Comparison, annotator: User, ranks: Sequence[int]) -> Judgment:
    ids = sorted(comparison.responses.values_list("pk", flat=True))
    choice = Choice(verdict=V.PREFERENCE, order=ids[::-1], ranks=dict(zip(ids, ranks, strict=True)))
    return judgments.add(comparison, annotator, uuid.uuid4(), choice, make.NOW)


def group_of_three(campaign: Campaign) -> Comparison:
    asked = make.prompt(campaign)
    for text in ("First answer.", "Another one!", "The third is longer."):
        responses.add_response(asked, text)
    [comparison] = pairs.add_comparisons(campaign, [list(asked.responses.all())], source=Comparison.Source.CAMPAIGN)
    return comparison


def ids_of(comparison: Comparison) -> tuple[int, int]:
    first, second = sorted(comparison.responses.values_list("pk", flat=True))
    return first, second


def test_it_reads_grades_sides_and_lineage(cats: Campaign):
    comparison, anna, ben = make.comparison(cats), make.person(), make.person()
    one = say(comparison, anna, 0, left=0, strength=3, shown_ms=4000)
    other = say(comparison, ben, 1, left=1, strength=1)
    found = votes.collect(cats)
    assert found.pairs == [ids_of(comparison)]
    assert found.annotators == sorted([anna.pk, ben.pk])
    assert found.votes.value.tolist() == [3, -1]
    assert found.votes.side.tolist() == [1, -1]
    assert found.judgment.tolist() == [one.pk, other.pk]
    assert found.comparison.tolist() == [comparison.pk] * 2
    assert found.prompt.tolist() == [comparison.prompt_id] * 2
    assert found.counts.all()
    assert found.shown_ms[0] == 4000
    assert np.isnan(found.shown_ms[1])
    assert found.shown[1] == list(ids_of(comparison))[::-1]
    assert bias.left_share(found.votes.value, found.votes.side).k == 2


def test_it_takes_the_order_of_an_imported_file_for_no_side(cats: Campaign):
    """Files name the chosen response first: as a side, that would be a bias that explains every vote away."""
    judged = [{"ranks": [1, 2], "annotator": name} for name in ("ann", "ben")]
    lines = [
        {"prompt": f"What is {n}?", "responses": [f"It is {n}.", "Who knows!"], "judgments": judged} for n in range(40)
    ]
    assert exchange.import_pairs(cats, lines).added == 40
    assert not votes.collect(cats).votes.side.any()
    assert all(max(label, 1 - label) > 0.9 for label, _weight in votes.soft_labels(cats).values())


def test_it_labels_by_the_judgments_up_to_a_number(cats: Campaign):
    comparison = make.comparison(cats)
    first = say(comparison, make.person(), 0)
    before = votes.soft_labels(cats)
    say(comparison, make.person(), 1)
    assert votes.soft_labels(cats) != before
    assert votes.soft_labels(cats, until=first.pk) == before


def test_it_leaves_out_what_is_no_vote(cats: Campaign):
    comparison = make.comparison(cats)
    for verdict in (V.SKIP, V.BOTH_BAD):
        choice = Choice(verdict=verdict, order=list(ids_of(comparison)))
        judgments.add(comparison, make.person(), uuid.uuid4(), choice, make.NOW)
    choice = Choice(verdict=V.TIE, order=list(ids_of(comparison)))
    judgments.add(comparison, make.person(), uuid.uuid4(), choice, make.NOW, is_surplus=True)
    say(comparison, make.person(), purpose=Purpose.PRACTICE)
    say(make.comparison(make.campaign("dogs")), make.person())
    replaced = say(comparison, anna := make.person(), 0)
    choice = Choice(verdict=V.TIE, order=list(ids_of(comparison)))
    judgments.add(comparison, anna, uuid.uuid4(), choice, make.NOW, supersedes=replaced)
    found = votes.collect(cats)
    assert found.votes.value.tolist() == [0]
    assert found.annotators == [anna.pk]


def test_it_derives_the_votes_of_a_group(cats: Campaign):
    comparison = group_of_three(cats)
    rank(comparison, make.person(), [1, 2, 2])
    a, b, c = sorted(comparison.responses.values_list("pk", flat=True))
    found = votes.collect(cats)
    assert found.pairs == [(a, b), (a, c), (b, c)]
    assert found.votes.value.tolist() == [1, 1, 0]
    assert found.votes.side.tolist() == [-1, -1, -1]  # shown in reverse
    assert len(set(found.comparison)) == 1


def test_it_has_one_vote_of_a_person_on_two_responses(cats: Campaign):
    """Judged in a group and as a pair: the newer one counts, so agreement sees no person twice."""
    comparison, anna = group_of_three(cats), make.person()
    rank(comparison, anna, [1, 2, 3])
    a, b, _c = comparison.responses.order_by("pk")
    [pair] = pairs.add_comparisons(cats, [[a, b]], source=Comparison.Source.CAMPAIGN)
    say(pair, anna, 1)
    say(pair, make.person(), 1)
    found = votes.collect(cats)
    assert found.pairs[0] == (a.pk, b.pk)
    assert sorted(found.votes.value[found.votes.item == 0]) == [-2, -2]
    alpha = agreement.percent_agreement(*found.countable, np.random.default_rng(0))
    assert alpha is not None
    assert alpha.value == 1


def test_it_knows_gold_and_decisions_apart(cats: Campaign):
    gold, disputed, anna = make.comparison(cats), make.comparison(cats), make.person()
    first, second = ids_of(gold)
    Comparison.objects.filter(pk=gold.pk).update(gold_ranks={str(first): 2, str(second): 1})
    say(gold, anna, 0, purpose=Purpose.GOLD)
    say(disputed, anna, 0)
    say(disputed, make.person(), 1)
    say(disputed, make.person(), 1, purpose=Purpose.ADJUDICATION)
    found = votes.collect(cats)
    assert found.pairs == [ids_of(gold), ids_of(disputed)]
    assert found.votes.known.tolist() == [-1, -1]
    assert found.is_gold.tolist() == [True, False]
    assert found.counts.tolist() == [False, True, True]
    assert len(found.annotators) == 2  # the reviewer decides, and has no vote
    assert bias.gold_accuracy(found.votes.value, found.votes.known[found.votes.item]).n == 3


def test_it_labels_by_vote_shares_without_overlap(cats: Campaign):
    anna = make.person()
    one, other = make.comparison(cats), make.comparison(cats)
    say(one, anna, 1)
    say(other, anna, None)
    assert votes.soft_labels(cats) == {ids_of(one): (0.0, 1.0), ids_of(other): (0.5, 1.0)}


def test_it_labels_as_the_reviewer_decided_and_leaves_gold_out(cats: Campaign):
    people = [make.person() for _ in range(3)]
    gold, disputed, decided, *others = (make.comparison(cats) for _ in range(3 + reliability.MIN_SHARED))
    Comparison.objects.filter(pk=gold.pk).update(gold_ranks={str(pk): i for i, pk in enumerate(ids_of(gold))})
    say(gold, people[0], 0, purpose=Purpose.GOLD)
    for number, comparison in enumerate(others):
        for person in people:
            say(comparison, person, 0, left=number % 2)
    say(disputed, people[0], 0)
    say(disputed, people[1], 1)
    for comparison in (disputed, decided):
        say(comparison, make.person(), 1, purpose=Purpose.ADJUDICATION)
    found = votes.soft_labels(cats)
    assert ids_of(gold) not in found
    assert len(found) == 2 + len(others)
    assert found[ids_of(disputed)][0] < 0.1
    assert found[ids_of(disputed)][1] >= 1
    assert found[ids_of(decided)] == (pytest.approx(0.02, abs=0.01), 1)
    assert found[ids_of(others[0])][0] > 0.9
    assert found[ids_of(others[0])][1] == pytest.approx(3, rel=0.5)


def test_it_labels_by_a_decision_without_any_vote(cats: Campaign):
    comparison = make.comparison(cats)
    say(comparison, make.person(), 1, purpose=Purpose.ADJUDICATION)
    assert votes.soft_labels(cats) == {ids_of(comparison): (0.0, 1.0)}


def test_it_takes_an_empty_campaign(cats: Campaign):
    found = votes.collect(cats)
    assert found.pairs == []
    assert votes.soft_labels(cats) == {}
    assert len(votes.repeats(cats).first) == 0
    assert votes.too_fast(found, {}).shape == (0,)
    assert votes.style_differences(found, {}).shape == (0, len(bias.STYLE))
    played, versions = votes.matches(cats, found)
    assert versions == []
    assert ratings.leaderboard(played, 0, 0) == []
    assert suspects.find_suspects(found.votes, reliability.fit(found.votes)) == []


def test_it_matches_repeats_with_what_was_said_first(cats: Campaign):
    steady, fickle = make.person(), make.person()
    for annotator, again in ((steady, 0), (fickle, 1)):
        comparison = make.comparison(cats)
        say(comparison, annotator, 0, left=0)
        say(comparison, annotator, again, left=1, purpose=Purpose.REPEAT)
    say(make.comparison(cats), steady, 0, purpose=Purpose.REPEAT)  # its first judgment was taken back
    found = votes.repeats(cats)
    share = bias.self_consistency(found.first, found.again)
    assert (share.k, share.n) == (1, 2)
    assert found.annotator.tolist() == [steady.pk, fickle.pk]
    assert len(votes.collect(cats).votes.item) == 2  # a repeat is no second opinion


def test_it_flags_votes_that_were_faster_than_skimming(cats: Campaign):
    asked = make.prompt(cats)
    for text in ("word " * 300, "other " * 300):
        responses.add_response(asked, text)
    [comparison] = pairs.make_comparisons(asked)
    for shown_ms in (59_000, 61_000, None):
        say(comparison, make.person(), shown_ms=shown_ms)
    found = votes.collect(cats)
    assert votes.too_fast(found, votes.styles(cats)).tolist() == [True, False, False]


def test_it_computes_style_of_first_against_second(cats: Campaign):
    comparison = make.comparison(cats, "# One\n- two\n- **three**", "Four")
    say(comparison, make.person(), left=1)
    found = votes.collect(cats)
    assert votes.style_differences(found, votes.styles(cats)).tolist() == [[1, 1, 1, 1]]


def test_it_pairs_versions(cats: Campaign):
    adapter = Adapter.objects.create(name="adapter-1-abc", sha256="0" * 64)
    comparison, unknown = make.comparison(cats), make.comparison(cats)
    first, second = comparison.responses.order_by("pk")
    type(first).objects.filter(pk=first.pk).update(adapter=adapter)
    type(second).objects.filter(pk=second.pk).update(generator="outsider")
    say(comparison, make.person(), 1, left=1)
    say(unknown, make.person(), 1)
    found = votes.collect(cats)
    played, versions = votes.matches(cats, found)
    assert versions == [(adapter.pk, ""), (None, "outsider")]
    assert (played.first.tolist(), played.second.tolist()) == ([0], [1])
    assert (played.value.tolist(), played.side.tolist(), played.cluster.tolist()) == (
        [-2],
        [-1],
        [comparison.prompt_id],
    )
    assert ratings.leaderboard(played, 2, baseline=0)[0].version == 1


def test_it_asks_as_often_for_many_as_for_few(cats: Campaign, django_assert_num_queries):
    def all_of_it() -> None:
        found = votes.collect(cats)  # 2
        votes.repeats(cats)  # 2
        votes.matches(cats, found)  # 1
        votes.styles(cats)  # 1

    people = [make.person() for _ in range(3)]
    for _ in range(12):
        comparison = make.comparison(cats)
        for person in people:
            say(comparison, person)
    with django_assert_num_queries(6):
        all_of_it()
