"""Files on their way in: stored once, whatever interrupts it, with a reason for what was refused."""

import json
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from celery.signals import before_task_publish
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError
from django.utils import timezone

from labeling import exchange, intake, judgments, tasks, votes
from labeling.errors import Invalid
from labeling.formats.records import Record
from labeling.models import Campaign, Comparison, Import, ImportProblem, Judgment, Prompt, Response
from tests.labeling import make

pytestmark = pytest.mark.django_db
SAMPLES = Path(__file__).parent / "formats"
NOW = make.NOW


@pytest.fixture(autouse=True)
def _own_folder(settings, tmp_path):
    settings.ARTIFACTS_DIR = tmp_path


def upload(campaign: Campaign, content: str | bytes, name: str = "x.jsonl", user: User | None = None) -> Import:
    raw = content if isinstance(content, bytes) else content.encode()
    user = user or make.person()
    return exchange.upload(campaign, user, uuid.uuid4(), SimpleUploadedFile(name, raw), NOW)


def run(campaign: Campaign, content: str | bytes, on_warning: str = "keep", user: User | None = None) -> Import:
    row = upload(campaign, content, user=user)
    exchange.start(row, row.format, on_warning)
    assert exchange.run(row.pk, timezone.now()) is False
    row.refresh_from_db()
    return row


def lines(n: int, **fields) -> str:
    judged = [{"ranks": [1, 2], "annotator": "ida"}]
    rows = [{"prompt": f"Why {i}?", "responses": ["So.", "Thus."], "judgments": judged, **fields} for i in range(n)]
    return "\n".join(map(json.dumps, rows))


def rows_of(campaign: Campaign) -> dict[str, object]:
    """All that an import stores, without ids and times."""
    prompts = campaign.prompts.order_by("sha256")
    return {
        "prompts": list(prompts.values_list("sha256", "domain", "warnings", "candidates_state")),
        "responses": list(
            Response.objects.filter(prompt__in=prompts)
            .order_by("prompt__sha256", "sha256")
            .values_list("text", "generator", "warnings")
        ),
        "comparisons": list(
            campaign.comparisons.order_by("prompt__sha256").values_list("n_judgments", "is_open", "is_disputed")
        ),
        "judgments": list(
            Judgment.objects.filter(comparison__campaign=campaign)
            .order_by("client_key")
            .values_list("annotator__first_name", "verdict", "strength", "reason", "purpose")
        ),
    }


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.iterdir()))
def test_it_imports_a_file_of_every_format(name):
    campaign = make.campaign()
    row = run(campaign, (SAMPLES / name).read_bytes())
    assert (row.state, row.message) == ("done", "")
    assert row.n_added
    assert row.n_added + row.n_duplicates + row.n_refused == row.position
    assert row.problems.filter(is_refused=True).count() == row.n_refused
    assert not exchange.path(row).exists()
    before = rows_of(campaign)
    again = run(campaign, (SAMPLES / name).read_bytes())
    assert (again.n_added, again.n_duplicates) == (0, row.n_added + row.n_duplicates)
    assert rows_of(campaign) == before


def test_it_stores_what_people_said_elsewhere_as_theirs():
    campaign = make.campaign()
    run(campaign, (SAMPLES / "lines.jsonl").read_bytes())
    whale = Judgment.objects.filter(comparison__prompt__messages__1__content="Is a whale a fish?").order_by("pk")
    ida, otto = whale
    first, second = ida.order
    assert (ida.ranks, ida.strength, ida.reason) == ({str(first): 1, str(second): 2}, 3, "Whales breathe air.")
    assert (otto.verdict, otto.ranks) == ("tie", {str(first): 1, str(second): 1})
    assert {judgment.purpose for judgment in Judgment.objects.all()} == {"import"}
    assert (ida.annotator.first_name, otto.annotator.first_name) == ("ida", "otto")
    assert not ida.annotator.is_active
    assert not ida.annotator.has_usable_password()
    assert not ida.annotator.memberships.exists()
    assert ida.comparison.n_judgments == 2
    assert not ida.comparison.is_open


def test_it_leaves_prompts_to_the_engine_and_pairs_to_people():
    campaign = make.campaign(n_candidates=4)
    run(campaign, (SAMPLES / "lines.jsonl").read_bytes())
    assert Prompt.objects.get(domain="garden").candidates_state == "wanted"
    [open_one] = Comparison.objects.filter(is_open=True)
    assert open_one.prompt.messages[0]["content"] == "Name a prime number."


def test_it_never_opens_a_single_response_for_comparison():
    campaign = make.campaign(overlap=3)
    run(campaign, '{"prompt": "Why?", "completion": "So.", "label": true}')
    judgments.reopen(campaign)
    assert [(x.n_judgments, x.is_open) for x in Comparison.objects.all()] == [(1, False)]


