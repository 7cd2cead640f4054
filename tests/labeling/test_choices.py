"""What a campaign offers is taken, and nothing else; every refusal says what would be right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling import choices
from labeling.errors import Invalid
from labeling.models import Campaign

TRUTH = {"key": "truth", "label": "Truthful", "scale": "seven"}
RATED = {"key": "style", "label": "Style", "scale": "rating"}


def campaign(**fields) -> Campaign:
    return Campaign(**{"scale": "seven", "criteria": [TRUTH, RATED], **fields})


def preference(**fields) -> choices.Choice:
    return choices.Choice(**{"verdict": "preference", "order": [4, 7], "chosen": 7, "strength": 2, **fields})


def group(ranks: dict[int, int], **fields) -> choices.Choice:
    return choices.Choice(**{"verdict": "preference", "order": [4, 7, 9], "ranks": ranks, **fields})


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, preference(criteria={"truth": -3, "style": {"4": 1, "7": 5}})),
        ({}, preference(criteria={"style": {"7": 3}})),
        ({"reason_tags": ["clearer"]}, preference(tags=["clearer"], flags=["unsafe", "private_data"])),
        ({"rationale": "optional"}, preference(reason="It is right.")),
        ({"rationale": "required"}, preference(strength=2)),
        ({"rationale": "required"}, preference(strength=3, reason="It is right.")),
        ({"allow_edit": True}, preference(edit="Better still")),
        ({"allow_edit": True}, group({4: 2, 7: 1, 9: 2}, edit="Better still")),
        ({}, choices.Choice("skip", [4, 7], skip_reason="language")),
        ({}, group({4: 1, 7: 2, 9: 2})),
        ({}, group({4: 1, 7: 1, 9: 3})),
        ({"allow_tie": False}, group({4: 3, 7: 1, 9: 2})),
    ],
)
def test_it_takes_what_the_campaign_offers(fields, choice):
    choices.check(campaign(**fields), choice)


@pytest.mark.parametrize(
    ("fields", "choice", "why"),
    [
        ({}, preference(criteria={"truth": 4}), "scale"),
        ({}, preference(criteria={"truth": True}), "scale"),
        ({}, preference(criteria={"style": 3}), "scale"),
        ({}, preference(criteria={"style": {"4": 6}}), "scale"),
        ({}, preference(criteria={"style": {"5": 3}}), "scale"),
        ({}, preference(criteria={"beauty": 1}), "no criterion"),
        ({}, preference(tags=["clearer"]), "tags"),
        ({}, preference(flags=["boring"]), "flags"),
        ({}, preference(reason="It is right."), "no reason"),
        ({"rationale": "required"}, preference(strength=3), "wants a reason"),
        ({"rationale": "required"}, preference(strength=3, reason=" \x00 "), "wants a reason"),
        ({"rationale": "required"}, choices.Choice("tie", [4, 7]), "wants a reason"),
        ({"rationale": "optional"}, preference(reason="x" * 5_001), "too long"),
        ({}, preference(edit="Better"), "does not offer editing"),
        ({"allow_edit": True}, choices.Choice("tie", [4, 7], edit="Better"), "prefer"),
        ({"allow_edit": True}, group({4: 1, 7: 1, 9: 2}, edit="Better"), "prefer"),
        ({"allow_edit": True}, preference(edit="\x00 "), "empty"),
        ({}, preference(skip_reason="language"), "skip"),
        ({}, choices.Choice("skip", [4, 7], skip_reason="bored"), "skip"),
        ({}, preference(ranks={4: 1, 7: 2}), "one of the two"),
        ({}, group({4: 1, 7: 2}), "every response"),
        ({}, group({4: 1, 7: 2, 8: 3}), "every response"),
        ({}, group({4: 1, 7: 2, 9: 4}), "from 1"),
        ({}, group({4: 1, 7: 1, 9: 1}), "tie"),
        ({}, group({4: 1, 7: 2, 9: 3}, strength=2), "neither"),
        ({"allow_tie": False}, group({4: 1, 7: 2, 9: 2}), "own"),
        ({}, choices.Choice("skip", [4, 7], ranks={4: 1, 7: 2}), "Only a preference"),
    ],
)
def test_it_refuses_what_the_campaign_does_not_offer(fields, choice, why):
    with pytest.raises(Invalid, match=why):
        choices.check(campaign(**fields), choice)


@given(st.dictionaries(st.sampled_from([4, 7, 9]), st.integers(1, 3), min_size=3))
def test_it_names_the_best_only_where_one_is_before_all_others(ranks):
    first = [response for response, rank in ranks.items() if rank == min(ranks.values())]
    assert group(ranks).best == (first[0] if len(first) == 1 else None)
    assert group(ranks).as_ranks == {str(response): rank for response, rank in ranks.items()}


@pytest.mark.parametrize(
    ("criteria", "why"),
    [
        ("truth", "list"),
        ([TRUTH] * 13, "at most 12"),
        ([TRUTH, TRUTH], "same key"),
        ([{"key": "truth", "label": "Truthful"}], "must have"),
        ([{**TRUTH, "color": "red"}], "must have"),
        ([{**TRUTH, "label": ""}], "1 to 200"),
        ([{**TRUTH, "label": 3}], "1 to 200"),
        ([{**TRUTH, "scale": "nine"}], "scale"),
        ([{**TRUTH, "key": "two words"}], "key"),
    ],
)
def test_it_refuses_criteria_that_cannot_be_asked(criteria, why):
    with pytest.raises(Invalid, match=why):
        choices.check_criteria(criteria)


def test_it_takes_criteria_of_every_scale():
    criteria = [{"key": scale, "label": scale, "scale": scale, "help": "How?"} for scale in choices.CRITERION_SCALES]
    assert choices.check_criteria(criteria) == criteria
