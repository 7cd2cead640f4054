"""Alignapp's own lines, and the tables that people make by hand: prompts, prompts with responses, judged pairs."""

from typing import Any

from labeling.errors import Invalid
from labeling.formats import records
from labeling.formats.cells import numbered, unpacked
from labeling.formats.records import MAX_RESPONSES, Record, Vote

KEYS = {"prompt", "messages", "responses", "domain", "judgments"}
SAID = {"verdict", "ranks", "strength", "annotator", "rationale"}
LAYOUT = "A line is an object with prompt or messages, responses, and optionally domain and judgments; nothing else."
RESPONSES = f"responses must be a list of 2 to {MAX_RESPONSES} objects with text and optionally generator."
ANNOTATORS = ("annotator", "judge", "user", "user_id", "worker_id", "annotator_id")
RATIONALES = ("rationale", "reason", "justification", "comment")
CHOICES = ("choice", "winner", "preference", "preferred", "better", "label", "verdict")


def matches_line(value: dict[str, Any]) -> bool:
    return set(value) <= KEYS and ("prompt" in value) != ("messages" in value) and "prompt_id" not in value


def read_line(value: dict[str, Any]) -> Record:
    """{"prompt": text or "messages": turns, "responses"?: [text or {"text", "generator"?}], "domain"?, "judgments"?:
    [{"ranks": [1, 2], "strength"?, "annotator"?, "rationale"?} or {"verdict": "both_bad", "good" or "bad", …}]}
    """
    if not set(value) <= KEYS:
        raise Invalid(LAYOUT)
    if ("prompt" in value) == ("messages" in value):
        raise Invalid("Give either prompt or messages.")
    answers, said = value.get("responses", []), value.get("judgments", [])
    if not isinstance(answers, list) or len(answers) > MAX_RESPONSES:
        raise Invalid(RESPONSES)
    if not isinstance(said, list):
        raise Invalid("judgments must be a list of objects with ranks or a verdict.")
    messages = value.get("prompt", value.get("messages"))
    return records.make(messages, [_answer(answer) for answer in answers], map(_vote, said), value.get("domain", ""))


def _answer(answer: object) -> tuple[object, object]:
    if isinstance(answer, str):
        return answer, ""
    if not isinstance(answer, dict) or not {"text"} <= set(answer) <= {"text", "generator"}:
        raise Invalid("A response is an object with text and optionally generator.")
    return answer["text"], answer.get("generator", "")


def _vote(said: object) -> Vote:
    if not isinstance(said, dict) or not set(said) <= SAID:
        raise Invalid(f"A judgment is an object with {', '.join(sorted(SAID))}; nothing else.")
    fields = {key: said[key] for key in ("strength", "annotator", "rationale") if said.get(key) is not None}
    if not all(isinstance(fields.get(key, ""), str) for key in ("annotator", "rationale")):
        raise Invalid("annotator and rationale must be texts.")
    if ranks := said.get("ranks"):
        if not isinstance(ranks, list):
            raise Invalid("ranks must be a list of numbers, one for each response, 1 for the best.")
        return records.ranked(ranks, **fields)
    return Vote(verdict=str(said.get("verdict", ""))[:20], **fields)


def matches_row(value: dict[str, Any]) -> bool:
    return bool({"prompt", "question", "instruction", "messages"} & set(value)) and all(
        isinstance(cell, str | int | float | bool) for cell in value.values()
    )


def read_row(value: dict[str, Any]) -> Record:
    """A row of a table: prompt (or messages as JSON), response_1 to response_4 (or _a, _b), generator_1 …, domain, and
    choice (1, 2, a, b, tie, both_bad) or rank_1 …, with strength, annotator and rationale. Other columns are left out.
    """
    prompt = next((value[key] for key in ("messages", "prompt", "question", "instruction") if key in value), None)
    answers = numbered(value, ("response", "answer", "completion", "output", "text"))
    authors = dict(zip(answers, numbered(value, ("generator", "model", "author")).values(), strict=False))
    return records.make(
        unpacked(prompt) if isinstance(prompt, str) and prompt.lstrip().startswith("[{") else prompt,
        [(text, authors.get(key, "")) for key, text in answers.items()],
        _row_votes(value, len(answers)),
        value.get("domain", ""),
    )


def _row_votes(value: dict[str, Any], n_answers: int) -> list[Vote]:
    fields: dict[str, Any] = {"annotator": records.name(_first(value, ANNOTATORS))}
    fields["rationale"] = str(_first(value, RATIONALES) or "")
    if value.get("strength"):
        fields["strength"] = _whole_number(value["strength"], "strength")
    if ranks := list(numbered(value, ("rank",)).values()):
        return [records.ranked([_whole_number(rank, "A rank") for rank in ranks], **fields)]
    choice = _first(value, CHOICES)
    if choice is None:
        return []
    if n_answers != 2:
        raise Invalid(
            f"A choice is one of two responses, but this row has {n_answers}. Write rank_1, rank_2 … for more."
        )
    side = records.find_side(choice)
    if side is None:
        raise Invalid(f"{str(choice)[:40]!r} names no choice. Write 1, 2, tie or both_bad.")
    return [records.sided(side, **fields)]


def _first(value: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((value[key] for key in keys if key in value), None)


def _whole_number(cell: object, what: str) -> int:
    try:
        return int(str(cell)[:20])
    except ValueError:
        raise Invalid(f"{what} must be a whole number, not {str(cell)[:40]!r}.") from None
