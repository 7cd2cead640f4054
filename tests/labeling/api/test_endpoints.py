"""What holds for every endpoint: keys and scopes, pages, filters, requests sent twice, throttles."""

import uuid
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from labeling import campaigns, gold
from labeling.models import Campaign, Guidelines, Judgment, Response
from serving import idempotency, keys, throttles
from serving.models import ApiKey, IdempotentRequest
from tests.labeling import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def cats():
    return make.campaign("cats")


@pytest.fixture
def mia(cats):
    return make.person("mia", cats, role="manager")


@pytest.fixture
def anna(cats):
    return make.person("anna", cats)


def _as(client, person, *scopes):
    """The client with a key of this person in place of a session."""
    text = keys.create(person, "test", list(scopes or keys.SCOPES), timezone.now())[1]
    client.defaults["HTTP_AUTHORIZATION"] = f"Bearer {text}"
    return client


def _post(client, path, body, **headers):
    return client.post(f"/api/{path}", body, content_type="application/json", headers=headers)


def _code(answer):
    return answer.status_code, answer.json()["error"]["code"]


# --- keys -------------------------------------------------------------------------------------------------------------
def test_it_lets_a_key_in_as_its_owner(client, cats, anna, mia):
    make.campaign("dogs")
    [campaign] = _as(client, anna).get("/api/campaigns/").json()["results"]
    assert (campaign["slug"], campaign["role"]) == ("cats", "annotator")
    assert _as(client, mia).get("/api/campaigns/cats/").json()["role"] == "manager"


def test_it_wants_the_scope(client, cats, mia):
    _as(client, mia, "labels:read", "campaigns:read")
    assert client.get("/api/campaigns/cats/prompts/").status_code == 200
    answer = _post(client, "campaigns/cats/prompts/", {"prompts": []})
    assert _code(answer) == (403, "forbidden")
    assert "campaigns:write" in answer.json()["error"]["message"]


def test_it_gives_a_key_no_more_than_its_owner(client, cats, anna):
    _as(client, anna)
    assert client.get("/api/campaigns/cats/prompts/").status_code == 403
    assert client.get("/api/campaigns/cats/judgments/").status_code == 403
    assert _post(client, "campaigns/", {"name": "Mine", "slug": "mine"}).status_code == 403


@pytest.mark.parametrize("header", ["Bearer", "Bearer nonsense", "Bearer a b", "bearer align_x", "Bearer \xff"])
def test_it_refuses_keys_that_are_none(client, anna, header):
    client.force_login(anna)  # a bad key is an error even beside a good session
    answer = client.get("/api/campaigns/", headers={"authorization": header})
    assert _code(answer) == (401, "authentication_failed")
    assert answer["WWW-Authenticate"] == "Bearer"


def test_it_refuses_keys_that_expired_or_were_revoked(client, anna):
    now = timezone.now()
    _key, expired = keys.create(anna, "old", ["campaigns:read"], now - timedelta(days=2), now - timedelta(days=1))
    revoked, text = keys.create(anna, "gone", ["campaigns:read"], now)
    keys.revoke(revoked, now)
    for one in (expired, text):
        answer = client.get("/api/campaigns/", headers={"authorization": f"Bearer {one}"})
        assert _code(answer) == (401, "authentication_failed")
    assert not ApiKey.objects.exclude(last_used_at=None).exists()


def test_it_needs_no_csrf_token_with_a_key(cats, mia, client):
    client.handler.enforce_csrf_checks = True
    _as(client, mia)
    assert _post(client, "campaigns/cats/leases/", {}).status_code == 200


def test_it_throttles_each_key_for_itself(client, mia, anna, monkeypatch):
    monkeypatch.setitem(throttles.RATES, "reading", (2, 86_400))
    _as(client, mia)
    assert [client.get("/api/campaigns/").status_code for _ in range(3)] == [200, 200, 429]
    answer = client.get("/api/campaigns/")
    assert _code(answer) == (429, "throttled")
    assert 0 < int(answer["Retry-After"]) <= 86_400
    assert _as(client, anna).get("/api/campaigns/").status_code == 200


@pytest.mark.parametrize("rate", ["", "10", "ten/minute", "10/fortnight", "-1/minute"])
def test_it_stops_at_a_rate_that_is_none(rate):
    with pytest.raises(ValueError, match="must look like 600/minute"):
        throttles.parse(rate)


