import uuid

import pytest
from django.urls import reverse

from labeling import choices, gold, judgments, pairs, responses
from labeling.models import Campaign, Comparison, Judgment, Lease, Purpose, Response
from tests.labeling import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def cats():
    return make.campaign("cats")


@pytest.fixture
def anna(client, cats):
    user = make.person("anna", cats)
    client.force_login(user)
    return user


def _post(client, name, body, *args):
    return client.post(reverse(name, args=args), body, content_type="application/json")


def _claim(client):
    return _post(client, "lease_claim", {"n": 2}, "cats").json()


def _judgment(lease, **fields):
    return {
        "lease": lease["id"],
        "client_key": str(uuid.uuid4()),
        "verdict": "preference",
        "order": lease["order"],
        "choice": lease["order"][0],
        "strength": 2,
        "shown_ms": 1234,
        **fields,
    }


def test_it_goes_round_once(client, cats, anna):
    for _ in range(2):
        make.comparison(cats, "**A** <script>alert(1)</script>", "B")
    claimed = _claim(client)
    assert claimed["state"] == "ready"
    assert claimed["progress"] == {"judgments": 0, "wanted": 2, "mine": 0, "writing": 2}
    lease = claimed["leases"][0]
    assert [response["id"] for response in lease["responses"]] == lease["order"]
    assert lease["messages"][0]["role"] == "user"
    bold = next(response for response in lease["responses"] if response["text"] != "B")
    assert "<strong>A</strong>" in bold["html"]
    assert "<script" not in bold["html"]

    judgment = _judgment(lease)
    assert _post(client, "judgment_create", judgment).status_code == 201
    assert _post(client, "judgment_create", judgment).status_code == 201
    [stored] = Judgment.objects.all()
    assert (stored.shown_ms, stored.ranks[str(lease["order"][0])]) == (1234, 1)

    after = _claim(client)
    assert [held["id"] for held in after["leases"]] == [claimed["leases"][1]["id"]]
    assert after["undoable"] == [judgment["client_key"]]
    undone = _post(client, "judgment_undo", {"client_key": judgment["client_key"]}).json()
    assert undone["lease"]["id"] == lease["id"]
    assert undone["lease"]["order"] == lease["order"]


def test_it_never_tells_who_wrote_a_response(client, cats, anna):
    make.comparison(cats)
    Response.objects.update(generator="secret-model", sampling={"temperature": 0.123}, source="engine")
    text = _post(client, "lease_claim", {}, "cats").content.decode()
    assert not any(word in text for word in ("secret-model", "0.123", "engine", "adapter", "sampling"))


def test_it_renews_and_releases(client, cats, anna):
    make.comparison(cats)
    lease = _claim(client)["leases"][0]
    assert _post(client, "lease_renew", {}, lease["id"]).json()["expires_at"] > lease["expires_at"]
    assert _post(client, "lease_release", {}, lease["id"]).status_code == 204


@pytest.mark.parametrize(("change", "field"), [
    ({"verdict": "retracted"}, "verdict"),
    ({"verdict": None}, "verdict"),
    ({"client_key": "abc"}, "client_key"),
    ({"order": "12"}, "order"),
    ({"strength": 9}, "strength"),
    ({"shown_ms": -1}, "shown_ms"),
    ({"reason": "x" * 6_000}, "reason"),
    ({"ranks": {"first": 1}}, "ranks"),
    ({"ranks": {"1": 9}}, "ranks"),
    ({"tags": "clearer"}, "tags"),
    ({"flags": ["rude"]}, "flags"),
    ({"criteria": [1]}, "criteria"),
    ({"skip_reason": "tired"}, "skip_reason"),
    ({"attention": {"panes": [-1]}}, "attention"),
    ({"attention": {"mouse": 1}}, "attention"),
    ({"reasn": "typo"}, "reasn"),
])  # fmt: skip
def test_it_says_which_field_is_wrong(client, cats, anna, change, field):
    make.comparison(cats)
    response = _post(client, "judgment_create", _judgment(_claim(client)["leases"][0], **change))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid"
    assert field in response.json()["error"]["fields"]


