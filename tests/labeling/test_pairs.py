import pytest

from labeling import pairs, responses
from labeling.models import Comparison
from tests.labeling import make

pytestmark = pytest.mark.django_db
TEXTS = ["One fish.", "Two birds fly.", "Three red cats.", "Four dogs bark loudly.", "Five.", "Six!"]


def _candidates(campaign, n=4):
    prompt = make.prompt(campaign)
    for text in TEXTS[:n]:
        responses.add_response(prompt, text)
    return prompt


def _members(comparison):
    return {item.response_id for item in comparison.items.all()}


def test_it_makes_all_six_pairs_of_four_candidates_and_shows_all_four_in_the_first_two():
    prompt = _candidates(make.campaign())
    made = pairs.make_comparisons(prompt)
    assert len(made) == 6
    assert len({comparison.content_key for comparison in made}) == 6
    assert _members(made[0]) | _members(made[1]) == {response.pk for response in prompt.responses.all()}
    assert [list(c.items.values_list("index", flat=True)) for c in made] == [[0, 1]] * 6


def test_it_puts_first_pairs_of_all_prompts_before_second_ones():
    campaign = make.campaign()
    for _ in range(5):
        pairs.make_comparisons(_candidates(campaign))
    ordered = list(campaign.comparisons.order_by("sort_key", "id").values_list("prompt_id", flat=True))
    rounds = [ordered[i : i + 5] for i in range(0, 30, 5)]
    assert all(len(set(prompts)) == 5 for prompts in rounds)


def test_it_repeats_the_same_order_for_the_same_seed():
    prompt = _candidates(make.campaign())
    first = [(c.content_key, c.sort_key) for c in pairs.make_comparisons(prompt, seed=7)]
    prompt.comparisons.all().delete()
    assert [(c.content_key, c.sort_key) for c in pairs.make_comparisons(prompt, seed=7)] == first
    prompt.comparisons.all().delete()
    assert [(c.content_key, c.sort_key) for c in pairs.make_comparisons(prompt, seed=8)] != first


def test_it_makes_nothing_twice_and_goes_on_when_candidates_arrive():
    prompt = _candidates(make.campaign(), 2)
    assert len(pairs.make_comparisons(prompt)) == 1
    assert pairs.make_comparisons(prompt) == []
    responses.add_response(prompt, TEXTS[2])
    assert len(pairs.make_comparisons(prompt)) == 2
    assert pairs.make_comparisons(prompt) == []


def test_it_pairs_every_further_round_of_candidates():
    prompt = _candidates(make.campaign())
    assert len(pairs.make_comparisons(prompt)) == pairs.MAX_PAIRS
    old = {response.pk for response in prompt.responses.all()}
    for text in TEXTS[4:]:
        responses.add_response(prompt, text)
    made = pairs.make_comparisons(prompt)
    assert len(made) == pairs.MAX_PAIRS  # of the nine that show a new one
    assert all(_members(comparison) - old for comparison in made)
    assert pairs.make_comparisons(prompt) == []


def test_it_does_not_pair_near_identical_responses_nor_those_from_elsewhere():
    prompt = _candidates(make.campaign(), 1)
    responses.add_response(prompt, "one FISH!")
    responses.add_response(prompt, "Somebody else wrote this.", source="import")
    assert pairs.make_comparisons(prompt) == []


def test_it_offers_what_is_open_to_a_person_only():
    campaign = make.campaign()
    anna, ben = make.person("anna", campaign), make.person("ben", campaign)
    judged, skipped, leased = (make.comparison(campaign) for _ in range(3))
    for number, comparison in enumerate((judged, skipped, leased)):
        Comparison.objects.filter(pk=comparison.pk).update(sort_key=number)
    make.judge(make.lease(judged, anna))
    make.judge(make.lease(skipped, anna), "skip")
    assert list(pairs.open_comparisons(campaign, anna, make.NOW)) == [leased]
    make.lease(leased, anna)
    assert list(pairs.open_comparisons(campaign, anna, make.NOW)) == []
    assert list(pairs.open_comparisons(campaign, ben, make.NOW)) == [skipped]


def test_it_asks_for_the_same_number_of_queries_whatever_the_campaign_holds(django_assert_max_num_queries):
    campaign = make.campaign()
    anna = make.person("anna", campaign)
    for _ in range(12):
        make.comparison(campaign)
    with django_assert_max_num_queries(1):
        assert len(pairs.next_comparisons(campaign, anna, make.NOW, 2)) == 2
