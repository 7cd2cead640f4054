import json
import math
from datetime import timedelta

import numpy as np
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from labeling import campaigns, dashboard, figures, gold, judgments, own, statistics, tasks
from labeling.models import Judgment, Lease, Statistics
from serving.models import Adapter
from tests.labeling import make

pytestmark = pytest.mark.django_db
LATER = make.later(3600)


def _vote(comparison, person, winner, at=make.NOW, **fields):
    """A judgment for the response at this index of the comparison, whatever side it stands on."""
    ids = [item.response_id for item in comparison.items.all()]
    order = ids if comparison.pk % 2 else ids[::-1]
    lease = Lease.objects.create(
        comparison=comparison, annotator=person, order=order, created_at=at, expires_at=at + timedelta(seconds=60),
        **fields,
    )  # fmt: skip
    return make.judge(lease, at=at, side=order.index(ids[winner]))


def _compute(campaign, now=LATER):
    return figures.compute(campaign, now, np.random.default_rng(0))


def _shown(campaign, now) -> Statistics:
    """What a page shows; there is something."""
    row = statistics.of(campaign, now)
    assert row is not None
    return row


@pytest.fixture
def cats():
    return make.campaign("cats", overlap=3)


def test_it_computes_an_empty_campaign(cats):
    found = _compute(cats)
    assert found["n_votes"] == 0
    assert found["agreement"] == {"alpha": None, "kappa": None, "percent": None}
    assert dashboard.overview(found, LATER)["forecast"] == "Every pair has the judgments that it needs."


def test_it_computes_a_campaign_with_one_judgment(cats):
    _vote(make.comparison(cats), make.person("anna", cats), 0)
    found = _compute(cats)
    assert found["n_votes"] == 1
    assert [row["name"] for row in found["people"]] == ["anna"]
    assert found["forecast"]["remaining"] == 2
    assert "after three days" in dashboard.overview(found, LATER)["forecast"]


def test_it_measures_agreement_and_counts_what_was_said(cats):
    people = [make.person("", cats) for _ in range(3)]
    for n in range(12):
        comparison = make.comparison(cats)
        for person in people:
            _vote(comparison, person, n % 2)
    found = _compute(cats)
    assert found["agreement"]["percent"]["value"] == 1
    assert found["agreement"]["alpha"]["value"] == pytest.approx(1)
    assert found["verdicts"]["verdicts"] == {"preference": 36}
    assert [row["n"] for row in found["people"]] == [12, 12, 12]
    assert [row["majority"]["value"] for row in found["people"]] == [1, 1, 1]
    assert [row["kappa"]["value"] for row in found["colleagues"]] == pytest.approx([1, 1, 1])
    assert found["domains"] == [
        {"domain": "", "n_pairs": 12, "n_prompts": 12, "done": 36, "wanted": 36, "n_closed": 12, "disputed": 0}
    ]


def test_it_measures_people_on_gold_and_keeps_it_out_of_everything_else(cats):
    anna, ben = make.person("anna", cats), make.person("ben", cats)
    for n in range(4):
        comparison = make.comparison(cats)
        first, second = [item.response_id for item in comparison.items.all()]
        gold.set_answer(comparison, {str(first): 1, str(second): 2})
        _vote(comparison, anna, 0, purpose="gold")
        _vote(comparison, ben, n % 2, purpose="gold")
    found = _compute(cats)
    accuracy = {row["name"]: (row["gold"]["k"], row["gold"]["n"]) for row in found["people"]}
    assert accuracy == {"anna": (4, 4), "ben": (2, 4)}
    assert (found["gold"]["k"], found["gold"]["n"], found["n_votes"]) == (6, 8, 0)
    assert [row["majority"]["n"] for row in found["people"]] == [0, 0]
    assert found["domains"] == []


def test_it_finds_who_always_chooses_the_left(cats):
    larry, others = make.person("larry", cats), [make.person("", cats) for _ in range(2)]
    for n in range(40):
        comparison = make.comparison(cats)
        ids = [item.response_id for item in comparison.items.all()]
        lease = Lease.objects.create(
            comparison=comparison, annotator=larry, order=ids if n % 2 else ids[::-1],
            created_at=make.NOW, expires_at=make.later(60),
        )  # fmt: skip
        make.judge(lease, side=0)
        for other in others:
            _vote(comparison, other, 0)
    found = _compute(cats)
    [suspect] = dashboard.overview(found, LATER)["suspects"]
    assert suspect["name"] == "larry"
    row = dashboard.person_row(suspect)
    assert (row.left.text, row.left.is_off) == ("100 %", True)


