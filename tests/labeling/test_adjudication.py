import uuid

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from labeling import adjudication, choices, judgments, pairs, responses
from labeling.models import Comparison, Judgment, Lease
from tests.labeling import make

pytestmark = pytest.mark.django_db
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def cats():
    return make.campaign("cats", overlap=2, rationale="optional", reason_tags=["clearer"], allow_edit=True)


@pytest.fixture
def rob(client, cats):
    user = make.person("rob", cats, role="reviewer")
    client.force_login(user)
    return user


def _dispute(campaign, names=("anna", "ben")):
    """A comparison on which people prefer different responses."""
    comparison = make.comparison(campaign)
    first, second = sorted(item.response_id for item in comparison.items.all())
    for number, name in enumerate(names):
        user = make.person(f"{name}-{comparison.pk}", campaign)
        lease = Lease.objects.create(
            comparison=comparison, annotator=user, order=[first, second],
            created_at=make.NOW, expires_at=make.later(60),
        )  # fmt: skip
        make.judge(lease, side=number % 2, strength=number % 3 + 1)
    comparison.refresh_from_db()
    return comparison


def _page(client, comparison):
    return client.get(reverse("adjudicate", args=["cats", comparison.pk]))


def _decide(client, comparison, **body):
    key = _page(client, comparison).context["key"]
    return client.post(reverse("adjudicate", args=["cats", comparison.pk]), {"key": key, **body}, follow=True)


def test_it_lists_what_people_disagree_on(client, cats, rob):
    disputed = _dispute(cats)
    make.judge(make.lease(make.comparison(cats), make.person("carl", cats)))
    page = client.get(reverse("campaign_disputes", args=["cats"]))
    assert [one.pk for one in page.context["page_obj"]] == [disputed.pk]
    everything = client.get(reverse("campaign_disputes", args=["cats"]), {"show": "all"})
    assert len(everything.context["page_obj"]) == 2
    assert client.get(reverse("campaign_disputes", args=["cats"]), {"show": "'; --"}).context["shown"] == "disputed"


def test_it_hides_names_until_the_pair_is_decided(client, cats, rob):
    comparison = _dispute(cats)
    page = _page(client, comparison).content.decode()
    assert "Person A" in page
    assert "anna" not in page
    _decide(client, comparison, choice="preference:0:2")
    page = _page(client, comparison).content.decode()
    assert "anna" in page
    assert "Person A" not in page


def test_it_shows_votes_in_the_order_in_which_the_reviewer_sees_them(client, cats, rob):
    comparison = _dispute(cats)
    context = _page(client, comparison).context
    order = [pk for _, pk, _ in context["responses"]]
    lower = order.index(min(order)) + 1
    assert [opinion.said for opinion in context["opinions"]] == [
        f"Response {lower} is slightly better",
        f"Response {3 - lower} is better",
    ]
    assert [pk for _, pk, _ in _page(client, comparison).context["responses"]] == order


def test_it_decides_for_good_and_goes_to_the_next_dispute(client, cats, rob):
    first, second = _dispute(cats), _dispute(cats)
    response = _decide(client, first, choice="preference:1:3", reason="It answers.")
    assert response.redirect_chain[-1][0] == reverse("adjudicate", args=["cats", second.pk])
    decision = Judgment.objects.get(purpose="adjudication")
    assert (decision.annotator, decision.reason, decision.strength) == (rob, "It answers.", 3)
    assert decision.ranks[str(decision.order[1])] == 1
    first.refresh_from_db()
    assert (first.is_disputed, first.n_judgments) == (False, 2)
    response = _decide(client, second, choice="tie")
    assert response.redirect_chain[-1][0] == reverse("campaign_disputes", args=["cats"])
    assert "That was the last dispute" in response.content.decode()


def test_it_decides_once_when_the_form_is_sent_twice(client, cats, rob):
    comparison = _dispute(cats)
    body = {"key": _page(client, comparison).context["key"], "choice": "tie"}
    for _ in range(2):
        assert client.post(reverse("adjudicate", args=["cats", comparison.pk]), body).status_code == 302
    assert Judgment.objects.filter(purpose="adjudication").count() == 1


def test_it_takes_a_decision_back(client, cats, rob):
    comparison = _dispute(cats)
    _decide(client, comparison, choice="tie")
    response = client.post(reverse("decision_undo", args=["cats", comparison.pk]), follow=True)
    assert "Decide again" in response.content.decode()
    comparison.refresh_from_db()
    assert comparison.is_disputed
    _decide(client, comparison, choice="preference:0:1")
    assert adjudication.decided().get().verdict == "preference"


def test_it_leaves_other_reviewers_decisions_alone(client, cats, rob):
    comparison = _dispute(cats)
    _decide(client, comparison, choice="tie")
    client.force_login(make.person("rita", cats, role="reviewer"))
    assert client.post(reverse("decision_undo", args=["cats", comparison.pk])).status_code == 404
    assert "Decide otherwise" in _page(client, comparison).content.decode()


def test_it_says_when_a_decision_can_no_longer_be_taken_back(client, cats, rob):
    comparison = _dispute(cats)
    _decide(client, comparison, choice="tie")
    Judgment.objects.filter(purpose="adjudication").update(frozen_at=make.NOW)
    response = client.post(reverse("decision_undo", args=["cats", comparison.pk]), follow=True)
    assert "can no longer be undone" in response.content.decode()
    assert adjudication.decided().exists()


