"""How often people flip, from gold and from repeats; and the card's words for every figure."""

import uuid

import numpy as np
import pytest

from labeling import choices, gold, judgments, votes
from labeling.models import Purpose
from tests.training.rows import NOW, add_annotator, add_campaign, add_comparison, add_prompt, judge
from training import cards
from training.cards import Measured, flip_rate


def test_it_tells_no_flip_rate_from_a_few_answers():
    assert flip_rate(Measured(0, 0, 0, 0)) is None
    assert flip_rate(Measured(cards.MIN_MEASURED - 1, 5, 0, 0)) is None
    assert flip_rate(Measured(cards.MIN_MEASURED, 5, 0, 0)) == 0.25


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.25])
def test_it_finds_the_rate_that_flipped_answers_were_made_with(rate):
    chance = np.random.default_rng(7)
    n = 40_000
    wrong, first, again = (chance.random(n) < rate for _ in range(3))
    assert flip_rate(Measured(n, int(wrong.sum()), 0, 0)) == pytest.approx(rate, abs=0.01)
    assert flip_rate(Measured(0, 0, n, int((first != again).sum()))) == pytest.approx(rate, abs=0.01)
    assert flip_rate(Measured(n, int(wrong.sum()), n, int((first != again).sum()))) == pytest.approx(rate, abs=0.01)


@pytest.mark.parametrize("measured", [Measured(50, 50, 0, 0), Measured(0, 0, 50, 50)])
def test_it_stays_where_methods_can_divide(measured):
    assert flip_rate(measured) == cards.MAX_FLIP_RATE


@pytest.mark.django_db
def test_it_counts_wrong_gold_answers_and_changed_repeats():
    campaign, anna = add_campaign(scale="three"), add_annotator()
    for answer in (0, 0, 1, None):
        known = add_comparison(add_prompt(campaign))
        first, second = (item.response_id for item in known.items.order_by("index"))
        gold.set_answer(known, {str(first): 1, str(second): 2})
        wanted = None if answer is None else (first, second)[answer]
        choice = choices.Choice("tie" if wanted is None else "preference", [first, second], chosen=wanted)
        judgments.add(known, anna, uuid.uuid4(), choice, NOW, purpose=Purpose.GOLD)
    for again in (0, 1, 1):
        asked = add_comparison(add_prompt(campaign))
        judge(asked, annotator=anna, chosen=0, strength=None)
        order = [item.response_id for item in asked.items.order_by("index")]
        choice = choices.Choice("preference", order[::-1], chosen=order[again])
        judgments.add(asked, anna, uuid.uuid4(), choice, NOW, purpose=Purpose.REPEAT)
    measured = cards.measure(campaign, votes.collect(campaign))
    assert measured == Measured(n_gold=3, n_wrong=1, n_repeats=3, n_changed=2)


@pytest.mark.django_db
def test_it_has_words_for_every_reason():
    campaign = add_campaign()
    every = {*cards.count_not_learned(campaign, 0), "skip", "near_duplicate", "no_pair", "overruled_or_balanced"}
    assert every == set(cards.WHY_LEFT_OUT)
