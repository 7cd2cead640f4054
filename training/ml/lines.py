"""The lines of a snapshot's files, as `docs/architecture.md` has them: read and checked."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from training.ml.errors import TrainingError

TIE = 0.5
T = TypeVar("T")


@dataclass(frozen=True)
class PairLine:
    """Two responses and how many prefer which."""

    id: str
    prompt_sha256: str
    messages: list[dict[str, str]]
    chosen: str
    rejected: str
    label: float
    weight: float
    margin: float
    tie_share: float
    is_new: bool

    @property
    def texts(self) -> tuple[str, ...]:
        return self.chosen, self.rejected


@dataclass(frozen=True)
class SingleLine:
    """One response that people found good or bad, or wrote."""

    id: str
    prompt_sha256: str
    messages: list[dict[str, str]]
    response: str
    is_good: bool
    weight: float
    is_new: bool

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.response,)


def pairs(path: Path) -> list[PairLine]:
    """train.jsonl or heldout.jsonl. Raises TrainingError naming the file and line that cannot be used."""
    return list(_read(path, _pair))


def singles(path: Path) -> list[SingleLine]:
    """unpaired.jsonl or edits.jsonl; a snapshot without such a file has none. Raises TrainingError as `pairs` does."""
    return list(_read(path, _single)) if path.exists() else []


def card(snapshot: Path) -> dict[str, Any]:
    """The snapshot's card; empty where there is none."""
    try:
        found = json.loads((snapshot / "card.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"card.json of the snapshot cannot be read ({error}); start a new run.", "snapshot"
        ) from None
    return found if isinstance(found, dict) else {}


def _read(path: Path, parse: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(
            f"{path.name} of the snapshot cannot be read ({error}); start a new run.", "snapshot"
        ) from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield parse(_object(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
                where = f"Line {number} of {path.name} in the snapshot is damaged ({reason})"
                raise TrainingError(f"{where}; start a new run, which makes a new snapshot.", "snapshot") from None


def _object(line: Any) -> dict[str, Any]:
    if not isinstance(line, dict):
        raise TypeError("not a JSON object")
    messages = line["messages"]
    if not isinstance(messages, list) or not messages:
        raise TypeError("messages is not a list of messages")
    for message in messages:
        _text(message["role"])
        _text(message["content"])
    return line


def _pair(line: dict[str, Any]) -> PairLine:
    label = _number(line, "label", 0, 1)
    return PairLine(
        id=str(line["pair"]),
        prompt_sha256=str(line["prompt_sha256"]),
        messages=line["messages"],
        chosen=_text(line["chosen"]),
        rejected=_text(line["rejected"]),
        label=label,
        weight=_number(line, "weight", 0),
        margin=_number(line, "margin", -3, 3, default=0.0),
        tie_share=_number(line, "tie_share", 0, 1, default=float(label == TIE)),
        is_new=bool(line.get("is_new", True)),
    )


def _single(line: dict[str, Any]) -> SingleLine:
    """An edit has neither verdict nor weight: who writes a response finds it good."""
    is_good = line.get("desirable", True)
    if not isinstance(is_good, bool):
        raise TypeError("desirable is neither true nor false")
    return SingleLine(
        id=f"response-{line['response_id']}",
        prompt_sha256=str(line["prompt_sha256"]),
        messages=line["messages"],
        response=_text(line["response"]),
        is_good=is_good,
        weight=_number(line, "weight", 0, default=1.0),
        is_new=bool(line.get("is_new", True)),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is not a string")
    return value


def _number(
    line: dict[str, Any], name: str, low: float, high: float = float("inf"), default: float | None = None
) -> float:
    value = float(line[name] if default is None else line.get(name, default))
    if not low <= value <= high or value == float("inf"):
        raise ValueError(f"{name} must be between {low} and {high}, and finite")
    return value
