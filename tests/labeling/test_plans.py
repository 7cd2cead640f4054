import threading
from datetime import timedelta

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from labeling import leases, pairs, plans, responses, tasks
from labeling.models import Campaign, Comparison, Judgment, Prompt, Response
from serving.locks import only_one
from serving.models import Adapter
from tests.labeling import make

pytestmark = pytest.mark.django_db
ACTIVE = ["diversity", "different", "uncertainty", "d_optimal"]
SUBJECTS = ["the sea and its ships", "growing tomatoes in pots", "sorting a list in Python", "the tax on income"]


def _response(prompt, text: str, **fields) -> Response:
    added = responses.add_response(prompt, text, **fields)
    assert added is not None
    return added


def _rng(seed=0):
    return np.random.default_rng(seed)


def _campaign(strategy, n=24, **fields):
    """`n` pairs on four subjects, of a short plain answer and a longer one."""
    campaign = make.campaign(strategy=strategy, random_share=fields.pop("random_share", 0.2), **fields)
    for i in range(n):
        prompt = make.prompt(campaign, f"Tell me, for the {i}th time, something about {SUBJECTS[i % 4]}.")
        responses.add_response(prompt, f"No {i}.")
        responses.add_response(
            prompt, f"- First, {SUBJECTS[i % 4]} takes {i} days.\n- Then it takes patience and luck."
        )
        pairs.make_comparisons(prompt)
    return campaign


def _order(campaign):
    return list(campaign.comparisons.filter(is_open=True).order_by("sort_key", "id"))


def _ids(campaign):
    return [comparison.pk for comparison in _order(campaign)]


@pytest.mark.parametrize("strategy", ACTIVE)
def test_it_places_every_open_pair_and_notes_arm_and_propensity(strategy):
    campaign = _campaign(strategy)
    assert plans.plan(campaign, make.NOW, _rng()) == 24
    for place, comparison in enumerate(_order(campaign)):
        assert comparison.sort_key == place
        by_chance = 0.2 / (24 - place)
        assert comparison.propensity == pytest.approx(by_chance) or comparison.propensity == pytest.approx(
            by_chance + 0.8
        )
        if comparison.arm == "active":
            assert comparison.propensity >= 0.8
    assert {comparison.arm for comparison in _order(campaign)} == {"active", "random"}


@pytest.mark.parametrize("strategy", ACTIVE)
def test_it_follows_the_strategy_in_the_active_arm(strategy):
    """What is written is what the strategy would take after what was really taken before it."""
    campaign = _campaign(strategy)
    pool = plans.pools.read_open(campaign, make.NOW, plans.POOL)
    choices = plans.strategy_of(campaign, pool)
    plans.plan(campaign, make.NOW, _rng(5))
    place_of = {item.pk: index for index, item in enumerate(pool)}
    best = next(choices)
    for comparison in _order(campaign)[:-1]:
        if comparison.arm == "active":
            assert place_of[comparison.pk] == best
        best = choices.send(place_of[comparison.pk])


def test_it_shows_every_subject_before_it_repeats_one():
    campaign = _campaign("diversity", random_share=0.0)
    plans.plan(campaign, make.NOW, _rng())
    subjects = [int(c.prompt.excerpt.split("the ")[1].split("th")[0]) % 4 for c in _order(campaign)[:4]]
    assert sorted(subjects) == [0, 1, 2, 3]


def test_it_leaves_judged_and_leased_pairs_in_their_places():
    campaign = _campaign("uncertainty", overlap=2)
    plans.plan(campaign, make.NOW, _rng())
    anna, ben = make.person("anna", campaign), make.person("ben", campaign)
    make.judge(leases.claim(campaign, anna, make.NOW, n=1)[0])
    leases.claim(campaign, ben, make.NOW, n=2)
    before = {c.pk: (c.sort_key, c.arm, c.propensity) for c in _order(campaign)[:2]}
    plans.plan(campaign, make.later(1), _rng(1))
    after = {c.pk: (c.sort_key, c.arm, c.propensity) for c in _order(campaign)}
    assert {pk: after[pk] for pk in before} == before
    assert _ids(campaign)[:2] == list(before)
    assert len({key for key, _, _ in after.values()}) == 24
    much_later = make.later(campaign.lease_seconds + 1)
    assert plans.plan(campaign, much_later, _rng(2)) == 23  # ben holds his no more


