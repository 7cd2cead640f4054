"""The folder between supervisor and trainer: what was cut off by a crash is not there yet."""

import json
import os
from pathlib import Path

import pytest
from django.conf import settings

from serving.models import Adapter
from tests.training.rows import NOW, add_campaign, add_judged
from training import attempts
from training.models import Run
from training.snapshots import freeze


@pytest.fixture
def run() -> Run:
    campaign = add_campaign()
    add_judged(campaign, 4)
    base = Adapter.objects.create(name="base-b", sha256="b" * 64, base_sha256="b" * 64, is_base=True)
    return Run.objects.create(
        campaign=campaign, method="dpo", params={"beta": 0.1}, snapshot=freeze(campaign), incumbent=base
    )


def add_checkpoint(run: Run, attempt: int, step: int) -> Path:
    folder = attempts.folder(run.pk, attempt)
    if not folder.exists():
        attempts.prepare(run, attempt, 1, NOW)
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    return path


@pytest.mark.django_db
def test_it_writes_the_config_that_the_contract_names(run: Run) -> None:
    config = json.loads((attempts.prepare(run, 2, 5, NOW) / "config.json").read_text())
    assert run.snapshot
    assert config == {
        "run": run.pk,
        "attempt": 2,
        "token": 5,
        "method": "dpo",
        "params": {"beta": 0.1},
        "model": str(settings.MODEL),
        "snapshot": str(run.snapshot.folder),
        "snapshot_sha256": run.snapshot.sha256,
        "cache": str(settings.ARTIFACTS_DIR / "cache" / "reference"),
        "incumbent": None,  # the base: nothing to continue or to compare with
        "incumbent_name": None,
        "reward_model": None,
        "resume": None,
        "budget_halvings": 0,
        "threads": settings.TRAIN_THREADS,
        "nice": settings.TRAIN_NICE,
    }


@pytest.mark.django_db
def test_it_asks_for_smaller_passes_after_every_loss(run: Run) -> None:
    run.n_lost = 2
    config = json.loads((attempts.prepare(run, 3, 3, NOW) / "config.json").read_text())
    assert config["budget_halvings"] == 2


@pytest.mark.django_db
def test_it_names_the_incumbent_unless_it_is_the_base(run: Run) -> None:
    run.incumbent = Adapter(name="adapter-3-abcdef")
    config = json.loads((attempts.prepare(run, 1, 1, NOW) / "config.json").read_text())
    assert config["incumbent"] == str(settings.ADAPTERS_DIR / "adapter-3-abcdef")
    assert config["incumbent_name"] == "adapter-3-abcdef"


@pytest.mark.django_db
def test_it_resumes_from_the_checkpoint_with_most_steps_of_any_attempt(run: Run) -> None:
    newest = add_checkpoint(run, 1, 20)
    add_checkpoint(run, 2, 5)
    add_checkpoint(run, 2, 40).rename(attempts.folder(run.pk, 2) / "checkpoint-40.tmp")  # cut off while written
    config = json.loads((attempts.prepare(run, 3, 3, NOW) / "config.json").read_text())
    assert config["resume"] == str(newest)


@pytest.mark.django_db
def test_it_resumes_a_retry_only_from_a_run_that_did_not_fail_by_itself(run: Run) -> None:
    newest = add_checkpoint(run, 1, 20)
    Run.objects.filter(pk=run.pk).update(status=Run.Status.CANCELLED)
    again = Run.objects.create(
        campaign=run.campaign, method="dpo", params=run.params, snapshot=run.snapshot, retry_of=run
    )
    assert attempts.newest_checkpoint(again) == newest
    attempts.write_json(attempts.folder(run.pk, 1) / "error.json", {"message": "The loss is no number."})
    assert attempts.newest_checkpoint(again) is None


@pytest.mark.django_db
def test_it_finds_the_attempt_that_was_done(run: Run) -> None:
    folder = attempts.prepare(run, 1, 1, NOW)
    attempts.write_json(folder / "result.json", {})
    assert attempts.finished(run) is None  # without an adapter it is no result
    (folder / "adapter").mkdir()
    assert attempts.finished(run) == folder
    run.params = {"beta": 0.2}  # another run of the same number, from before the database was restored
    assert attempts.finished(run) is None


@pytest.mark.django_db
def test_it_finds_a_reward_model_that_was_done(run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(method="reward_model")
    run.refresh_from_db()
    folder = attempts.prepare(run, 1, 1, NOW)
    attempts.write_json(folder / "result.json", {})
    (folder / "adapter").mkdir()
    assert attempts.finished(run) is None  # it leaves another folder
    (folder / "reward_model").mkdir()
    assert attempts.finished(run) == folder


@pytest.mark.django_db
def test_it_goes_on_from_no_attempt_on_other_judgments(run: Run) -> None:
    folder = add_checkpoint(run, 1, 20).parent
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.7}\n')
    assert attempts.metrics_so_far(run, 20)
    add_judged(run.campaign, 1)
    run.snapshot = freeze(run.campaign)
    assert attempts.newest_checkpoint(run) is None
    assert attempts.metrics_so_far(run, 20) == []


