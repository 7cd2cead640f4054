"""What a snapshot makes of more than plain votes: edits, decisions, gold, surplus, people who cannot be believed."""

import json
import uuid

import pytest

from labeling import choices, gold, judgments, leases
from labeling.models import Comparison, Judgment, Purpose
from tests.training.rows import NOW, add_annotator, add_campaign, add_comparison, add_judged, add_prompt, judge
from training.lines import Pair, Sources, Written, to_pair_line
from training.snapshots import freeze
from training.split import is_heldout

pytestmark = pytest.mark.django_db


def lines(of) -> dict[str, dict]:
    """The snapshot's lines by pair."""
    folder = freeze(of).folder
    texts = [(folder / f"{name}.jsonl").read_text() for name in ("train", "heldout")]
    return {line["pair"]: line for line in map(json.loads, "".join(texts).splitlines())}


def ids(comparison: Comparison) -> list[int]:
    return sorted(item.response_id for item in comparison.items.all())


def pair(comparison: Comparison) -> str:
    return "-".join(map(str, ids(comparison)))


def training_prompt(campaign):
    while is_heldout((prompt := add_prompt(campaign)).sha256):
        pass
    return prompt


def test_it_learns_that_an_edit_beats_the_chosen_and_the_rejected():
    campaign = add_campaign(allow_edit=True, scale="three")
    add_judged(campaign, 4)
    comparison = add_comparison(training_prompt(campaign))
    chosen, rejected = ids(comparison)
    choice = choices.Choice("preference", [chosen, rejected], chosen=chosen, edit="Better than both by hand.")
    judgment = judgments.add(comparison, add_annotator(), uuid.uuid4(), choice, NOW)
    assert judgment.edit is not None
    found = {(line["chosen_id"], line["rejected_id"]) for line in lines(campaign).values()}
    assert {(judgment.edit_id, chosen), (judgment.edit_id, rejected), (chosen, rejected)} <= found
    assert "Better than both by hand." in {line["chosen"] for line in lines(campaign).values()}
    assert freeze(campaign).counts["edits"] == 1


def test_it_drops_an_edit_of_what_a_reviewer_decided_against():
    campaign = add_campaign(allow_edit=True)
    add_judged(campaign, 4)
    comparison = add_comparison(training_prompt(campaign))
    chosen, other = ids(comparison)
    choice = choices.Choice("preference", [chosen, other], chosen=chosen, strength=3, edit="Better by hand.")
    edit = judgments.add(comparison, add_annotator(), uuid.uuid4(), choice, NOW).edit
    assert edit is not None
    margins = {line["rejected_id"]: line["margin"] for line in lines(campaign).values() if line["chosen_id"] == edit.pk}
    assert margins == {chosen: 0, other: 0}  # how much better an edit is, nobody said
    lease = leases.decide(comparison, add_annotator(), NOW)
    decision = choices.Choice("preference", lease.order, chosen=other, strength=1)
    judgments.record(lease, lease.annotator, uuid.uuid4(), decision, NOW)
    assert edit.pk not in {line["chosen_id"] for line in lines(campaign).values()}


def test_it_takes_a_reviewers_decision_over_the_votes():
    campaign = add_campaign(overlap=2)
    add_judged(campaign, 4)
    comparison = add_comparison(training_prompt(campaign))
    for chosen in (0, 0, 1):
        judge(comparison, chosen=chosen)
    by_votes = lines(campaign)[pair(comparison)]
    assert by_votes["chosen_id"] == ids(comparison)[0]
    lease = leases.decide(comparison, add_annotator(), NOW)
    choice = choices.Choice("preference", lease.order, chosen=ids(comparison)[1], strength=1)
    judgments.record(lease, lease.annotator, uuid.uuid4(), choice, NOW)
    decided = lines(campaign)[pair(comparison)]
    assert decided["chosen_id"] == ids(comparison)[1]
    assert decided["label"] > 0.9
    assert Judgment.objects.get(purpose=Purpose.ADJUDICATION).pk in decided["judgments"]


def test_it_learns_nothing_from_what_measures_people():
    campaign = add_campaign()
    add_judged(campaign, 4)
    known, late = add_comparison(training_prompt(campaign)), add_comparison(training_prompt(campaign))
    judge(known)
    first, second = ids(known)
    gold.set_answer(known, {str(first): 1, str(second): 2})
    Judgment.objects.filter(pk=judge(late).pk).update(is_surplus=True)
    assert not {pair(known), pair(late)} & set(lines(campaign))


def test_it_believes_those_who_agree_with_others_more():
    campaign = add_campaign(overlap=5)
    reliable, clicker = [add_annotator() for _ in range(4)], add_annotator()
    prompts = [training_prompt(campaign) for _ in range(60)]
    contested = []
    for number, prompt in enumerate(prompts):
        comparison = add_comparison(prompt)
        right = number % 2  # the better one stands on either side: who always takes the left is no judge
        for annotator in reliable[: 1 if number < 6 else 4]:
            judge(comparison, annotator=annotator, chosen=right)
        judge(comparison, annotator=clicker, chosen=1 - right if number < 6 else (number // 2) % 2)
        contested += [(comparison, right)] if number < 6 else []
    found = lines(campaign)
    for comparison, right in contested:  # one against one by votes: a tie
        line = found[pair(comparison)]
        assert line["chosen_id"] == ids(comparison)[right]
        assert line["label"] > 0.7
        assert line["weight"] < 2


def test_it_leaves_a_tie_a_tie_whichever_side_people_lean_to():
    responses = {1: Written("a"), 2: Written("b")}
    sources = Sources(responses, soft={(1, 2): (0.44, 1.9)})
    tied = Pair("0" * 64, [], judgments=[7, 8], first=1, second=2, votes=[0.5, 0.5], strengths=[0, 0])
    line = to_pair_line(tied, sources)
    assert (line["label"], line["weight"], line["margin"]) == (0.5, 1.9, 0)
    assert (line["tie_share"], line["agreement"]) == (1, 1)
    split = Pair("0" * 64, [], judgments=[7, 8], first=1, second=2, votes=[0.5, 1.0], strengths=[0, 2])
    line = to_pair_line(split, Sources(responses, soft={(1, 2): (0.7, 1.9)}))
    assert (line["label"], line["tie_share"], line["agreement"]) == (0.7, 0.5, 0.5)
