"""Which keys may ask for what, and how much of it."""

from collections.abc import Callable
from datetime import timedelta

import httpx
import openai
import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from serving import adapters, keys, limits
from serving.models import Adapter, ApiKey
from serving.openai import admission, bodies
from tests.serving.openai.asking import ask, logged, raw
from tests.serving.scripted import ScriptedEngine

pytestmark = pytest.mark.django_db(transaction=True)
Maker = Callable[[int], Adapter]


def test_it_refuses_keys_that_do_not_work(engine: ScriptedEngine, address: str, ada: User) -> None:
    now = timezone.now()
    revoked, text_revoked = keys.create(ada, "a", ["chat"], now)
    keys.revoke(revoked, now)
    expired, text_expired = keys.create(ada, "b", ["chat"], now, now + timedelta(days=1))
    ApiKey.objects.filter(pk=expired.pk).update(expires_at=now)
    _, text_of_another_scope = keys.create(ada, "c", ["labels:read"], now)
    for shown in ("sk-nonsense", "align_unknown", text_revoked, text_expired, "align_é", "align_a align_b"):
        header = f"Bearer {shown}".encode("latin-1")
        got = httpx.post(f"{address}/v1/chat/completions", json={}, headers={b"Authorization": header})
        assert (got.status_code, got.json()["error"]["code"]) == (401, "invalid_api_key")
        assert got.headers["www-authenticate"] == "Bearer"
    with openai.OpenAI(base_url=f"{address}/v1", api_key=text_revoked, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            ask(client)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key=text_of_another_scope, max_retries=0) as client,
        pytest.raises(openai.PermissionDeniedError, match="scope chat"),
    ):
        ask(client)
    assert not engine.requests


def test_it_notes_the_keys_last_use(engine: ScriptedEngine, client: openai.OpenAI, key: ApiKey) -> None:
    ask(client)
    logged()
    key.refresh_from_db()
    assert key.last_used_at is not None


def test_it_tells_what_is_left_of_the_limits(engine: ScriptedEngine, client: openai.OpenAI, key: ApiKey) -> None:
    keys.set_limits(key, requests=10, tokens=1_000, concurrent=None)
    first, second = raw(client, max_tokens=100).headers, raw(client, max_tokens=100, stream=True).headers
    assert [h["x-ratelimit-limit-requests"] for h in (first, second)] == ["10", "10"]
    assert [h["x-ratelimit-remaining-requests"] for h in (first, second)] == ["9", "8"]
    reserved = 1_000 - int(first["x-ratelimit-remaining-tokens"])
    assert 100 < reserved < 150
    assert 1_000 - int(second["x-ratelimit-remaining-tokens"]) < reserved + 20  # 7 were used of what was reserved
    assert first["x-ratelimit-reset-requests"].endswith("s")


def test_it_limits_requests_tokens_and_what_runs_at_once(
    engine: ScriptedEngine, client: openai.OpenAI, key: ApiKey
) -> None:
    keys.set_limits(key, requests=None, tokens=500, concurrent=None)
    with pytest.raises(openai.RateLimitError) as too_large:
        ask(client, max_tokens=600)
    assert too_large.value.response.headers["x-should-retry"] == "false"
    keys.set_limits(key, requests=2, tokens=None, concurrent=None)
    ask(client)
    ask(client)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client)
    assert caught.value.code == "rate_limit_exceeded"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 61
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError):
        client.models.list()
    logged(2)
    keys.set_limits(key, requests=0, tokens=0, concurrent=1)
    engine.hold.clear()
    held = ask(client, stream=True)
    next(iter(held))
    with pytest.raises(openai.RateLimitError, match="1 requests answered at once"):
        ask(client, extra_headers={"X-Request-Id": "same"})
    engine.hold.set()
    held.close()
    logged(3)
    ask(client)


def test_it_counts_requests_of_one_name_each(engine: ScriptedEngine, client: openai.OpenAI, key: ApiKey) -> None:
    """Who sends the same request id with all of them must not have any number at once."""
    keys.set_limits(key, requests=0, tokens=0, concurrent=2)
    engine.hold.clear()
    held = [ask(client, stream=True, extra_headers={"X-Request-Id": "same"}) for _ in range(2)]
    with pytest.raises(openai.RateLimitError):
        ask(client, extra_headers={"X-Request-Id": "same"})
    engine.hold.set()
    for stream in held:
        assert list(stream)


def test_it_counts_nonsense_as_a_request(engine: ScriptedEngine, client: openai.OpenAI, key: ApiKey) -> None:
    keys.set_limits(key, requests=1, tokens=None, concurrent=None)
    with pytest.raises(openai.BadRequestError):
        ask(client, extra_body={"nonsense": 1})
    with pytest.raises(openai.RateLimitError):
        ask(client, extra_body={"nonsense": 1})


def test_it_admits_with_three_queries_at_most(engine: ScriptedEngine, good_adapter: Maker, shown_key: str) -> None:
    """What happens before an engine is asked: the key and the alias; the key, no alias, the version."""
    adapters.publish(good_adapter(1))
    raw = b'{"model": "%s", "messages": []}'
    for name, n_queries in (("current", 2), (adapters.current().name, 3), ("base", 3)):
        with CaptureQueriesContext(connection) as queries:
            admitted = admission.admit(f"Bearer {shown_key}", raw % name.encode(), bodies.CHAT, "x", timezone.now())
        assert len(queries) == n_queries, [query["sql"] for query in queries]
        assert not any(query["sql"].startswith(("INSERT", "UPDATE")) for query in queries)
        limits.settle(admitted.ticket, 0)


def test_it_keeps_a_version_loaded_that_is_asked_by_name(
    engine: ScriptedEngine, client: openai.OpenAI, good_adapter: Maker
) -> None:
    row = good_adapter(1)
    adapters.publish(row)
    Adapter.objects.update(wanted_until=None)
    ask(client)
    logged()
    row.refresh_from_db()
    assert row.wanted_until is None  # an alias keeps it
    ask(client, row.name)
    logged(2)
    row.refresh_from_db()
    assert row.wanted_until is not None
    assert row.wanted_until > timezone.now() + timedelta(minutes=5)