@pytest.mark.django_db
def test_it_moves_a_stranger_of_the_same_number_out_of_the_way(run: Run) -> None:
    before = attempts.prepare(run, 1, 1, NOW)
    attempts.write_json(before / "result.json", {})
    after = attempts.prepare(run, 1, 1, NOW)
    assert after == before
    assert sorted(path.name for path in after.iterdir()) == ["config.json", "lease.json"]
    assert [len(list(path.iterdir())) for path in run.folder.glob("stale-*")] == [3]


def test_it_reads_whole_lines_of_metrics_only(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 0.5}\nnonsense\n{"step": 2, "lo')
    rows, offset = attempts.read_metrics(tmp_path, 0)
    assert rows == [{"step": 1, "loss": 0.5}]
    with file.open("ab") as end:
        end.write(b'ss": NaN}\n[3]\n')
    rows, offset = attempts.read_metrics(tmp_path, offset)
    assert rows == [{"step": 2, "loss": None}]  # a database takes no NaN
    assert offset == os.path.getsize(file)
    assert attempts.read_metrics(tmp_path / "nowhere", 7) == ([], 7)


def test_it_takes_out_of_the_trainers_texts_what_no_database_stores(tmp_path: Path) -> None:
    text = r'{"message": "it wrote \u0000\u0000 and \ud800", "phase": "a\u0000b", "rows": [{"a\u0000": ["\\u0000", 1, null]}]}'
    for name in ("error.json", "status.json", "evaluation.json"):
        (tmp_path / name).write_text(text)
    (tmp_path / "metrics.jsonl").write_text(r'{"step": 1, "alarms": [{"message": "\u0000!"}]}' + "\n")
    assert attempts.read_error(tmp_path) == "it wrote  and ?"
    assert attempts.read_status(tmp_path).phase == "ab"
    assert (attempts.read_json(tmp_path / "evaluation.json") or {})["rows"] == [{"a": [r"\u0000", 1, None]}]
    assert attempts.read_metrics(tmp_path, 0)[0] == [{"step": 1, "alarms": [{"message": "!"}]}]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"phase": 3, "step": -1, "n_steps": "x", "seconds_left": NaN}'])
def test_it_takes_a_broken_status_for_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    status = attempts.read_status(tmp_path)
    assert (status.step, status.n_steps, status.seconds_left) == (0, 0, None)


def test_it_reads_the_systems_figures_and_nothing_that_is_none(tmp_path: Path) -> None:
    figures = '"rss_mb": 812, "cpu_percent": 187.5, "gpu_mb": NaN, "n_threads": 1%s, "rss_peak_mb": "x", "odd": 1'
    (tmp_path / "status.json").write_text("{" + figures % ("0" * 400) + "}")
    assert attempts.read_status(tmp_path).system == {"rss_mb": 812.0, "cpu_percent": 187.5}


def test_it_shows_the_end_of_the_log(tmp_path: Path) -> None:
    assert attempts.read_log_tail(tmp_path) == ""
    (tmp_path / "log.txt").write_bytes(b"x" * 20_000 + b"\xff the end")
    tail = attempts.read_log_tail(tmp_path)
    assert tail.endswith("� the end")
    assert len(tail.encode("utf-8", "replace")) <= attempts.LOG_TAIL_BYTES + 2


def test_it_replaces_files_as_a_whole(tmp_path: Path) -> None:
    attempts.write_lease(tmp_path, 4, NOW)
    assert attempts.read_json(tmp_path / "lease.json") == {"token": 4, "until": NOW.timestamp()}
    assert [path.name for path in tmp_path.iterdir()] == ["lease.json"]


@pytest.mark.django_db
def test_it_deletes_the_checkpoints_of_every_attempt_and_nothing_else(run: Run) -> None:
    folder = attempts.prepare(run, 1, 1, NOW)
    add_checkpoint(run, 1, 20)
    add_checkpoint(run, 2, 40)
    attempts.delete_checkpoints(run)
    assert attempts.newest_checkpoint(run) is None
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "lease.json"]


@pytest.mark.django_db
def test_it_puts_the_metrics_of_attempts_together_the_later_one_first(run: Run) -> None:
    for attempt, steps in ((2, (3, 4)), (10, (4, 5, 6)), (1, (1, 2, 3))):
        folder = attempts.prepare(run, attempt, 1, NOW)
        lines = [json.dumps({"step": step, "attempt": attempt}) + "\n" for step in steps]
        (folder / "metrics.jsonl").write_text("".join(lines))
    found = [(row["step"], row["attempt"]) for row in attempts.metrics_so_far(run, 5)]
    assert found == [(1, 1), (2, 1), (3, 2), (4, 10), (5, 10)]
