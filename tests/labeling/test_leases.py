import contextlib
import itertools
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Count, Q
from django.test.utils import CaptureQueriesContext

from labeling import judgments, leases
from labeling.errors import LeaseLost
from labeling.models import Campaign, Lease
from tests.labeling import make


@pytest.mark.django_db
def test_it_claims_two_and_returns_the_same_two_after_a_reload():
    campaign = make.campaign()
    anna = make.person("anna", campaign)
    for _ in range(5):
        make.comparison(campaign)
    claimed = leases.claim(campaign, anna, make.NOW)
    again = leases.claim(campaign, anna, make.later(30))
    assert len(claimed) == 2
    assert again == claimed
    assert [lease.order for lease in again] == [lease.order for lease in claimed]
    assert Lease.objects.count() == 2


@pytest.mark.django_db
def test_it_gives_one_pair_to_as_many_people_as_judgments_are_wanted():
    campaign = make.campaign(overlap=2)
    comparison = make.comparison(campaign)
    people = [make.person("", campaign) for _ in range(3)]
    assert [len(leases.claim(campaign, person, make.NOW)) for person in people] == [1, 1, 0]
    make.judge(Lease.objects.get(annotator=people[0]))
    assert leases.claim(campaign, people[2], make.NOW) == []
    comparison.refresh_from_db()
    assert (comparison.n_judgments, comparison.is_open) == (1, True)


@pytest.mark.django_db
def test_it_gives_a_pair_on_when_its_lease_ran_out_or_was_released():
    campaign = make.campaign(lease_seconds=60)
    comparison = make.comparison(campaign)
    anna, ben = make.person("anna", campaign), make.person("ben", campaign)
    lease = make.lease(comparison, anna)
    assert leases.claim(campaign, ben, make.later(59)) == []
    assert make.lease(comparison, ben, make.later(61)).annotator == ben
    leases.release(Lease.objects.get(annotator=ben), make.later(62))
    assert make.lease(comparison, anna, make.later(63)) == lease


@pytest.mark.django_db
def test_it_keeps_the_order_when_a_lease_is_revived():
    campaign = make.campaign()
    comparison = make.comparison(campaign)
    anna = make.person("anna", campaign)
    orders = set()
    for minute in range(10):
        lease = make.lease(comparison, anna, make.later(60 * minute))
        orders.add(tuple(lease.order))
        leases.release(lease, make.later(60 * minute + 1))
    assert len(orders) == 1


@pytest.mark.django_db
def test_it_shows_both_orders_about_equally_often_and_records_them():
    campaign = make.campaign()
    anna = make.person("anna", campaign)
    for _ in range(64):
        make.comparison(campaign)
    claimed = leases.claim(campaign, anna, make.NOW, n=64)
    n_swapped = sum(lease.order[0] > lease.order[1] for lease in claimed)
    assert 10 <= n_swapped <= 54  # a fair coin leaves this once in 10⁸ times
    assert all(set(lease.order) == {r.pk for r in lease.comparison.responses.all()} for lease in claimed)


@pytest.mark.django_db
def test_it_renews_while_there_is_room():
    campaign = make.campaign(lease_seconds=60)
    comparison = make.comparison(campaign)
    anna, ben = make.person("anna", campaign), make.person("ben", campaign)
    lease = make.lease(comparison, anna)
    assert leases.renew(lease, make.later(50)).expires_at == make.later(110)
    assert leases.renew(lease, make.later(500)).expires_at == make.later(560)  # it ran out, but nobody wanted it
    make.lease(comparison, ben, make.later(600))
    with pytest.raises(LeaseLost):
        leases.renew(lease, make.later(601))


@pytest.mark.django_db
def test_it_does_not_renew_what_was_judged():
    campaign = make.campaign(overlap=2)
    lease = make.lease(make.comparison(campaign), make.person("anna", campaign))
    make.judge(lease)
    with pytest.raises(LeaseLost):
        leases.renew(lease, make.later(1))