def test_it_makes_one_annotator_per_campaign_and_name():
    cats, dogs = make.campaign("cats"), make.campaign("dogs")
    for campaign in (cats, dogs, cats):
        run(campaign, lines(2))
    names = User.objects.filter(username__startswith="import-").order_by("pk").values_list("username", "first_name")
    assert [(name.split("-")[1], first) for name, first in names] == [(str(cats.pk), "ida"), (str(dogs.pk), "ida")]


def test_it_keeps_every_vote_of_people_without_a_name_once():
    campaign, line = make.campaign(), {"prompt": "Why?", "responses": ["a", "b"]}
    said = json.dumps({**line, "judgments": [{"ranks": [1, 2]}, {"ranks": [1, 2]}, {"ranks": [2, 1]}]})
    run(campaign, said)
    run(campaign, said)
    assert Comparison.objects.get().n_judgments == 3
    assert Comparison.objects.get().is_disputed
    [(label, weight)] = votes.soft_labels(campaign).values()
    assert (round(max(label, 1 - label), 3), weight) == (0.667, 3)  # three people's, not the last one's alone


def test_it_compares_all_of_a_line_at_once_where_the_screen_shows_as_many():
    line = json.dumps({"prompt": "Why?", "responses": ["a", "b", "c"]})
    pairs, groups = make.campaign("pairs"), make.campaign("groups", group_size=3)
    run(pairs, line)
    run(groups, line)
    assert (pairs.comparisons.count(), groups.comparisons.count()) == (3, 1)


def test_it_reports_what_was_refused_by_line():
    row = run(make.campaign(), f"{lines(1)}\nnonsense\n{lines(1)}\n[]\n")
    assert (row.n_added, row.n_duplicates, row.n_refused) == (1, 1, 2)
    assert [(p.line, p.is_refused) for p in row.problems.all()] == [(2, True), (4, True)]
    assert row.problems.all()[0].excerpt == "nonsense"


def test_it_warns_of_what_screening_finds_and_refuses_it_on_request():
    leak = lines(1, responses=["I am ChatGPT, a model.", "Write to maria.kowalska@gmail.com."])
    kept = run(make.campaign("kept"), f"{leak}\n{lines(2)}")
    assert (kept.n_added, kept.n_warnings, kept.n_refused) == (3 - kept.n_duplicates, 1, 0)
    [problem] = kept.problems.all()
    assert (problem.line, problem.is_refused) == (1, False)
    assert "not blind" in problem.why
    assert "private" in problem.why
    found = Response.objects.exclude(warnings=[]).order_by("pk").values_list("warnings", flat=True)
    assert list(found) == [["identity_leak"], ["private_data"]]
    refused = run(make.campaign("refused"), f"{leak}\n{lines(2)}", on_warning="refuse")
    assert (refused.n_warnings, refused.n_refused, refused.problems.get().is_refused) == (0, 1, True)
    assert not Response.objects.filter(prompt__campaign__slug="refused").exclude(warnings=[]).exists()


@pytest.mark.parametrize("n_batches", range(5))
def test_it_goes_on_where_it_was_interrupted_and_doubles_nothing(n_batches, monkeypatch):
    """Killed after any batch, or in the middle of one: the rows are those of an import that nobody disturbed."""
    monkeypatch.setattr(exchange, "BATCH", 3)
    content = f"{lines(7)}\nbroken\n{lines(4, domain='again')}"
    expected = run(make.campaign("whole"), content)
    campaign = make.campaign("killed")
    row = upload(campaign, content)
    exchange.start(row, row.format, "keep")
    for _ in range(n_batches):
        assert exchange.run(row.pk, timezone.now(), seconds=0) in (True, False)
    _kill_in_the_middle_of_a_batch(row, monkeypatch)
    later = timezone.now() + exchange.STALE * 2
    assert exchange.run(row.pk, later) is False
    row.refresh_from_db()
    counts = ("state", "position", "n_added", "n_duplicates", "n_refused", "n_warnings")
    assert [getattr(row, name) for name in counts] == [getattr(expected, name) for name in counts]
    assert rows_of(campaign) == rows_of(expected.campaign)
    assert list(row.problems.values_list("line", "why")) == list(expected.problems.values_list("line", "why"))


