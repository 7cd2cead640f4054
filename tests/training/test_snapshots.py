"""Judgments become files: every judgment counted once, every pair on a side that it never leaves."""

import hashlib
import json
import threading
from collections import Counter
from contextlib import suppress

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from labeling import judgments
from labeling.errors import Frozen
from labeling.models import Comparison, Judgment, Prompt
from serving.models import Adapter
from tests.training.rows import (
    NOW,
    add_campaign,
    add_comparison,
    add_judged,
    add_prompt,
    judge,
)
from training import snapshots
from training.models import Run, Snapshot
from training.snapshots import NothingToTrain, count, derive_pairs, freeze, is_heldout, is_usable, to_line, waiting

VERDICTS = ("preference", "tie", "both_bad", "skip")
TEXTS = {i: f"response {i}" for i in range(200)}


@st.composite
def judged(draw: st.DrawFn) -> list[Judgment]:
    """Judgments of up to 12 comparisons of 1 to 4 responses; several of one comparison, of every verdict."""
    rows = []
    for pk in range(draw(st.integers(0, 25))):
        c = draw(st.integers(0, 11))
        prompt = Prompt(pk=c % 5, sha256=hashlib.sha256(str(c % 5).encode()).hexdigest(), messages=[])
        verdict = draw(st.sampled_from(VERDICTS))
        ids = range(c * 4, c * 4 + 1 + c % 4)
        ranks = {str(i): 1 if verdict == "tie" else draw(st.integers(1, 3)) for i in ids}
        row = Judgment(
            pk=pk,
            comparison=Comparison(pk=c, prompt=prompt),
            verdict=verdict,
            ranks=ranks if verdict in ("preference", "tie") else {},
            strength=draw(st.sampled_from([None, 1, 2, 3])) if verdict == "preference" else None,
        )
        row.annotator_id = draw(st.integers(1, 3))
        rows.append(row)
    return rows


def lines_of(rows: list[Judgment]) -> list[dict]:
    return [to_line(pair, TEXTS, set()) for pair in derive_pairs(row for row in rows if is_usable(row))]


@given(judged())
def test_it_accounts_for_every_judgment_exactly_once(rows: list[Judgment]) -> None:
    lines = lines_of(rows)
    counts = count(rows, lines)
    assert counts["used"] + sum(counts["left_out"].values()) == counts["judgments"] == len(rows)
    used = {pk for line in lines for pk in line["judgments"]}
    assert used == {row.pk for row in rows if is_usable(row)}
    assert counts["used"] == len(used)
    assert counts["train"] + counts["heldout"] == counts["pairs"] == len(lines)


@given(judged())
def test_it_makes_every_pair_of_every_ranking_once(rows: list[Judgment]) -> None:
    lines = lines_of(rows)
    assert len({line["pair"] for line in lines}) == len(lines)
    votes: Counter[str] = Counter()
    for row in rows:
        if is_usable(row):
            n = len(row.ranks)
            votes[str(row.comparison_id)] += n * (n - 1) // 2
    assert sum(line["weight"] for line in lines) == sum(votes.values())


@given(judged())
def test_it_points_every_label_at_the_response_with_more_votes(rows: list[Judgment]) -> None:
    for line in lines_of(rows):
        voters = [row for row in rows if row.pk in line["judgments"]]
        ranks = [(r.ranks[str(line["chosen_id"])], r.ranks[str(line["rejected_id"])]) for r in voters]
        share = sum(1.0 if chosen < rejected else 0.5 if chosen == rejected else 0.0 for chosen, rejected in ranks)
        assert line["label"] == pytest.approx(share / len(voters))
        assert line["label"] >= 0.5
        assert 0 <= line["margin"] <= 3
        assert (line["chosen"], line["rejected"]) == (TEXTS[line["chosen_id"]], TEXTS[line["rejected_id"]])


