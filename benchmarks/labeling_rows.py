"""What benchmarks.labeling needs inside Django: rows, logged-in people, a profile, a query plan. Run in `manage.py shell`."""

import cProfile
import io
import json
import pstats
import uuid
from pathlib import Path

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.db import connection
from django.test import Client
from django.utils import timezone

from labeling import pairs
from labeling.models import Campaign, Membership

# By SQL: a million pairs in minutes.
ROWS = """
INSERT INTO labeling_prompt (campaign_id, messages, sha256, domain, source, warnings, candidates_state,
                             candidates_attempts, candidates_round, created_at)
  SELECT %(c)s, jsonb_build_array(jsonb_build_object('role', 'user', 'content', 'What is question ' || i || '?')),
         encode(sha256(convert_to(i::text, 'UTF8')), 'hex'), '', 'benchmark', '[]', 'done', 0, 0, now()
  FROM generate_series(1, %(n)s) i;
INSERT INTO labeling_response (prompt_id, text, sha256, source, generator, sampling, finish_reason, warnings, created_at)
  SELECT p.id, 'Answer ' || side || ' to ' || p.id || '. ' || repeat('It **depends** on `what` one wants. ', 22),
         encode(sha256(convert_to(p.id || ' ' || side, 'UTF8')), 'hex'), 'benchmark', '', '{}', 'stop', '[]', now()
  FROM labeling_prompt p, generate_series(1, 2) side WHERE p.campaign_id = %(c)s;
INSERT INTO labeling_comparison (campaign_id, prompt_id, source, content_key, n_judgments, n_wanted, is_open,
                                 is_disputed, sort_key, arm, created_at)
  SELECT %(c)s, p.id, 'campaign', 'pair ' || p.id, 0, %(k)s, true, false, (random() * 100000000)::int, 'random', now()
  FROM labeling_prompt p WHERE p.campaign_id = %(c)s;
INSERT INTO labeling_comparisonitem (comparison_id, response_id, index)
  SELECT c.id, r.id, row_number() OVER (PARTITION BY c.id ORDER BY r.id) - 1
  FROM labeling_comparison c JOIN labeling_response r ON r.prompt_id = c.prompt_id WHERE c.campaign_id = %(c)s;
"""
JUDGED_PAIRS = 50_000  # what is exported
JUDGED = """
INSERT INTO labeling_judgment (comparison_id, annotator_id, client_key, purpose, repeat, is_surplus, verdict, ranks,
                               strength, "order", reason, tags, criteria, flags, skip_reason, shown_ms, attention,
                               guidelines_version, created_at)
  SELECT c.id, %(u)s, gen_random_uuid(), 'label', 0, false, 'preference',
         jsonb_build_object(min(i.response_id)::text, 1, max(i.response_id)::text, 2), 2,
         jsonb_agg(i.response_id), '', '[]', '{}', '[]', '', 5000, '{}', 1, now()
  FROM labeling_comparison c JOIN labeling_comparisonitem i ON i.comparison_id = c.id
  WHERE c.campaign_id = %(c)s GROUP BY c.id;
UPDATE labeling_comparison SET n_judgments = 1, is_open = false WHERE campaign_id = %(c)s;
"""


def fill(n_pairs: int, overlap: int, n_people: int, people_file: Path) -> None:
    """Two campaigns, one of `n_pairs` to judge and one of at most JUDGED_PAIRS judged; the cookies of people who are logged in, the manager's
    last, go into `people_file`.
    """
    users = User.objects.bulk_create(User(username=f"person-{i}", password="!") for i in range(n_people))  # noqa: S106
    users.append(User.objects.create(username="manager", password="!"))  # noqa: S106
    for slug, k in (("open", overlap), ("judged", 1)):
        campaign = Campaign.objects.create(name=slug, slug=slug, overlap=k, n_candidates=0)
        Membership.objects.bulk_create(Membership(campaign=campaign, user=user) for user in users)
        campaign.memberships.filter(user=users[-1]).update(role=Membership.Role.MANAGER)
        with connection.cursor() as cursor:
            cursor.execute(
                ROWS, {"c": campaign.pk, "n": n_pairs if slug == "open" else min(n_pairs, JUDGED_PAIRS), "k": k}
            )
            if slug == "judged":
                cursor.execute(JUDGED, {"c": campaign.pk, "u": users[-1].pk})
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    people_file.write_text(json.dumps([_session(user) for user in users]))


def _session(user: User) -> str:
    """The key of a session in which `user` is logged in: a thousand log-ins would be a thousand password hashes."""
    store = SessionStore()
    store[SESSION_KEY], store[BACKEND_SESSION_KEY] = str(user.pk), settings.AUTHENTICATION_BACKENDS[-1]
    store[HASH_SESSION_KEY] = user.get_session_auth_hash()
    store.create()
    return str(store.session_key)


def profile(n_votes: int, n_lines: int = 25) -> None:
    """Where the time of one vote goes, by function, and how many queries each half makes."""
    client = Client(SERVER_NAME="127.0.0.1")
    client.force_login(User.objects.order_by("pk")[0])
    for _ in range(5):
        _vote(client)
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(n_votes):
        _vote(client)
    profiler.disable()
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text).strip_dirs()
    print(f"{1000 * stats.total_tt / n_votes:.1f} ms a vote, under the profiler")  # type: ignore[attr-defined]
    stats.sort_stats("cumulative").print_stats(n_lines)
    stats.sort_stats("tottime").print_stats(n_lines)
    print("\n".join(line for line in text.getvalue().splitlines() if line.strip()))


def _vote(client: Client) -> None:
    [lease] = client.post("/api/campaigns/open/leases/", {"n": 1, "undoable": False}, "application/json").json()[
        "leases"
    ]
    body = {"lease": lease["id"], "client_key": str(uuid.uuid4()), "verdict": "tie", "order": lease["order"]}
    assert client.post("/api/judgments/", body, "application/json").status_code == 201


def plans() -> None:
    """The query plan of the claim, as PostgreSQL runs it."""
    campaign, person = Campaign.objects.get(slug="open"), User.objects.order_by("pk")[0]
    print(pairs.next_comparisons(campaign, person, timezone.now(), 2).explain(analyze=True, buffers=True))