# --- lists ------------------------------------------------------------------------------------------------------------
def test_it_pages_while_rows_come_and_go(client, cats, mia):
    made = [make.prompt(cats).pk for _ in range(7)]
    _as(client, mia)
    page = client.get("/api/campaigns/cats/prompts/?limit=3&ordering=id").json()
    seen = [row["id"] for row in page["results"]]
    cats.prompts.filter(pk=seen[0]).delete()  # an offset would now leave one out
    late = make.prompt(cats).pk
    while page["next"]:
        page = client.get(page["next"]).json()
        seen += [row["id"] for row in page["results"]]
    assert seen == [*made, late]


@pytest.mark.parametrize(("query", "field"), [
    ("domian=x", "domian"),
    ("messages__contains=x", "messages__contains"),
    ("candidates_state=sleeping", "candidates_state"),
    ("limit=0", "limit"),
    ("limit=201", "limit"),
    ("limit=x", "limit"),
    ("ordering=text", "ordering"),
    ("cursor=x", "cursor"),
    ("cursor=cD1hYmM=", "cursor"),
    ("domain=%00", "domain"),
])  # fmt: skip
def test_it_says_which_parameter_is_wrong(client, cats, mia, query, field):
    answer = _as(client, mia).get(f"/api/campaigns/cats/prompts/?{query}")
    assert _code(answer) == (400, "invalid")
    assert list(answer.json()["error"]["fields"]) == [field]


def test_it_filters(client, cats, mia):
    for domain in ("math", "art", "math"):
        prompt = make.prompt(cats)
        cats.prompts.filter(pk=prompt.pk).update(domain=domain)
    rows = _as(client, mia).get("/api/campaigns/cats/prompts/?domain=math").json()["results"]
    assert [row["domain"] for row in rows] == ["math", "math"]


LISTS = [
    "campaigns/", "campaigns/cats/prompts/", "campaigns/cats/responses/", "campaigns/cats/comparisons/",
    "campaigns/cats/judgments/", "campaigns/cats/members/", "campaigns/cats/guidelines/", "judgments/",
]  # fmt: skip


@pytest.mark.parametrize("path", LISTS)
def test_it_needs_as_many_queries_for_many_rows_as_for_few(client, cats, mia, path):
    def grow(n):
        for _ in range(n):
            make.judge(make.lease(make.comparison(cats), mia))
            make.person("", cats, make.campaign(f"more-{uuid.uuid4().hex[:6]}"))
            campaigns.publish_guidelines(cats, uuid.uuid4().hex, mia, make.NOW)

    client.force_login(mia)
    counts, lengths = [], []
    for n in (1, 4):
        grow(n)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            lengths.append(len(client.get(f"/api/{path}").json()["results"]))
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 12
    assert lengths[1] > lengths[0] or path == "campaigns/"


