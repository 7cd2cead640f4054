"""What the trainer says of held-out pairs is matched with what the snapshot holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from training import attempts, margins
from training.guards import BrokenEvaluation


def held_out(n: int, **changes: Any) -> list[dict[str, Any]]:
    """Lines of heldout.jsonl: two pairs to a prompt."""
    return [{"pair": f"{i}-x", "prompt_sha256": f"prompt {i // 2}", "label": 0.8} | changes for i in range(n)]


def rows_of(lines: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """The trainer's rows: margins 1, 2, …"""
    rows = [{**line, "margin": float(i), "incumbent_margin": 0.0} for i, line in enumerate(lines, start=1)]
    return [row | changes for row in rows]


def leave(folder: Path, lines: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Path:
    (folder / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    attempts.write_json(folder / "evaluation.json", {"heldout": rows})
    return folder


def test_it_takes_margins_from_the_trainer_and_all_else_from_the_snapshot(tmp_path: Path) -> None:
    lines = held_out(4)
    folder = leave(tmp_path, lines, rows_of(lines, prompt_sha256="another", label=1.0)[::-1])
    held, n_ties = margins.read(folder, folder)
    assert [(pair.margin, pair.prompt_sha256, pair.label) for pair in held] == [
        (4.0, "prompt 1", 0.8), (3.0, "prompt 1", 0.8), (2.0, "prompt 0", 0.8), (1.0, "prompt 0", 0.8),
    ]  # fmt: skip
    assert n_ties == 0


def test_it_leaves_ties_out_whether_the_trainer_did_or_not(tmp_path: Path) -> None:
    lines = [*held_out(3), {"pair": "tie", "prompt_sha256": "p", "label": 0.5}]
    for rows in (rows_of(lines), rows_of(lines[:3])):
        folder = leave(tmp_path, lines, rows)
        held, n_ties = margins.read(folder, folder)
        assert (len(held), n_ties) == (3, 1)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (rows_of(held_out(5)), "nobody held out, 4-x"),
        (rows_of(held_out(4)) + rows_of(held_out(1)), "twice"),
        (rows_of(held_out(3)), "lacks 1 held-out pairs, of which 0 may"),
        ([], "lacks 4"),
    ],
)
def test_it_refuses_pairs_that_are_not_those_of_the_snapshot(
    tmp_path: Path, rows: list[dict[str, Any]], why: str
) -> None:
    folder = leave(tmp_path, held_out(4), rows)
    with pytest.raises(BrokenEvaluation, match=why):
        margins.read(folder, folder)


@pytest.mark.parametrize(
    ("skipped", "is_allowed"),
    [
        ({"heldout_identical": 1}, True),
        ({"heldout_identical": 0}, False),
        ({"heldout_identical": "1"}, False),
        (3, False),
    ],
)
def test_it_lets_the_trainer_drop_pairs_that_read_the_same(tmp_path: Path, skipped: Any, is_allowed: bool) -> None:
    folder = leave(tmp_path, held_out(4), rows_of(held_out(3)))
    attempts.write_json(folder / "result.json", {"skipped": skipped})
    if is_allowed:
        assert len(margins.read(folder, folder)[0]) == 3
    else:
        with pytest.raises(BrokenEvaluation):
            margins.read(folder, folder)


def test_it_leaves_out_what_the_monitor_looked_at_while_the_rest_is_enough(tmp_path: Path) -> None:
    lines = held_out(8)
    rows = [row | {"steered": i < 2} for i, row in enumerate(rows_of(lines))]
    held, _n_ties = margins.read(leave(tmp_path, lines, rows), tmp_path)
    assert [pair.is_steered for pair in held] == [True, True] + [False] * 6
    assert margins.without_steered(held, 6, 3) == held[2:]
    assert margins.without_steered(held, 7, 3) == held
    assert margins.without_steered(held, 6, 4) == held