@pytest.mark.parametrize("body", ["{", "[]", '"text"', "null"])
def test_it_answers_malformed_bodies_with_400(client, anna, body):
    response = client.post(reverse("judgment_create"), body, content_type="application/json")
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_it_answers_refusals_with_their_code(client, cats, anna):
    make.comparison(cats)
    lease = _claim(client)["leases"][0]
    swapped = _post(client, "judgment_create", _judgment(lease, order=lease["order"][::-1]))
    assert (swapped.status_code, swapped.json()["error"]["code"]) == (400, "invalid")
    judgment = _judgment(lease)
    _post(client, "judgment_create", judgment)
    again = _post(client, "judgment_create", _judgment(lease))
    assert (again.status_code, again.json()["error"]["code"]) == (409, "already_judged")
    Judgment.objects.update(frozen_at=make.NOW)
    frozen = _post(client, "judgment_undo", {"client_key": judgment["client_key"]})
    assert (frozen.status_code, frozen.json()["error"]["code"]) == (409, "frozen")
    assert "training snapshot" in frozen.json()["error"]["message"]


def test_it_says_why_there_is_nothing_to_judge(client, cats, anna):
    assert _claim(client)["state"] == "empty"
    prompt = make.prompt(cats)
    assert _claim(client)["state"] == "writing"
    prompt.candidates_state = "done"
    prompt.save()
    comparison = make.comparison(cats)
    cats.prompts.update(candidates_state="done")
    ben = make.person("ben", cats)
    client.force_login(ben)
    lease = _claim(client)["leases"][0]
    client.force_login(anna)
    assert _claim(client)["state"] == "with_others"
    client.force_login(ben)
    _post(client, "judgment_create", _judgment(lease))
    assert _claim(client)["state"] == "finished"
    Campaign.objects.update(status="paused")
    assert _claim(client)["state"] == "paused"
    comparison.refresh_from_db()
    assert comparison.n_judgments == 1


def test_it_stores_all_that_was_said(client, cats, anna):
    Campaign.objects.update(
        rationale="optional",
        allow_edit=True,
        reason_tags=["clearer", "safer"],
        criteria=[{"key": "truth", "label": "Truthful", "scale": "seven"}],
    )
    make.comparison(cats)
    said = {
        "reason": "It is shorter.",
        "tags": ["clearer"],
        "criteria": {"truth": -2},
        "flags": ["private_data"],
        "edit": "A cat is a small animal that purrs.",
        "attention": {"panes": [1200, 900], "switches": 3, "scrolled": [1.0, 0.5]},
    }
    stored = _post(client, "judgment_create", _judgment(_claim(client)["leases"][0], **said))
    assert stored.status_code == 201
    assert stored.json()["surplus"] is False
    assert "practice" not in stored.json()
    judgment = Judgment.objects.get()
    assert judgment.edit is not None
    assert judgment.edit.text == said.pop("edit")
    assert {name: getattr(judgment, name) for name in said} == said


def test_it_ranks_three_responses_on_one_screen(client, cats, anna):
    Campaign.objects.update(group_size=3)
    cats.refresh_from_db()
    asked = make.prompt(cats)
    for text in ("One thing.", "Something else entirely.", "A third answer of its own."):
        responses.add_response(asked, text)
    pairs.make_comparisons(asked)
    lease = _claim(client)["leases"][0]
    ranks = {str(pk): rank for pk, rank in zip(lease["order"], (2, 1, 2), strict=True)}
    stored = _post(client, "judgment_create", _judgment(lease, choice=None, strength=None, ranks=ranks))
    assert stored.status_code == 201
    assert Judgment.objects.get().ranks == ranks


def test_it_replaces_a_judgment_once(client, cats, anna):
    make.comparison(cats)
    lease = _claim(client)["leases"][0]
    first = _judgment(lease)
    _post(client, "judgment_create", first)
    revision = _judgment(lease, judgment=first["client_key"], choice=lease["order"][1], strength=1)
    del revision["lease"]
    answers = [_post(client, "judgment_revise", revision) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    old, new = Judgment.objects.order_by("id")
    assert (new.supersedes, new.strength, new.ranks[str(lease["order"][1])]) == (old, 1, 1)
    stale = _post(client, "judgment_revise", {**revision, "client_key": str(uuid.uuid4())})
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "already_judged")