def test_it_does_not_touch_what_was_taken_while_it_computed():
    campaign = _campaign("uncertainty")
    ben = make.person("ben", campaign)
    drawn = plans._draw(campaign, plans.pools.read_open(campaign, make.NOW, 100), 0, _rng())
    taken = leases.claim(campaign, ben, make.NOW, n=2)
    keys = {lease.comparison_id: lease.comparison.sort_key for lease in taken}
    assert plans._write(campaign, drawn, make.NOW) == 22
    assert {pk: Comparison.objects.get(pk=pk).sort_key for pk in keys} == keys


def test_it_keeps_creation_order_where_the_strategy_is_random():
    campaign = _campaign("random")
    before = [(c.pk, c.sort_key, c.arm) for c in _order(campaign)]
    assert not plans.waiting(make.NOW).exists()
    assert plans.plan(campaign, make.NOW, _rng()) == 0
    assert [(c.pk, c.sort_key, c.arm) for c in _order(campaign)] == before
    assert {arm for _, _, arm in before} == {"random"}


def test_it_goes_back_to_random_order():
    campaign = _campaign("d_optimal")
    plans.plan(campaign, make.NOW, _rng())
    Campaign.objects.update(strategy="random")
    campaign.refresh_from_db()
    assert list(plans.waiting(make.NOW)) == [campaign]
    plans.plan(campaign, make.NOW, _rng())
    assert not plans.waiting(make.NOW).exists()
    for comparison in _order(campaign):
        assert (comparison.arm, comparison.propensity) == ("random", None)
        assert comparison.sort_key >= pairs.PLANNED


def test_it_plans_only_the_next_places_and_no_more_of_the_pool(monkeypatch):
    campaign = _campaign("uncertainty")
    monkeypatch.setattr(plans, "HORIZON", 5)
    monkeypatch.setattr(plans, "POOL", 10)
    coming = set(_ids(campaign)[:10])
    assert plans.plan(campaign, make.NOW, _rng()) == 5
    ordered = _order(campaign)
    assert {comparison.pk for comparison in ordered[:5]} < coming
    assert all(comparison.propensity is None and comparison.arm == "random" for comparison in ordered[5:])
    plans.plan(campaign, make.later(1), _rng(3))
    assert sum(comparison.sort_key < pairs.PLANNED for comparison in _order(campaign)) == 5


def test_it_asks_the_same_number_of_queries_whatever_the_plan_holds():
    def n_queries(slug, n):
        campaign = _campaign("d_optimal", n, slug=slug)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            plans.plan(campaign, make.NOW, _rng())
        return len(queries)

    assert n_queries("few", 4) == n_queries("many", 20)


def test_it_is_asked_for_once_when_comparisons_are_added(django_capture_on_commit_callbacks):
    campaign = make.campaign(strategy="diversity")
    with django_capture_on_commit_callbacks() as nudges:
        for _ in range(3):
            make.comparison(campaign)
    assert len(nudges) == 1
    campaign.refresh_from_db()
    assert campaign.plan_wanted_at is not None
    plans.plan(campaign, make.NOW, _rng())
    campaign.refresh_from_db()
    assert (campaign.plan_wanted_at, campaign.planned_at) == (None, make.NOW)
    with django_capture_on_commit_callbacks() as nudges:
        make.comparison(campaign)
    assert len(nudges) == 1


