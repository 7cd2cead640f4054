"""Exports of Argilla: 2.x (`dataset.records.to_json`, `to_list(flatten=True)`, `to_datasets`) and 1.x feedback
data sets (JSON, and the rows that it pushed to the Hub).

All of them are brought into one shape, fields and answers by question, and then read alike. Source:
docs.argilla.io (records, exports) and argilla-io/argilla, argilla/src/argilla/records.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from labeling.errors import Invalid
from labeling.formats import records
from labeling.formats.cells import PROMPTS, numbered, split, turns, unpacked
from labeling.formats.records import Record, Vote
from labeling.formats.tools import ANSWERS

SUFFIX = ".responses"
RATIONALES = ("rationale", "reason", "why", "justif", "comment", "explan")
COUNTED = ("submitted", None)  # drafts and discarded responses are not


@dataclass
class Shape:
    """What all exports come down to: the record's fields, and per annotator the answer to each question."""

    fields: dict[str, Any]
    answers: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))


def matches(value: dict[str, Any]) -> bool:
    is_nested = isinstance(value.get("fields"), dict) and "responses" in value
    is_flat = any(key.endswith(SUFFIX) for key in value) or "_server_id" in value
    return is_nested or is_flat or ("external_id" in value and "metadata" in value)


def read(value: dict[str, Any]) -> Record:
    """A ranking, a choice of one side, or a rating for each response becomes a judgment of each annotator; of several
    such questions the first that was answered counts, rankings before ratings. Text answers become the rationale.
    """
    shape = _shape(value)
    prompt = next((shape.fields[key] for key in ("messages", "chat", *PROMPTS) if shape.fields.get(key)), None)
    if prompt is None:
        raise Invalid(f"The record has no field {', '.join(PROMPTS)}, so it is not known what was asked.")
    texts = numbered({key: text for key, text in shape.fields.items() if isinstance(text, str)}, ANSWERS)
    votes = [vote for who, said in shape.answers.items() for vote in _vote(said, list(texts), who)]
    messages = turns(prompt) if isinstance(unpacked(prompt), list) else prompt
    return records.make(messages, [(text, "") for text in texts.values()], votes)


def _shape(value: dict[str, Any]) -> Shape:
    if not isinstance(value.get("fields"), dict):
        return _flat(value)
    shape, given = Shape(value["fields"]), value.get("responses")
    if isinstance(given, list):  # 1.x: one entry per annotator
        for entry in given:
            said = entry.get("values") if isinstance(entry, dict) else None
            if isinstance(said, dict) and entry.get("status") in COUNTED:
                for question, answer in said.items():
                    shape.answers[_who(entry)][question] = _value(answer)
    elif isinstance(given, dict):  # 2.x: one list per question
        for question, answers in given.items():
            for entry in answers if isinstance(answers, list) else []:
                if isinstance(entry, dict) and entry.get("status") in COUNTED:
                    shape.answers[_who(entry)][question] = _value(entry)
    return shape


def _flat(value: dict[str, Any]) -> Shape:
    """Fields and questions side by side. 2.x: "q.responses", "q.responses.users", "q.responses.status"; 1.x: "q" holds
    user_id, value and status, as a list of objects or as an object of lists.
    """
    shape = Shape({})
    for key, cell in value.items():
        content = unpacked(cell)
        if key.endswith(SUFFIX):
            columns = (content, unpacked(value.get(f"{key}.users")), unpacked(value.get(f"{key}.status")))
            _take(shape, key.removesuffix(SUFFIX), *columns)
        elif isinstance(content, dict) and {"user_id", "value"} <= set(content):
            _take(shape, key, content["value"], content["user_id"], content.get("status"))
        elif isinstance(content, list) and content and all(isinstance(x, dict) and "value" in x for x in content):
            for entry in content:
                _take(shape, key, [entry["value"]], [entry.get("user_id")], [entry.get("status")])
        else:
            shape.fields[key] = cell
    return shape


def _take(shape: Shape, question: str, values: object, users: object, statuses: object) -> None:
    if not isinstance(values, list):
        return
    users = users if isinstance(users, list) else []
    statuses = statuses if isinstance(statuses, list) else []
    for index, value in enumerate(values[: records.MAX_VOTES + 1]):
        who = users[index] if index < len(users) else None
        if (statuses[index] if index < len(statuses) else None) in COUNTED:
            shape.answers[records.name(who)][question] = value


def _who(entry: dict[str, Any]) -> str:
    return records.name(entry.get("user_id"))


def _value(answer: object) -> object:
    return answer.get("value") if isinstance(answer, dict) else answer


def _vote(said: dict[str, Any], keys: list[str], who: str) -> Iterator[Vote]:
    reasons = [text for name, text in said.items() if isinstance(text, str) and _is_rationale(name)]
    fields: dict[str, Any] = {"annotator": who, "rationale": "\n\n".join(reasons)}
    for answer in said.values():
        if isinstance(answer, list | dict) and (order := _ranking(answer, keys)):
            yield records.ranked(order, **fields)
            return
    for name, answer in said.items():
        side = None if _is_rationale(name) or not isinstance(answer, str) else _side(answer, keys)
        if side is not None:
            yield records.sided(side, **fields)
            return
    if ratings := _ratings(said, keys):
        yield records.ranked([-rating for rating in ratings], **fields)


def _is_rationale(question: str) -> bool:
    return any(word in question.lower() for word in RATIONALES)


def _side(answer: str, keys: list[str]) -> int | str | None:
    if len(keys) != 2:
        return None
    return keys.index(answer) if answer in keys else records.find_side(answer)


def _ranking(answer: list[Any] | dict[str, Any], keys: list[str]) -> list[Any]:
    """The rank of each response, from [{"value": "response_1", "rank": 1}, …], the same as lists in an object, or a list
    of names with the best first; [] when it is no ranking of these responses.
    """
    if isinstance(answer, dict):
        names, places = answer.get("value"), answer.get("rank")
        if not isinstance(names, list) or not isinstance(places, list):
            return []
        ranks = dict(zip(map(str, names), places, strict=False))
    elif all(isinstance(entry, dict) for entry in answer):
        ranks = {str(entry.get("value")): entry.get("rank") for entry in answer}
    else:
        ranks = {str(entry): place for place, entry in enumerate(answer, 1)}
    by_place = {split(name) or name: rank for name, rank in ranks.items()}
    found = [ranks.get(key, by_place.get(split(key) or key)) for key in keys]
    return found if keys and None not in found else []


def _ratings(said: dict[str, Any], keys: list[str]) -> list[float]:
    """The rating of each response, from questions numbered like the responses: rating_1 for response_1, or
    generation-0-rating for generation-0; [] unless each has one.
    """
    numbers = {name: value for name, value in said.items() if isinstance(value, int | float)}
    found = []
    for key in keys:
        place = split(key)
        same = [v for name, v in numbers.items() if name.startswith(key) or (place and _place(name) == place[1])]
        found += same[:1]
    return found if len(found) == len(keys) else []


def _place(question: str) -> str | None:
    parts = split(question)
    return parts[1] if parts else None