def test_it_ranks_versions_and_says_what_the_votes_can_tell(cats):
    base, better = (
        Adapter.objects.create(name=name, is_base=name == "base-1", sha256=name[0] * 64, base_sha256="c" * 64)
        for name in ("base-1", "adapter-2")
    )
    anna = make.person("anna", cats)
    for n in range(30):
        comparison = make.comparison(cats)
        for response, adapter in zip(comparison.responses.order_by("pk"), (base, better), strict=True):
            response.adapter = adapter
            response.save()
        _vote(comparison, anna, 1 if n % 5 else 0)
    board = dashboard.leaderboard(_compute(cats)["leaderboard"])
    assert [row["name"] for row in board["rows"]] == ["adapter-2", "base-1"]
    assert (board["rows"][0]["n_won"], board["rows"][0]["n_lost"]) == (24, 6)
    assert board["baseline"] == "base-1"
    assert board["power"].startswith("adapter-2 against base-1: Enough judgments to tell 80 % from 50 %")


def test_it_stores_nothing_that_json_does_not_know(cats):
    _vote(make.comparison(cats), make.person("anna", cats), 0)
    json.dumps(_compute(cats), allow_nan=False)
    assert figures.plain({"a": math.nan, 1: np.float64(2), "b": (np.int64(3), [math.inf])}) == {
        "a": None, "1": 2.0, "b": [3, [None]],
    }  # fmt: skip


def test_it_asks_as_many_queries_for_many_judgments_as_for_few(cats, django_assert_num_queries):
    people = [make.person("", cats) for _ in range(3)]

    def judge(n):
        for _ in range(n):
            comparison = make.comparison(cats)
            for person in people:
                _vote(comparison, person, 0)

    judge(25)
    with CaptureQueriesContext(connection) as few:
        _compute(cats)
    judge(25)
    with django_assert_num_queries(len(few)):
        _compute(cats)


def test_it_computes_small_campaigns_when_a_page_asks(cats):
    anna = make.person("anna", cats)
    first = _shown(cats, make.NOW)
    assert first.data["n_votes"] == 0
    _vote(make.comparison(cats), anna, 0)
    assert _shown(cats, make.later(1)).data["n_votes"] == 0  # a page that is reloaded costs nothing
    assert _shown(cats, make.later(10)).data["n_votes"] == 1
    assert _shown(cats, make.later(20)).computed_at == make.later(10)
    assert Statistics.objects.count() == 1


def test_it_leaves_large_campaigns_to_the_background(cats, monkeypatch):
    monkeypatch.setattr(statistics, "SMALL", 1)
    _vote(make.comparison(cats), make.person("anna", cats), 0)
    assert statistics.of(cats, make.NOW) is None
    assert statistics.refresh_due(make.NOW) == [cats]
    assert _shown(cats, make.NOW).data["n_votes"] == 1


def test_it_refreshes_what_has_new_judgments_once_a_minute(cats):
    dogs = make.campaign("dogs")
    anna = make.person("anna", cats, dogs)
    assert statistics.refresh_due(make.NOW) == [cats, dogs]
    _vote(make.comparison(dogs), anna, 0)
    assert statistics.refresh_due(make.later(30)) == []
    assert statistics.refresh_due(make.later(61)) == [dogs]
    assert statistics.refresh_due(make.later(130)) == []
    assert Statistics.objects.get(campaign=cats).last_judgment == Judgment.objects.latest("pk").pk
    assert statistics.refresh_due(make.later(3601)) == [cats]


def test_it_spends_a_twentieth_of_the_time_at_most(cats):
    statistics.refresh(cats, make.NOW)
    row = Statistics.objects.get()
    row.data["seconds"] = 30
    row.save()
    _vote(make.comparison(cats), make.person("anna", cats), 0)
    assert statistics.refresh_due(make.later(599)) == []
    assert statistics.refresh_due(make.later(601)) == [cats]