@pytest.mark.parametrize(
    "body",
    [{}, {"choice": "preference"}, {"choice": "preference:7:1"}, {"choice": "preference:0:9"}, {"choice": "good"}],
)
def test_it_refuses_what_the_campaign_does_not_offer(client, cats, rob, body):
    comparison = _dispute(cats)
    key = _page(client, comparison).context["key"]
    response = client.post(reverse("adjudicate", args=["cats", comparison.pk]), {"key": key, **body})
    assert response.status_code == 422
    assert 'role="alert"' in response.content.decode()
    assert not adjudication.decided().exists()


def test_it_decides_on_groups_by_places(client, rob, cats):
    cats.group_size = 3
    cats.save()
    asked = make.prompt(cats)
    for text in ("A cat.", "It depends on you.", "Forty-two, as ever."):
        responses.add_response(asked, text)
    [comparison] = pairs.make_comparisons(asked)
    context = _page(client, comparison).context
    ids = [pk for _, pk, _ in context["responses"]]
    assert len(ids) == 3
    places = {f"rank-{pk}": rank for pk, rank in zip(ids, (2, 1, 2), strict=True)}
    _decide(client, comparison, choice="preference", **places)
    [decision] = adjudication.decided()
    assert decision.ranks == {str(pk): rank for pk, rank in zip(ids, (2, 1, 2), strict=True)}
    assert adjudication.describe(decision, ids) == "2 > 1 = 3"


def test_it_shows_reasons_tags_flags_and_edits_and_runs_none_of_it(client, cats, rob):
    comparison = make.comparison(cats)
    lease = make.lease(comparison, make.person("anna", cats))
    choice = choices.Choice(
        "preference", lease.order, chosen=lease.order[0], strength=2, reason=HOSTILE, tags=["clearer"],
        flags=["unsafe"], edit=f"Better. {HOSTILE}",
    )  # fmt: skip
    judgments.record(lease, lease.annotator, uuid.uuid4(), choice, make.NOW)
    page = _page(client, comparison).content.decode()
    assert HOSTILE not in page
    for part in ("alert(1)", "clearer", "unsafe", "Improved by hand"):
        assert part in page


def test_it_makes_a_pair_gold_and_an_ordinary_one_again(client, cats, rob):
    comparison = _dispute(cats)
    address = reverse("gold_set", args=["cats", comparison.pk])
    best = comparison.items.first().response_id
    client.post(address, {"best": best})
    comparison.refresh_from_db()
    assert comparison.gold_ranks[str(best)] == 1
    assert [one.pk for one in client.get(reverse("campaign_gold", args=["cats"])).context["page_obj"]] == [
        comparison.pk
    ]
    assert not client.get(reverse("campaign_disputes", args=["cats"])).context["page_obj"].object_list
    client.post(address, {"best": ""})
    comparison.refresh_from_db()
    assert comparison.gold_ranks is None


@pytest.mark.parametrize("best", ["999999", "x", "decision", "-1"])
def test_it_refuses_an_answer_that_is_none(client, cats, rob, best):
    comparison = _dispute(cats)
    response = client.post(reverse("gold_set", args=["cats", comparison.pk]), {"best": best}, follow=True)
    assert "notice-error" in response.content.decode()
    assert Comparison.objects.get(pk=comparison.pk).gold_ranks is None


def test_it_takes_the_decision_as_the_answer(client, cats, rob):
    comparison = _dispute(cats)
    _decide(client, comparison, choice="preference:1:2")
    client.post(reverse("gold_set", args=["cats", comparison.pk]), {"best": "decision"})
    assert Comparison.objects.get(pk=comparison.pk).gold_ranks == adjudication.decided().get().ranks


def test_it_keeps_chats_private(client, cats, rob):
    comparison = _dispute(cats)
    Comparison.objects.update(source="chat")
    assert _page(client, comparison).status_code == 404
    assert not client.get(reverse("campaign_disputes", args=["cats"]), {"show": "all"}).context["page_obj"].object_list


def test_it_warns_reviewers_who_judged_the_pair_themselves(client, cats, rob):
    comparison = make.comparison(cats)
    make.judge(make.lease(comparison, rob))
    assert "You are one of the people" in _page(client, comparison).content.decode()


def test_it_asks_as_many_queries_for_many_votes_as_for_few(client, cats, rob, django_assert_num_queries):
    comparison = _dispute(cats)
    _page(client, comparison)
    lists = [reverse("campaign_disputes", args=["cats"]), reverse("adjudicate", args=["cats", comparison.pk])]
    counts = []
    for address in lists:
        with CaptureQueriesContext(connection) as few:
            client.get(address)
        counts.append(len(few))
    for number in range(5):
        other = _dispute(cats, ("anna", "ben", "carl", "dora"))
        Judgment.objects.filter(comparison=other).update(comparison=comparison if number < 3 else other)
    for address, n in zip(lists, counts, strict=True):
        with django_assert_num_queries(n):
            client.get(address)


def test_it_names_more_people_than_there_are_letters():
    assert [adjudication.pseudonym(n) for n in (0, 25, 26, 27, 702)] == [
        "Person A", "Person Z", "Person AA", "Person AB", "Person AAA",
    ]  # fmt: skip


def test_it_says_a_criterions_answer_in_words():
    assert adjudication.in_words(2, [5, 6], [6, 5]) == "Response 2 is better"
    assert adjudication.in_words(-3, [5, 6], [6, 5]) == "Response 1 is much better"
    assert adjudication.in_words(0, [5, 6], [6, 5]) == "equal"
    assert adjudication.in_words({"5": 4, "6": 1}, [5, 6], [6, 5]) == "response 1: 1 of 5, response 2: 4 of 5"
