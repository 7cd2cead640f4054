"""Counts are fresh where a page is opened, a few seconds old where a vote is answered, and never counted twice at once."""

import pytest
from django.core.cache import cache

from labeling import progress
from tests.labeling import make

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _empty_cache():
    cache.clear()


def test_it_counts_what_is_wanted_and_said():
    campaign = make.campaign(overlap=2)
    anna = make.person("anna", campaign)
    make.judge(make.lease(make.comparison(campaign), anna))
    make.judge(make.lease(make.comparison(campaign), anna), "skip")
    counts = progress.of_campaign(campaign, anna)
    assert (counts.n_comparisons, counts.n_judgments, counts.n_wanted, counts.n_mine) == (2, 1, 4, 1)
    assert counts.percent == 25


def test_it_answers_a_vote_without_counting_everything_again(django_assert_num_queries):
    campaign = make.campaign()
    anna, ben = make.person("anna", campaign), make.person("ben", campaign)
    progress.lately(campaign, anna)
    make.judge(make.lease(make.comparison(campaign), anna))
    with django_assert_num_queries(0):
        assert progress.lately(campaign, anna).n_judgments == 0
    with django_assert_num_queries(1):  # his own only: the totals are everybody's
        progress.lately(campaign, ben)
    assert progress.of_campaign(campaign, anna).n_judgments == 1


def test_it_lets_one_count_and_the_others_take_what_is_there():
    asked = []

    def count(value: int) -> int:
        asked.append(value)
        if value == 2:  # somebody else asks while this counts
            assert progress._kept("key", lambda: count(3)) == 1
        return value

    assert progress._kept("key", lambda: count(1)) == 1
    value, _due = cache.get("key")
    cache.set("key", (value, 0.0))  # too old
    assert progress._kept("key", lambda: count(2)) == 2
    assert asked == [1, 2]
