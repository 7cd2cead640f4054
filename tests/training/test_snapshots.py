"""Judgments become files: every judgment counted once, every pair on a side that it never leaves."""

import hashlib
import json
import random
import threading
import uuid
from collections import Counter
from contextlib import suppress

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from labeling import choices, judgments
from labeling.errors import Frozen
from labeling.models import Campaign, Judgment, Prompt, Response
from serving.models import Adapter
from tests.training.rows import (
    NOW,
    add_annotator,
    add_campaign,
    add_comparison,
    add_judged,
    add_prompt,
    judge,
)
from training import cards, lines, snapshots
from training.lines import Row, Sources, Written
from training.models import Run, Snapshot
from training.snapshots import NothingToTrain, freeze, waiting
from training.split import is_heldout

VERDICTS = ("preference", "tie", "both_bad", "skip", "good", "bad")
TEXTS = {i: f"response {i}" for i in range(200)}
SOURCES = Sources({i: Written(text, "adapter-1-abcdef") for i, text in TEXTS.items()}, {i: f"a{i}" for i in range(9)})
FILES = ("train", "heldout", "unpaired", "unpaired.heldout", "edits", "edits.heldout")


@st.composite
def judged(draw: st.DrawFn) -> list[Row]:
    """Judgments of up to 12 comparisons of 1 to 4 responses; several of one comparison, of every verdict."""
    rows = []
    for pk in range(draw(st.integers(0, 25))):
        c = draw(st.integers(0, 11))
        verdict = draw(st.sampled_from(VERDICTS))
        ids = range(c * 4, c * 4 + 1 + c % 4)
        ranks = {str(i): 1 if verdict == "tie" else draw(st.integers(1, 3)) for i in ids}
        row = Row(
            pk=pk,
            comparison_id=c,
            annotator_id=draw(st.integers(1, 3)),
            purpose="label",
            verdict=verdict,
            ranks=ranks if verdict in ("preference", "tie") else {},
            strength=draw(st.sampled_from([None, 1, 2, 3])) if verdict == "preference" else None,
            order=list(ids)[: 1 if verdict in ("good", "bad") else None],
            edit_id=None,
            guidelines_version=1,
            created_at=NOW,
            prompt_sha256=hashlib.sha256(str(c % 5).encode()).hexdigest(),
            messages=[],
        )
        rows.append(row)
    return rows


def lines_of(rows: list[Row]) -> list[dict]:
    return lines.make(rows, SOURCES).pairs


def read(snapshot: Snapshot, name: str) -> list[dict]:
    return [json.loads(line) for line in (snapshot.folder / f"{name}.jsonl").open()]


@given(judged(), st.sets(st.integers(0, 4)))
def test_it_accounts_for_every_judgment_exactly_once(rows: list[Row], leaving: set[int]) -> None:
    gone = {hashlib.sha256(str(i).encode()).hexdigest() for i in leaving}
    made = lines.make(rows, SOURCES, gone)
    counts = cards.count(rows, made, gone)
    assert counts["used"] + sum(counts["left_out"].values()) == counts["judgments"] == len(rows)
    assert counts["used"] == len(made.used)
    assert counts["left_out"].get("skip", 0) == sum(row.verdict == "skip" for row in rows)
    assert counts["train"] + counts["heldout"] == counts["pairs"] == len(made.pairs)
    assert not gone & {line["prompt_sha256"] for line in [*made.pairs, *made.unpaired, *made.edits]}


@given(judged())
def test_it_makes_every_pair_of_every_ranking_once(rows: list[Row]) -> None:
    pairs = lines_of(rows)
    assert len({line["pair"] for line in pairs}) == len(pairs)
    votes: Counter[str] = Counter()
    for row in rows:
        if lines.is_usable(row):
            n = len(row.ranks)
            votes[str(row.comparison_id)] += n * (n - 1) // 2
    assert sum(line["weight"] for line in pairs) == sum(votes.values())


