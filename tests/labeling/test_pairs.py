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


@pytest.mark.parametrize(("size", "n"), [(3, 4), (4, 1)])
def test_it_groups_three_or_four_candidates_for_a_ranking(size, n):
    prompt = _candidates(make.campaign(group_size=size))
    made = pairs.make_comparisons(prompt)
    assert len(made) == n
    assert all(len(_members(comparison)) == size for comparison in made)
    assert len({comparison.content_key for comparison in made}) == n
    assert [list(c.items.values_list("index", flat=True)) for c in made] == [list(range(size))] * n
    assert pairs.make_comparisons(prompt) == []


@pytest.mark.parametrize("size", [3, 4])
def test_it_drops_groups_with_near_identical_responses(size):
    prompt = _candidates(make.campaign(group_size=size))
    copy = responses.add_response(prompt, "TWO birds fly!")
    original = prompt.responses.get(text=TEXTS[1])
    made = pairs.make_comparisons(prompt)
    assert made
    assert copy is not None
    assert not any({copy.pk, original.pk} <= _members(comparison) for comparison in made)
    assert any(copy.pk in _members(comparison) for comparison in made)


def test_it_groups_nothing_where_too_few_responses_differ():
    prompt = _candidates(make.campaign(group_size=3), 2)
    responses.add_response(prompt, "ONE fish")
    assert pairs.make_comparisons(prompt) == []


@pytest.mark.parametrize("size", [2, 3, 4])
def test_it_repeats_groups_and_their_order_for_the_same_seed(size):
    prompt = _candidates(make.campaign(group_size=size), 6)
    found = []
    for seed in (7, 7, 8):
        found.append([(c.content_key, c.sort_key) for c in pairs.make_comparisons(prompt, seed=seed)])
        prompt.comparisons.all().delete()
    assert len(found[0]) == pairs.MAX_PAIRS
    assert found[0] == found[1] != found[2]


def test_it_leaves_the_first_keys_to_plans():
    campaign = make.campaign()
    for _ in range(20):
        pairs.make_comparisons(_candidates(campaign))
    keys = set(campaign.comparisons.values_list("sort_key", flat=True))
    assert min(keys) >= pairs.PLANNED
    assert max(keys) < pairs.MAX_PAIRS * pairs.ROUND < 2**31
    assert len(keys) == 120


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