@given(judged(), st.integers(0, 25))
def test_it_never_moves_a_pair_to_the_other_side_when_data_grow(rows: list[Judgment], n: int) -> None:
    def sides(of: list[Judgment]) -> dict[str, bool]:
        return {line["pair"]: is_heldout(line["prompt_sha256"]) for line in lines_of(of)}

    few, many = sides(rows[:n]), sides(rows)
    assert few.items() <= many.items()


def test_it_holds_out_about_a_fifth_of_the_prompts() -> None:
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(5000)]
    assert 0.18 < sum(map(is_heldout, hashes)) / len(hashes) < 0.22


@pytest.mark.django_db
def test_it_writes_the_files_and_the_row() -> None:
    campaign = add_campaign()
    rows = add_judged(campaign, 6, 2)
    rows.append(judge(add_comparison(add_prompt(campaign)), "skip"))
    snapshot = freeze(campaign)
    files = {name: (snapshot.folder / name).read_bytes() for name in ("train.jsonl", "heldout.jsonl")}
    hashes = "".join(hashlib.sha256(data).hexdigest() for data in files.values())
    assert snapshot.sha256 == hashlib.sha256(hashes.encode()).hexdigest()
    assert [data.count(b"\n") for data in files.values()] == [6, 2]
    card = json.loads((snapshot.folder / "card.json").read_text())
    assert card["counts"] == snapshot.counts
    assert snapshot.counts["left_out"] == {"skip": 1}
    assert set(snapshot.judgments.values_list("id", flat=True)) == {row.pk for row in rows}
    assert not list(settings.SNAPSHOTS_DIR.glob(".new-*"))


@pytest.mark.django_db
def test_it_writes_what_the_trainer_reads() -> None:
    campaign = add_campaign()
    row = add_judged(campaign, 4)[0]
    line = json.loads((freeze(campaign).folder / "train.jsonl").read_text().splitlines()[0])
    chosen, rejected = row.order
    assert line["messages"] == row.comparison.prompt.messages
    assert (line["chosen_id"], line["rejected_id"]) == (chosen, rejected)
    assert (line["label"], line["weight"], line["margin"], line["is_new"]) == (1.0, 1.0, 2.0, True)
    assert line["judgments"] == [row.pk]


@pytest.mark.django_db
def test_it_finds_an_identical_snapshot_instead_of_making_another() -> None:
    campaign = add_campaign()
    add_judged(campaign, 5)
    first = freeze(campaign)
    judge(add_comparison(add_prompt(campaign)), "both_bad")  # teaches nothing: the content stays the same
    second = freeze(campaign)
    assert second == first
    assert Snapshot.objects.count() == 1
    assert second.judgments.count() == 6


@pytest.mark.django_db
def test_it_puts_votes_on_one_pair_together() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4)
    comparison = add_comparison(add_prompt(campaign))
    judge(comparison, chosen=0, strength=3)
    judge(comparison, chosen=0, strength=1)
    judge(comparison, chosen=1, strength=1)
    judge(comparison, "tie")
    snapshot = freeze(campaign)
    lines = [json.loads(x) for name in ("train", "heldout") for x in (snapshot.folder / f"{name}.jsonl").open()]
    line = next(line for line in lines if line["weight"] == 4)
    assert (line["label"], line["margin"]) == (2.5 / 4, 3 / 4)
    assert line["chosen_id"] == comparison.items.get(index=0).response_id


@pytest.mark.django_db
def test_it_says_how_many_judgments_are_missing() -> None:
    campaign = add_campaign()
    add_judged(campaign, 1, 2)
    judge(add_comparison(add_prompt(campaign)), "tie")
    with pytest.raises(NothingToTrain, match=r"There are 1 usable pairs.*label at least 3 more"):
        freeze(campaign)
    assert not Snapshot.objects.exists()
    assert not Judgment.objects.filter(frozen_at__isnull=False).exists()