def test_it_says_when_a_judgment_came_too_late_to_count(client, cats, anna):
    make.comparison(cats)
    lease = _claim(client)["leases"][0]
    Lease.objects.update(expires_at=make.NOW)
    client.force_login(make.person("ben", cats))
    _post(client, "judgment_create", _judgment(_claim(client)["leases"][0]))
    client.force_login(anna)
    late = _post(client, "judgment_create", _judgment(lease))
    assert (late.status_code, late.json()["surplus"]) == (201, True)


def test_it_tells_the_solution_in_practice_only(client, cats, anna):
    Campaign.objects.update(practice_pairs=2)
    for _ in range(3):
        known = make.comparison(cats)
        ids = sorted(item.response_id for item in known.items.all())
        gold.set_answer(known, {str(ids[0]): 1, str(ids[1]): 2})
    for left in (1, 0):
        lease = _claim(client)["leases"][0]
        assert lease["practice"] is True
        chosen = max(lease["order"])
        judgment = _judgment(lease, choice=chosen)
        for _ in range(2):  # a retry learns the same
            practice = _post(client, "judgment_create", judgment).json()["practice"]
            assert practice == {"right": False, "answer": {str(min(lease["order"])): 1, str(chosen): 2}, "left": left}
    Campaign.objects.update(gold_share=0.5)
    for _ in range(20):
        make.comparison(cats)
        lease = _claim(client)["leases"][0]
        assert lease["practice"] is False
        assert set(lease) == {"id", "expires_at", "messages", "order", "responses", "practice"}
        assert set(_post(client, "judgment_create", _judgment(lease)).json()) == {"id", "client_key", "surplus"}
    assert Judgment.objects.filter(purpose="gold").exists()


def test_it_revises_nobody_elses_judgment(client, cats, anna):
    make.comparison(cats)
    lease = _claim(client)["leases"][0]
    first = _judgment(lease)
    _post(client, "judgment_create", first)
    client.force_login(make.person("ben", cats))
    revision = _judgment(lease, judgment=first["client_key"])
    del revision["lease"]
    assert _post(client, "judgment_revise", revision).status_code == 404


def test_it_shows_reviewers_nothing_of_chats_but_their_own(client, cats):
    private, shared = make.comparison(cats), make.comparison(cats)
    Comparison.objects.filter(pk=private.pk).update(source="chat", is_open=False, is_disputed=True)
    for role in ("reviewer", "manager"):
        client.force_login(make.person("", cats, role=role))
        listed = client.get(reverse("comparison_list", args=["cats"])).json()["results"]
        assert [one["id"] for one in listed] == [shared.pk]
        assert client.get(reverse("comparison_detail", args=[private.pk])).status_code == 404
        assert _post(client, "comparison_decide", {}, private.pk).status_code == 404
    author = make.person("ida", cats, role="reviewer")
    choice = choices.Choice("tie", [one.pk for one in private.responses.all()])
    judgments.add(private, author, uuid.uuid4(), choice, make.NOW, purpose=Purpose.CHAT)
    client.force_login(author)
    assert client.get(reverse("comparison_detail", args=[private.pk])).status_code == 200


def test_it_lets_nobody_decide_who_is_no_reviewer_any_more(client, cats, anna):
    comparison = make.comparison(cats)
    Comparison.objects.filter(pk=comparison.pk).update(is_disputed=True)
    cats.memberships.update(role="reviewer")
    lease = _post(client, "comparison_decide", {}, comparison.pk).json()
    cats.memberships.update(role="annotator")
    assert _post(client, "judgment_create", _judgment(lease)).status_code == 403
    cats.memberships.update(role="reviewer")
    assert _post(client, "judgment_create", _judgment(lease)).status_code == 201
