"""The held-out pairs of an attempt's evaluation.json. The trainer is believed for margins only: which pairs there are, of which
prompts, and what people said of them stands in the snapshot.
"""

import json
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.utils.translation import gettext as _

from training import attempts
from training.guards import BrokenEvaluation
from training.lines import TIE


@dataclass(frozen=True)
class Held:
    """One held-out pair that people decided. Margins in nats, above zero where a version agrees with the chosen response."""

    prompt_sha256: str
    label: float  # P(chosen is better), by people
    margin: float
    incumbent_margin: float
    is_steered: bool  # the trainer's monitor looked at it, and may have rolled the run back by it


def read(folder: Path, snapshot: Path) -> tuple[list[Held], int]:
    """The decided pairs of an attempt on a snapshot (both folders), and the number of ties, which have no right answer.

    The trainer drops pairs of which both responses read the same after cutting, and says how many in result.json. Any other
    pair that is missing, unknown or there twice raises BrokenEvaluation.
    """
    lines, rows = _lines(snapshot), read_rows(folder)
    decided = {pair for pair, line in lines.items() if line["label"] != TIE}
    _check_pairs([row["pair"] for row in rows], lines.keys(), decided, _n_identical(folder))
    held = [_held(row, lines[row["pair"]]) for row in rows if row["pair"] in decided]
    return held, len(lines) - len(decided)


def without_steered(held: Sequence[Held], min_pairs: int, min_prompts: int) -> list[Held]:
    """The pairs that the monitor did not look at, where they are enough; else all of them.

    A run that was rolled back because some pairs were going wrong was selected on them: they flatter what came out.
    """
    rest = [pair for pair in held if not pair.is_steered]
    is_enough = len(rest) >= min_pairs and len({pair.prompt_sha256 for pair in rest}) >= min_prompts
    return rest if is_enough else list(held)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The held-out pairs as the trainer wrote them. Raises BrokenEvaluation."""
    rows = (attempts.read_json(folder / "evaluation.json") or {}).get("heldout")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _is_row(row) for row in rows):
        raise BrokenEvaluation(_("The trainer left no usable evaluation.json; its log says why."))
    return rows


def _is_row(row: dict[str, Any]) -> bool:
    margins = (row.get("margin"), row.get("incumbent_margin"))
    return (
        isinstance(row.get("pair"), str)
        and isinstance(row.get("prompt_sha256"), str)
        and all(isinstance(m, int | float) and math.isfinite(m) for m in margins)
        and isinstance(label := row.get("label", 1.0), int | float)
        and 0 <= label <= 1
    )


def _held(row: dict[str, Any], line: dict[str, Any]) -> Held:
    is_steered = row.get("steered") is True  # older trainers do not say
    return Held(line["prompt_sha256"], line["label"], row["margin"], row["incumbent_margin"], is_steered)


def _check_pairs(found: Sequence[str], known: Set[str], decided: Set[str], n_identical: int) -> None:
    if len(set(found)) < len(found):
        raise BrokenEvaluation(_("evaluation.json has a held-out pair twice; retry the run."))
    if unknown := set(found) - known:
        raise BrokenEvaluation(_("evaluation.json has a pair that nobody held out, %s; retry the run.") % min(unknown))
    if (n_missing := len(decided - set(found))) > n_identical:
        raise BrokenEvaluation(
            _("evaluation.json lacks %(n)d held-out pairs, of which %(identical)d may be left out; retry the run.")
            % {"n": n_missing, "identical": n_identical}
        )


def _n_identical(folder: Path) -> int:
    skipped = (attempts.read_json(folder / "result.json") or {}).get("skipped")
    n = skipped.get("heldout_identical") if isinstance(skipped, dict) else None
    return n if isinstance(n, int) else 0


def _lines(snapshot: Path) -> dict[str, dict[str, Any]]:
    """By pair."""
    with (snapshot / "heldout.jsonl").open() as file:
        return {line["pair"]: line for line in map(json.loads, file)}