# --- requests that are sent twice -------------------------------------------------------------------------------------
def test_it_makes_a_campaign_once(client, cats, mia):
    _as(client, mia)
    body = {"name": "Dogs", "slug": "dogs"}
    first, again = (_post(client, "campaigns/", body, **{"Idempotency-Key": "dogs-1"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert (first.get("Idempotency-Replayed"), again["Idempotency-Replayed"]) == (None, "true")
    other = _post(client, "campaigns/", {"name": "Birds", "slug": "birds"}, **{"Idempotency-Key": "dogs-1"})
    assert _code(other) == (409, "idempotency_conflict")
    assert _code(_post(client, "campaigns/", body)) == (400, "invalid")  # without the key it is a second one
    assert Campaign.objects.count() == 2


def test_it_lets_a_failed_request_be_sent_again(client, cats, mia):
    _as(client, mia)
    key = {"Idempotency-Key": "dogs-2"}
    assert _post(client, "campaigns/", {"name": "Dogs", "slug": "cats"}, **key).status_code == 400
    assert not IdempotentRequest.objects.exists()
    assert _post(client, "campaigns/", {"name": "Dogs", "slug": "dogs"}, **key).status_code == 201


def test_it_keeps_a_key_to_its_person_and_for_a_day(client, cats, mia):
    other = make.person("max", cats, role="manager")
    for person, text in ((mia, "First."), (other, "Second.")):
        _as(client, person)
        answer = _post(client, "campaigns/cats/guidelines/", {"text": text}, **{"Idempotency-Key": "same"})
        assert answer.json()["text"] == text
    IdempotentRequest.objects.update(created_at=timezone.now() - idempotency.KEPT - timedelta(seconds=1))
    again = _post(client, "campaigns/cats/guidelines/", {"text": "Third."}, **{"Idempotency-Key": "same"})
    assert again.status_code == 201
    assert [row.text for row in Guidelines.objects.order_by("number")] == ["First.", "Second.", "Third."]


def test_it_asks_to_wait_for_a_request_in_hand(mia):
    asked = idempotency.fingerprint("POST", "/api/campaigns/", b"{}")
    assert idempotency.begin(mia, "k", asked, make.NOW)[1]
    with pytest.raises(idempotency.Conflict, match="not answered yet"):
        idempotency.begin(mia, "k", asked, make.later(30))
    assert idempotency.begin(mia, "k", asked, make.later(61))[1]  # whoever dealt with it is gone


# --- blindness --------------------------------------------------------------------------------------------------------
def test_it_tells_annotators_neither_authors_nor_purposes_nor_answers(client, cats, anna, mia):
    for purpose in ("label", "gold", "repeat"):
        judgment = make.judge(make.lease(make.comparison(cats), anna))
        Judgment.objects.filter(pk=judgment.pk).update(purpose=purpose)
        known = judgment.comparison
    first, second = judgment.order
    gold.set_answer(known, {str(first): 1, str(second): 2})
    Response.objects.update(generator="secret-model")
    make.comparison(cats)  # not judged by her: not hers to look at
    _as(client, anna)
    listed = client.get("/api/campaigns/cats/comparisons/").json()["results"]
    assert [set(row) for row in listed] == [{"id", "prompt", "messages", "responses", "created_at"}] * 3
    pages = [
        client.get(path)
        for path in ("/api/campaigns/cats/comparisons/", f"/api/comparisons/{known.pk}/", "/api/judgments/",
                     "/api/campaigns/cats/", "/api/campaigns/")
    ]  # fmt: skip
    said = " ".join(page.content.decode() for page in pages)
    assert all(page.status_code == 200 for page in pages)
    for word in ("secret-model", "adapter", "generator", "gold", "purpose", "repeat", "propensity", "n_judgments"):
        assert word not in said, word
    for query in ("is_gold=true", "is_disputed=true", "is_open=true", "source=campaign"):
        assert client.get(f"/api/campaigns/cats/comparisons/?{query}").status_code == 400
    assert client.get("/api/judgments/?purpose=gold").status_code == 400

    _as(client, mia)
    full = client.get(f"/api/comparisons/{known.pk}/").json()
    assert full["gold_ranks"] == {str(first): 1, str(second): 2}
    assert [author["generator"] for author in full["authors"]] == ["secret-model"] * 2
    assert [(one["annotator"], one["purpose"]) for one in full["judgments"]] == [("anna", "repeat")]
    assert len(client.get("/api/campaigns/cats/comparisons/?is_gold=true").json()["results"]) == 1


def test_it_shows_nothing_of_another_campaign(client, cats, anna, mia):
    judgment = make.judge(make.lease(make.comparison(cats), anna))
    _as(client, make.person("max", make.campaign("dogs"), role="manager"))
    pk, prompt = judgment.comparison_id, judgment.comparison.prompt_id
    for path in [f"comparisons/{pk}/", f"prompts/{prompt}/responses/", *LISTS[1:-1], "campaigns/cats/"]:
        assert client.get(f"/api/{path}").status_code == 404, path
    assert client.get("/api/judgments/").json()["results"] == []
    for path in (f"comparisons/{pk}/gold/",):
        assert client.put(f"/api/{path}", {"ranks": {}}, content_type="application/json").status_code in {400, 404}
    assert _post(client, f"comparisons/{pk}/decide/", {}).status_code == 404
    assert _post(client, f"prompts/{prompt}/responses/", {"responses": [{"text": "x"}]}).status_code == 404


def test_it_answers_json_where_nothing_is(client):
    assert _code(client.get("/api/nothing")) == (404, "not_found")
    assert _code(client.post("/api/a%0Ab/")) == (404, "not_found")