def _kill_in_the_middle_of_a_batch(row: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database goes away after the judgments of a batch were written, before its position was committed."""

    def end(*args: object) -> None:
        raise OperationalError("the server was killed")

    with monkeypatch.context() as patch:
        patch.setattr(ImportProblem.objects, "bulk_create", end)
        try:
            exchange.run(row.pk, timezone.now())
        except OperationalError as error:
            assert "killed" in str(error)  # noqa: PT017 - an import that is over is not killed


def test_it_lets_go_after_a_while_and_is_sent_again(monkeypatch):
    monkeypatch.setattr(exchange, "BATCH", 2)
    row = upload(make.campaign(), lines(5))
    exchange.start(row, row.format, "keep")
    assert exchange.run(row.pk, timezone.now(), seconds=0) is True
    row.refresh_from_db()
    assert (row.state, row.position, row.claimed_at) == ("running", 2, None)
    tasks.run_import(row.pk)
    row.refresh_from_db()
    assert (row.state, row.n_added) == ("done", 5)


def test_it_leaves_an_import_to_the_worker_that_has_it():
    row = upload(make.campaign(), lines(1))
    assert exchange.run(row.pk, timezone.now()) is False  # not started yet
    exchange.start(row, row.format, "keep")
    Import.objects.filter(pk=row.pk).update(state="running", claimed_at=timezone.now())
    assert exchange.run(row.pk, timezone.now()) is False
    assert not Prompt.objects.exists()


def test_it_stores_nothing_when_another_worker_went_on_meanwhile():
    row = upload(make.campaign(), lines(2))
    exchange.start(row, row.format, "keep")
    Import.objects.filter(pk=row.pk).update(state="running", position=1)
    stale = Import.objects.get(pk=row.pk)
    stale.position = 0
    batch = exchange.preview(row, "lines")
    assert exchange._take(stale, batch) is False
    assert not Prompt.objects.exists()


def test_it_says_why_a_file_cannot_be_read():
    campaign = make.campaign()
    with pytest.raises(Invalid, match="empty"):
        upload(campaign, b"")
    with pytest.raises(Invalid, match="packed"):
        upload(campaign, b"PK\x03\x04")
    assert not Import.objects.exists()
    assert not list((exchange.path(Import(pk=1)).parent).iterdir())


def test_it_says_when_a_file_is_too_large(monkeypatch):
    monkeypatch.setattr(exchange, "MAX_FILE_BYTES", 10)
    with pytest.raises(Invalid, match="Split it"):
        upload(make.campaign(), lines(1))


def test_it_fails_with_a_reason_when_the_file_is_gone():
    row = upload(make.campaign(), lines(1))
    exchange.start(row, row.format, "keep")
    exchange.path(row).unlink()
    assert exchange.run(row.pk, timezone.now()) is False
    row.refresh_from_db()
    assert row.state == "failed"
    assert "Upload it again" in row.message


def test_it_never_names_a_file_as_the_person_does():
    row = upload(make.campaign(), lines(1), name="..\\..\\etc/passwd")
    assert row.filename == "passwd"
    assert exchange.path(row).name == str(row.pk)
    exchange.discard(row)
    assert not exchange.path(row).exists()


def test_it_takes_an_upload_that_is_sent_again_for_the_same():
    campaign, user, key = make.campaign(), make.person(), uuid.uuid4()
    first, second = (
        exchange.upload(campaign, user, key, SimpleUploadedFile("x", lines(1).encode()), NOW) for _ in range(2)
    )
    assert first.pk == second.pk


def test_it_is_started_and_discarded_only_once():
    row = upload(make.campaign(), lines(1))
    exchange.start(row, row.format, "keep")
    with pytest.raises(Invalid, match="started already"):
        exchange.start(row, row.format, "keep")
    with pytest.raises(Invalid, match="started already"):
        exchange.discard(row)


def test_it_nudges_what_nobody_is_at_and_forgets_what_nobody_started():
    idle, started = upload(make.campaign("a"), lines(1)), upload(make.campaign("b"), lines(1))
    exchange.start(started, started.format, "keep")
    sent: list[tuple[str, list[int]]] = []

    def note(sender: str, body: tuple, **_signal: object) -> None:
        sent.append((sender, body[0]))

    before_task_publish.connect(note)
    exchange.sweep(NOW + exchange.ABANDONED + timedelta(hours=1))
    before_task_publish.disconnect(note)
    assert sent == [("labeling.tasks.run_import", [started.pk])]
    assert not Import.objects.filter(pk=idle.pk).exists()


def test_it_keeps_so_many_problems_and_counts_all(monkeypatch):
    monkeypatch.setattr(exchange, "MAX_PROBLEMS", 3)
    row = run(make.campaign(), lines(1) + "\nx" * 10)
    assert (row.problems.count(), row.n_refused) == (3, 10)


def test_it_asks_for_a_batch_at_once_and_not_for_each_record(django_assert_max_num_queries):
    """On SQLite one statement inserts at most 999 values, so a few more are needed for more records."""
    row = upload(make.campaign(), lines(200))
    records = [item for item in exchange.preview(row, "lines", 200) if isinstance(item, Record)]
    with django_assert_max_num_queries(60):
        intake.store(row.campaign, records)