def test_it_looks_again_after_an_undo_and_after_a_known_answer(cats):
    anna = make.person("anna", cats)
    judgment = _vote(make.comparison(cats), anna, 0)
    statistics.refresh(cats, make.NOW)
    judgments.undo(judgment, make.later(60))
    assert _shown(cats, make.later(61)).data["n_votes"] == 0
    statistics.mark_stale(cats)
    assert statistics.refresh_due(make.later(200)) == [cats]


def test_it_computes_anew_what_an_older_release_stored(cats):
    Statistics.objects.create(campaign=cats, data={"format": 0}, last_judgment=0, computed_at=make.NOW)
    assert statistics.refresh_due(make.NOW) == [cats]
    Statistics.objects.update(data={})
    assert _shown(cats, make.NOW).data["n_votes"] == 0


def test_it_runs_as_a_task(cats):
    tasks.refresh_statistics()
    assert Statistics.objects.get().campaign == cats


def test_it_measures_savings_in_the_background_only_and_keeps_them(cats):
    assert statistics.refresh(cats, make.NOW).data["savings"] == {"at": None, "report": None}
    statistics.refresh(cats, make.NOW, in_background=True)
    later = statistics.refresh(cats, make.later(60))
    assert later.data["savings"]["at"] == make.NOW.isoformat()


def test_it_tells_people_of_their_own_work_and_nothing_of_gold(cats):
    anna, ben, clara = (make.person(name, cats) for name in ("anna", "ben", "clara"))
    for n in range(24):
        comparison = make.comparison(cats)
        if n >= 22:
            first, second = [item.response_id for item in comparison.items.all()]
            gold.set_answer(comparison, {str(first): 1, str(second): 2})
        for person in (anna, ben, clara):
            _vote(comparison, person, 0 if person is not anna or n % 2 else 1, purpose="label" if n < 22 else "gold")
    statistics.refresh(cats, make.NOW)
    found = own.of(anna, make.later(60))
    assert (found.n, found.n_today, found.n_week) == (24, 24, 24)
    [line] = found.lines
    assert line.majority is not None
    assert (line.n, line.majority.n, line.majority.text) == (24, 22, "50 %")
    campaigns.remove_member(anna.memberships.get())
    assert own.of(anna, make.later(60)).lines == []


def test_it_does_not_tell_single_votes_by_the_majority(cats):
    anna, ben = make.person("anna", cats), make.person("ben", cats)
    for _ in range(own.MIN_MAJORITY - 1):
        comparison = make.comparison(cats)
        for person in (anna, ben):
            _vote(comparison, person, 0)
    statistics.refresh(cats, make.NOW)
    assert own.of(anna, make.later(60)).lines[0].majority is None


def test_it_says_when_a_campaign_will_be_done(cats):
    def say(**end):
        return dashboard.forecast_sentence({"remaining": 5, "hours": None, "end": end}, make.NOW)

    assert say(low=1, middle=2, high=4, n_days=7) == (
        "Done between March 2, 2026 and March 5, 2026, most likely around March 3, 2026, if people go on as they did."
    )
    assert say(low=2, middle=2, high=2, n_days=7).startswith("Done on about March 3, 2026")
    assert "at the earliest" in say(low=2, middle=None, high=None, n_days=7)
    assert "ten years" in say(low=None, middle=None, high=None, n_days=7)


def test_it_sorts_people_with_the_worst_first(cats):
    def row(name, k, n):
        gold_share = {"value": k / n if n else None}
        return {"name": name, "n": n, "gold": gold_share, "majority": gold_share, "suspicions": ["x"] * (name == "zoe")}

    rows = [row("anna", 9, 10), row("Ben", 0, 0), row("zoe", 1, 2)]
    assert [one["name"] for one in dashboard.sort_people(rows, "gold")] == ["zoe", "anna", "Ben"]
    assert [one["name"] for one in dashboard.sort_people(rows, "name")] == ["anna", "Ben", "zoe"]
    assert [one["name"] for one in dashboard.sort_people(rows, "judgments")] == ["anna", "zoe", "Ben"]
    assert dashboard.sort_people(rows, "findings")[0]["name"] == "zoe"