@given(judged())
def test_it_points_every_label_at_the_response_with_more_votes(rows: list[Row]) -> None:
    for line in lines_of(rows):
        voters = [row for row in rows if row.pk in line["judgments"]]
        ranks = [(r.ranks[str(line["chosen_id"])], r.ranks[str(line["rejected_id"])]) for r in voters]
        votes = [1.0 if chosen < rejected else 0.5 if chosen == rejected else 0.0 for chosen, rejected in ranks]
        assert line["label"] == pytest.approx(sum(votes) / len(voters))
        assert line["label"] >= 0.5
        assert 0 <= line["margin"] <= 3
        assert line["tie_share"] == pytest.approx(votes.count(0.5) / len(votes))
        assert line["agreement"] == pytest.approx(votes.count(0.5 if line["label"] == 0.5 else 1.0) / len(votes))
        assert (line["chosen"], line["rejected"]) == (TEXTS[line["chosen_id"]], TEXTS[line["rejected_id"]])
        assert sorted(line["annotators"]) == sorted(f"a{row.annotator_id}" for row in voters)


@given(judged())
def test_it_calls_a_response_good_or_bad_by_those_who_judged_it_alone(rows: list[Row]) -> None:
    balance: Counter[int] = Counter()
    for row in rows:
        if row.verdict in ("good", "bad", "both_bad"):
            for response in row.order:
                balance[response] += 1 if row.verdict == "good" else -1
    unpaired = lines.make(rows, SOURCES).unpaired
    said = {line["response_id"]: line["weight"] if line["desirable"] else -line["weight"] for line in unpaired}
    assert said == {response: n for response, n in balance.items() if n}


@given(judged(), st.integers(0, 25))
def test_it_never_moves_a_pair_to_the_other_side_when_data_grow(rows: list[Row], n: int) -> None:
    def sides(of: list[Row]) -> dict[str, bool]:
        return {line["pair"]: is_heldout(line["prompt_sha256"]) for line in lines_of(of)}

    few, many = sides(rows[:n]), sides(rows)
    assert few.items() <= many.items()


@given(judged(), st.randoms())
def test_it_makes_the_same_lines_in_whatever_order_rows_are_read(rows: list[Row], chance: random.Random) -> None:
    shuffled = chance.sample(rows, len(rows))
    made, again = lines.make(rows, SOURCES), lines.make(shuffled, SOURCES)
    assert list(snapshots._encode(made.pairs)) == list(snapshots._encode(again.pairs))
    assert made == again


def test_it_holds_out_about_a_fifth_of_the_prompts() -> None:
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(5000)]
    assert 0.18 < sum(map(is_heldout, hashes)) / len(hashes) < 0.22


@pytest.mark.django_db
def test_it_writes_the_files_and_the_row() -> None:
    campaign = add_campaign()
    rows = add_judged(campaign, 6, 2)
    rows.append(judge(add_comparison(add_prompt(campaign)), "skip"))
    snapshot = freeze(campaign)
    files = [(snapshot.folder / f"{name}.jsonl").read_bytes() for name in FILES]
    hashes = "".join(hashlib.sha256(data).hexdigest() for data in files)
    assert snapshot.sha256 == hashlib.sha256(f"{hashes}null".encode()).hexdigest()
    assert [data.count(b"\n") for data in files] == [6, 2, 0, 0, 0, 0]
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
    judge(add_comparison(add_prompt(campaign)), "skip")  # teaches nothing: the content stays the same
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
    [line] = [line for line in read(snapshot, "train") + read(snapshot, "heldout") if line["weight"] == 4]
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
def test_it_writes_single_responses_and_edits_to_files_of_their_own() -> None:
    campaign = add_campaign(allow_edit=True)
    add_judged(campaign, 4)
    bad = judge(add_comparison(on_side(campaign, heldout=True)), "both_bad")
    comparison = add_comparison(on_side(campaign, heldout=False))
    order = [item.response_id for item in comparison.items.order_by("index")]
    choice = choices.Choice("preference", order, chosen=order[0], strength=1, edit="Better by hand.")
    improved = judgments.add(comparison, add_annotator(), uuid.uuid4(), choice, NOW)
    snapshot = freeze(campaign)
    unpaired = read(snapshot, "unpaired.heldout")
    assert [(line["response_id"], line["desirable"], line["weight"]) for line in unpaired] == [
        (response, False, 1.0) for response in sorted(bad.order)
    ]
    [edit] = read(snapshot, "edits")
    assert (edit["response"], edit["response_id"], edit["original_id"]) == (
        "Better by hand.",
        improved.edit_id,
        order[0],
    )
    assert edit["judgments"] == [improved.pk]
    assert read(snapshot, "unpaired") == read(snapshot, "edits.heldout") == []
    assert (snapshot.counts["unpaired"], snapshot.counts["edits"]) == (2, 1)