@pytest.mark.django_db
def test_it_freezes_judgments_against_undo() -> None:
    campaign = add_campaign()
    row = add_judged(campaign, 4)[0]
    freeze(campaign)
    row.refresh_from_db()
    assert row.frozen_at is not None
    with pytest.raises(Frozen):
        judgments.undo(row, NOW)


@pytest.mark.django_db
def test_it_leaves_out_what_was_undone() -> None:
    campaign = add_campaign()
    rows = add_judged(campaign, 5)
    judgments.undo(rows[0], NOW)
    assert freeze(campaign).counts["judgments"] == 4


@pytest.mark.django_db(transaction=True)
def test_it_never_holds_a_judgment_that_is_undone_meanwhile() -> None:
    """Whatever the order of an undo and a freeze at the same moment: undone and not held, or held and frozen."""
    campaign = add_campaign()
    rows = add_judged(campaign, 12)

    def undo_all() -> None:
        for row in rows[:6]:
            with suppress(Frozen):
                judgments.undo(row, NOW)
        connection.close()

    thread = threading.Thread(target=undo_all)
    thread.start()
    snapshot = freeze(campaign)
    thread.join()
    held = set(snapshot.judgments.values_list("id", flat=True))
    assert held <= set(judgments.in_force().values_list("id", flat=True))
    assert snapshot.counts["judgments"] == len(held)


@pytest.mark.django_db
def test_it_calls_pairs_new_that_the_incumbent_has_not_seen() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4)
    adapter = Adapter.objects.create(name="adapter-1-abcdef", sha256="a" * 64, base_sha256="b" * 64)
    Run.objects.create(campaign=campaign, snapshot=freeze(campaign), adapter=adapter, status=Run.Status.SUCCEEDED)
    add_judged(campaign, 3)
    assert freeze(campaign, adapter).counts["new"] == 3
    assert freeze(campaign).counts["new"] == 7


@pytest.mark.django_db
def test_it_counts_what_waits() -> None:
    campaign = add_campaign()
    assert waiting(campaign) == 0
    add_judged(campaign, 4)
    judge(add_comparison(add_prompt(campaign)), "skip")
    assert waiting(campaign) == 4
    run = Run.objects.create(campaign=campaign, snapshot=freeze(campaign), status=Run.Status.FAILED)
    assert waiting(campaign) == 4
    Run.objects.filter(pk=run.pk).update(status=Run.Status.SUCCEEDED)
    assert waiting(campaign) == 0
    add_judged(campaign, 1)
    assert waiting(campaign) == 1
    assert waiting(campaign, since=NOW) == 0


@pytest.mark.django_db
def test_it_asks_the_database_as_often_for_many_judgments_as_for_few() -> None:
    def n_queries(n: int) -> int:
        campaign = add_campaign()
        add_judged(campaign, n)
        with CaptureQueriesContext(connection) as queries:
            freeze(campaign)
        return len(queries)

    assert n_queries(5) == n_queries(60)


@pytest.mark.django_db
def test_it_keeps_campaigns_apart() -> None:
    one, other = add_campaign(), add_campaign()
    add_judged(one, 4)
    add_judged(other, 5)
    assert freeze(one).counts["judgments"] == 4
    assert waiting(other) == 5


@pytest.mark.django_db
def test_it_gives_the_same_bytes_whoever_judged_first() -> None:
    """The same rows read in another order: pairs are sorted, votes follow the judgments' ids."""
    campaign = add_campaign()
    add_judged(campaign, 6)
    rows = list(Judgment.objects.select_related("comparison__prompt").order_by("id"))
    texts = {i: str(i) for row in rows for i in row.order}
    lines = [to_line(pair, texts, set()) for pair in derive_pairs(rows)]
    again = [to_line(pair, texts, set()) for pair in derive_pairs(reversed(rows))]
    assert list(snapshots._encode(lines)) == list(snapshots._encode(again))
