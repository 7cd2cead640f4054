"""Reads files of many tools into records. A format is one entry of FORMATS: what it is called, how its first value is
recognised, and how a value becomes a record.

`read` streams: however large the file, one record is in memory at a time (a batch of 64 rows for Parquet).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from labeling.errors import Invalid
from labeling.formats import arena, argilla, files, own, tools, trl
from labeling.formats.files import Unreadable
from labeling.formats.records import Record, Refusal

__all__ = ["FORMATS", "Format", "Record", "Refusal", "Unreadable", "detect", "read"]
AUTO = "auto"
N_TRIED = 20  # values that detection looks at


@dataclass(frozen=True)
class Format:
    """`about` says in one sentence what such a file looks like, for the person who chooses it."""

    label: str | Promise
    about: str | Promise
    matches: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any]], Record]


# In the order in which they are tried: the most particular first.
FORMATS: dict[str, Format] = {
    "label_studio": Format(
        _("Label Studio"),
        _("Export as JSON or JSON-MIN of a project with a Pairwise, Ranker or Choices tag."),
        tools.matches_label_studio,
        tools.read_label_studio,
    ),
    "open_webui": Format(
        _("Open WebUI"),
        _("Feedback export of the evaluations page. A thumb judges one response; siblings are not taken as losers."),
        tools.matches_open_webui,
        tools.read_open_webui,
    ),
    "argilla": Format(
        _("Argilla"),
        _("Records of version 2 (to_json, to_list, to_datasets) or feedback records of version 1."),
        argilla.matches,
        argilla.read,
    ),
    "arena": Format(
        _("Arena battles"),
        _("LMSYS and LMArena battles or compar:IA votes: conversation_a, conversation_b and who won."),
        arena.matches,
        arena.read,
    ),
    "arena_table": Format(
        _("Arena battles, Kaggle layout"),
        _("prompt, response_a, response_b, winner_model_a, winner_model_b, winner_tie."),
        arena.matches_kaggle,
        arena.read_kaggle,
    ),
    "preference": Format(
        _("Preference pairs (TRL, hh-rlhf)"),
        _("chosen and rejected, with a prompt or beginning alike; texts, conversations, or “Human: … Assistant: …”."),
        trl.matches_preference,
        trl.read_preference,
    ),
    "unpaired": Format(
        _("Unpaired preference (KTO)"),
        _("prompt, completion and label (true or false)."),
        trl.matches_unpaired,
        trl.read_unpaired,
    ),
    "lines": Format(
        _("Alignapp"),
        _("prompt or messages, with responses and judgments if there are any."),
        own.matches_line,
        own.read_line,
    ),
    "table": Format(
        _("Table"),
        _("Columns prompt, response_1 and response_2 (or _a, _b), and choice (1, 2, tie, both_bad) if it was judged."),
        own.matches_row,
        own.read_row,
    ),
}


def detect(path: Path) -> str:
    """The name of the format, by the first values. Raises Unreadable when none fits."""
    for _number, value in zip(range(N_TRIED), files.values(path), strict=False):
        if not isinstance(value, Refusal) and isinstance(value[1], dict):
            for name, known in FORMATS.items():
                if known.matches(value[1]):
                    return name
    raise Unreadable(
        "No known format fits the first records of this file. Choose its format in the list, or rename its fields: "
        "prompt and responses (or response_1 and response_2), or chosen and rejected, are enough."
    )


def read(path: Path, name: str, *, after: int = 0) -> Iterator[Record | Refusal]:
    """Every record of the file that stands after number `after`, or why it cannot be taken. Raises Unreadable."""
    known = FORMATS[name]
    for value in files.values(path):
        if isinstance(value, Refusal):
            if value.number > after:
                yield value
        elif value[0] > after:
            yield _read(known, *value)


def _read(known: Format, number: int, value: object) -> Record | Refusal:
    if not isinstance(value, dict):
        return Refusal(
            number, f"An object is wanted here, not {type(value).__name__}.", files.excerpt(str(value)[:500])
        )
    try:
        return replace(known.read(value), number=number)
    except Invalid as error:
        return Refusal(number, str(error), _excerpt(value))
    except KeyError as error:
        return Refusal(number, f"The field {str(error)[:60]} is missing.", _excerpt(value))


def _excerpt(value: dict[str, Any]) -> str:
    """Enough to find the record by: its first text that says something."""
    shown = next((cell for cell in value.values() if isinstance(cell, str) and len(cell) > 3), str(list(value)[:10]))
    return files.excerpt(shown)