@pytest.mark.django_db
def test_it_asks_for_as_many_lines_as_the_method_reads() -> None:
    campaign = add_campaign()
    for _ in range(4):
        judge(add_comparison(on_side(campaign, heldout=False)), "both_bad")
    with pytest.raises(NothingToTrain, match="There are 0 usable"):
        freeze(campaign)
    assert freeze(campaign, source="unpaired").counts["unpaired"] == 8


@pytest.mark.django_db
def test_it_says_which_versions_wrote_and_who_judged_by_number() -> None:
    campaign = add_campaign()
    rows = add_judged(campaign, 4)
    adapter = Adapter.objects.create(name="adapter-1-abcdef", sha256="a" * 64, base_sha256="b" * 64)
    Response.objects.filter(pk=rows[0].order[0]).update(adapter=adapter)
    Response.objects.filter(pk=rows[0].order[1]).update(generator="somebody-else")
    judge(rows[0].comparison)
    line = next(line for line in read(freeze(campaign), "train") if rows[0].pk in line["judgments"])
    assert (line["chosen_version"], line["rejected_version"]) == ("adapter-1-abcdef", "somebody-else")
    assert line["annotators"] == ["a1", "a2"]


@pytest.mark.django_db
def test_it_leaves_out_what_is_nearly_the_same_as_a_prompt_on_the_other_side() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4)
    first, second = twins(campaign)
    earlier = judge(add_comparison(second))
    before = freeze(campaign)
    later = judge(add_comparison(first))
    after = freeze(campaign)
    sides = [{pk for line in read(after, name) for pk in line["judgments"]} for name in ("train", "heldout")]
    assert earlier.pk in sides[is_heldout(second.sha256)]
    assert later.pk not in sides[0] | sides[1]
    assert after.counts["left_out"] == {"near_duplicate": 1}
    assert after.sha256 == before.sha256  # what came first stays, so nothing is other than before


@pytest.mark.django_db
def test_it_keeps_a_prompt_out_though_the_first_ones_judgments_were_taken_back() -> None:
    campaign = add_campaign()
    add_judged(campaign, 4)
    first, second = twins(campaign)
    earlier = judge(add_comparison(first))
    judge(add_comparison(second))
    judgments.undo(earlier, NOW)
    assert freeze(campaign).counts["left_out"] == {"near_duplicate": 1}


def on_side(campaign: Campaign, *, heldout: bool) -> Prompt:
    while is_heldout((prompt := add_prompt(campaign)).sha256) is not heldout:
        pass
    return prompt


def twins(campaign: Campaign) -> tuple[Prompt, Prompt]:
    """Nearly the same prompts on different sides."""
    text = "Explain in plain words how a suspension bridge carries the weight of cars and trains{}"
    first = add_prompt(campaign, text.format("."))
    for mark in ("!", "?", "..", "!!", "??", " !", " ?", "...", "?!", "!?", ";", ":", " .", " ..", "!!!"):
        second = add_prompt(campaign, text.format(mark))
        if is_heldout(first.sha256) != is_heldout(second.sha256):
            return first, second
    raise AssertionError("all on one side")