def test_it_asks_for_no_plan_in_random_order_or_for_what_is_closed(django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks() as nudges:
        make.comparison(make.campaign())
        closed = make.prompt(make.campaign("closed", strategy="diversity"))
        found = [_response(closed, text) for text in ("One.", "Two!")]
        pairs.add_comparisons(closed.campaign, [found], Comparison.Source.CHAT, is_open=False)
    assert nudges == []


def test_it_is_due_again_after_a_while_if_people_judged_since():
    campaign = _campaign("uncertainty")
    Campaign.objects.update(status="paused")
    assert not plans.waiting(make.NOW).exists()
    Campaign.objects.update(status="active")
    assert list(plans.waiting(make.NOW)) == [campaign]
    plans.plan(campaign, make.NOW, _rng())
    later = make.NOW + plans.REPLAN_AFTER + timedelta(seconds=1)
    assert not plans.waiting(later).exists()
    make.judge(leases.claim(campaign, make.person("anna", campaign), make.later(10), n=1)[0], at=make.later(20))
    assert not plans.waiting(make.later(30)).exists()
    assert list(plans.waiting(later)) == [campaign]


def test_it_prefers_what_the_newest_model_is_least_certain_of():
    campaign = _campaign("uncertainty", random_share=0.0)
    adapter = Adapter.objects.create(name="adapter-1-abcdef", sha256="a" * 64, base_sha256="b" * 64)
    certain = {comparison.pk: number for number, comparison in enumerate(_order(campaign))}
    for comparison in _order(campaign):
        first, second = comparison.responses.order_by("pk")
        first.reward, second.reward = 0.2 * certain[comparison.pk], 0.0
        first.rewarded_by = second.rewarded_by = adapter
        first.save()
        second.save()
    shuffled = _ids(campaign)
    Comparison.objects.update(sort_key=1)
    plans.plan(campaign, make.NOW, _rng())
    assert _ids(campaign) == shuffled


def _list_side(lease):
    """Where the answer stands that is a list."""
    texts = {response.pk: response.text for response in lease.comparison.responses.all()}
    return [texts[id].startswith("-") for id in lease.order].index(True)


def test_it_learns_from_what_people_chose_where_no_model_has_scored():
    """Everybody prefers lists: of two open pairs, the one of a list and a plain answer is the surer one."""
    campaign = _campaign("uncertainty", 40, random_share=0.0)
    anna = make.person("anna", campaign)
    for lease in leases.claim(campaign, anna, make.NOW, n=30):
        side = _list_side(lease)
        make.judge(lease, side=side)
    prompt = make.prompt(campaign, "And which of these two lists?")
    for text in ("- One reason is the weather in May.\n- Two.", "- A reason is the price of coal.\n- Three."):
        responses.add_response(prompt, text)
    [alike] = pairs.make_comparisons(prompt)
    plans.plan(campaign, make.NOW, _rng())
    assert _ids(campaign)[0] == alike.pk


def test_it_puts_bad_answers_last_however_different_they_are():
    campaign = _campaign("different", random_share=0.0)
    suspect = _order(campaign)[0].responses.first()
    suspect.warnings = ["error_banner"]
    suspect.save()
    plans.plan(campaign, make.NOW, _rng())
    assert suspect.comparisons.get().pk == _ids(campaign)[-1]


@pytest.mark.parametrize("strategy", ACTIVE)
def test_it_puts_near_identical_answers_last(strategy):
    campaign = _campaign(strategy, random_share=0.0)
    prompt = make.prompt(campaign, "Something else altogether: what is a quark?")
    texts = ["A quark is one of the smallest parts of matter.", "A QUARK is one of the smallest parts of matter!"]
    pair = [_response(prompt, text, source="import") for text in texts]
    [alike] = pairs.add_comparisons(campaign, [pair], Comparison.Source.IMPORT)
    plans.plan(campaign, make.NOW, _rng())
    assert _ids(campaign)[-1] == alike.pk


@pytest.mark.parametrize("strategy", ACTIVE)
def test_it_plans_rankings_of_four(strategy):
    campaign = make.campaign(strategy=strategy, group_size=4)
    for _ in range(3):
        prompt = make.prompt(campaign)
        for text in ("One fish.", "Two birds fly.", "Three red cats.", "Four dogs bark loudly."):
            responses.add_response(prompt, text)
        pairs.make_comparisons(prompt)
    assert plans.plan(campaign, make.NOW, _rng()) == 3


def test_it_plans_an_empty_campaign():
    assert plans.plan(make.campaign(strategy="d_optimal"), make.NOW, _rng()) == 0
    assert not Prompt.objects.exists()
    assert not Judgment.objects.exists()


def test_it_plans_what_waits_and_one_at_a_time_on_a_host():
    _campaign("uncertainty")
    with only_one("plans") as is_mine:
        assert is_mine
        thread = threading.Thread(target=tasks.plan_campaigns)
        thread.start()
        thread.join()
    assert Comparison.objects.filter(sort_key__lt=pairs.PLANNED).count() == 0
    tasks.plan_campaigns()
    assert Comparison.objects.filter(sort_key__lt=pairs.PLANNED).count() == 24