@pytest.mark.django_db
@pytest.mark.parametrize("status", [Campaign.Status.PAUSED, Campaign.Status.CLOSED])
def test_it_claims_nothing_in_a_campaign_that_is_not_active(status):
    campaign = make.campaign(status=status)
    make.comparison(campaign)
    assert leases.claim(campaign, make.person("anna", campaign), make.NOW) == []


@pytest.mark.django_db
def test_it_needs_as_many_queries_for_many_pairs_as_for_few():
    counts = []
    for size in (3, 30):
        campaign = make.campaign(f"size-{size}")
        for _ in range(size):
            make.comparison(campaign)
        anna = make.person("", campaign)
        with CaptureQueriesContext(connection) as counted:
            leases.claim(campaign, anna, make.NOW)
        counts.append(len(counted))
    assert counts[0] == counts[1] <= 12


class Clock:
    """Every look at it is a second later, for whichever thread: leases run out while others are at work."""

    def __init__(self) -> None:
        self._seconds = itertools.count()

    def now(self, skew: float = 0) -> datetime:
        return make.later(next(self._seconds) + skew)


class Killed(Exception):
    """What the database sees of a process that dies in a transaction: it never commits."""


def _use_the_screen(campaign: Campaign, user: User, seed: int, clock: Clock, *, is_fickle: bool) -> None:
    """Labels until nothing is offered; a fickle person also skips, releases, dawdles, walks away and is killed, and is
    served by a machine whose clock is wrong by some seconds.
    """
    chance = random.Random(seed)
    skew = chance.uniform(-5, 5) if is_fickle else 0
    try:
        while claimed := leases.claim(campaign, user, clock.now(skew)):
            lease, what = claimed[0], chance.random() if is_fickle else 1.0
            if what < 0.05:
                return  # walks away from live leases
            if what < 0.15:
                leases.release(lease, clock.now(skew))
            elif what < 0.2:
                make.judge(lease, "skip", clock.now(skew))
            elif what < 0.3:
                with contextlib.suppress(Killed), transaction.atomic():
                    make.judge(lease, at=clock.now(skew))
                    raise Killed
            else:
                for _ in range(70 if what < 0.45 else 0):
                    clock.now()  # dawdles until the lease has run out
                judgment = make.judge(lease, at=clock.now(skew))
                if is_fickle and chance.random() < 0.1:
                    judgments.undo(judgment, clock.now(skew))
    finally:
        connection.close()


@pytest.mark.django_db(transaction=True)
def test_it_collects_exactly_k_judgments_from_racing_people():
    campaign = make.campaign(overlap=3, lease_seconds=60)
    for _ in range(12):
        make.comparison(campaign)
    people = [make.person("", campaign) for _ in range(32)]
    clock = Clock()
    for is_fickle in (True, False):
        with ThreadPoolExecutor(len(people)) as threads:
            racing = [
                threads.submit(_use_the_screen, campaign, user, seed, clock, is_fickle=is_fickle)
                for seed, user in enumerate(people)
            ]
        for thread in racing:
            thread.result()
        counts = dict(judgments.counting().values_list("comparison").annotate(n=Count("pk")))
        assert max(counts.values()) <= 3
        for _ in range(90):  # what was left behind runs out
            clock.now()
    assert counts == dict.fromkeys(campaign.comparisons.values_list("pk", flat=True), 3)
    assert not campaign.comparisons.filter(Q(is_open=True) | ~Q(n_judgments=3)).exists()


@pytest.mark.django_db(transaction=True)
def test_it_gives_two_tabs_of_one_person_the_same_pairs():
    campaign = make.campaign(overlap=3)
    for _ in range(6):
        make.comparison(campaign)
    anna = make.person("anna", campaign)

    def claim(_: int) -> set[uuid.UUID]:
        try:
            return {lease.pk for lease in leases.claim(campaign, anna, make.NOW)}
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as tabs:
        claimed = list(tabs.map(claim, range(6)))
    assert all(ids == claimed[0] for ids in claimed)
    assert Lease.objects.count() == 2
