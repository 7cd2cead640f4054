"""What comes in from elsewhere: responses that other models wrote, to be compared here."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from django.db import transaction

from labeling import pairs, prompts, responses
from labeling.errors import Invalid
from labeling.models import Campaign, Comparison, Prompt, Response

BATCH = 200  # lines per transaction: on SQLite nobody who labels meanwhile waits long
KEYS = {"prompt", "messages", "responses", "domain"}
MAX_RESPONSES = 4


@dataclass(frozen=True)
class Line:
    """One line of an import that was checked. `texts` are (text, generator)."""

    number: int
    messages: prompts.Messages
    texts: list[tuple[str, str]]
    domain: str


@dataclass
class Report:
    """`added` and `duplicates` count comparisons; `refused` says which lines (from 1) were not taken, and why."""

    lines: int = 0
    added: int = 0
    duplicates: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def import_pairs(campaign: Campaign, lines: Iterable[object]) -> Report:
    """Takes what is right, reports what is not. Sending the same lines again changes nothing.

    A line: {"prompt": text or "messages": turns, "responses": [{"text", "generator"?}, 2 to 4], "domain"?}. Of more
    than two responses every pair is compared.
    """
    report = Report()
    checked = _checked(lines, report)
    while batch := list(itertools.islice(checked, BATCH)):
        _store(campaign, batch, report)
    return report


def _checked(lines: Iterable[object], report: Report) -> Iterator[Line]:
    for number, line in enumerate(lines, 1):
        report.lines = number
        try:
            yield _check(number, line)
        except Invalid as error:
            report.refused.append({"line": number, "why": str(error)})


def _check(number: int, line: object) -> Line:
    if not isinstance(line, dict) or not set(line) <= KEYS:
        raise Invalid("A line is an object with prompt or messages, responses, and optionally domain; nothing else.")
    if ("prompt" in line) == ("messages" in line):
        raise Invalid("Give either prompt or messages.")
    answers = line.get("responses")
    if not isinstance(answers, list) or not 2 <= len(answers) <= MAX_RESPONSES:
        raise Invalid(f"responses must be a list of 2 to {MAX_RESPONSES} objects with text and optionally generator.")
    texts = [_answer(answer) for answer in answers]
    if len({text for text, _ in texts}) < len(texts):
        raise Invalid("Two of the responses have the same text, so there is nothing to compare.")
    domain = line.get("domain", "")
    if not isinstance(domain, str):
        raise Invalid("domain must be a text.")
    return Line(number, prompts.canonical(line.get("prompt", line.get("messages"))), texts, domain)


def _answer(answer: object) -> tuple[str, str]:
    if not isinstance(answer, dict) or not {"text"} <= set(answer) <= {"text", "generator"}:
        raise Invalid("A response is an object with text and optionally generator.")
    draft = responses.draft(Prompt(), answer["text"])
    if draft is None:
        raise Invalid("A response is empty.")
    generator = answer.get("generator", "")
    if not isinstance(generator, str):
        raise Invalid("generator must be a text.")
    return draft.text, generator[:80].replace("\x00", "")


@transaction.atomic
def _store(campaign: Campaign, batch: list[Line], report: Report) -> None:
    items = [{"messages": line.messages, "domain": line.domain} for line in batch]
    rows = prompts.add_prompts(campaign, items, "import", wants_candidates=False)
    drafts = [
        responses.draft(prompt, text, source="import", generator=generator)
        for prompt, line in zip(rows, batch, strict=True)
        for text, generator in line.texts
    ]
    stored = iter(responses.store([draft for draft in drafts if draft]))
    groups: list[tuple[Response, ...]] = []
    for line in batch:
        answers = list(itertools.islice(stored, len(line.texts)))
        groups.extend(itertools.combinations(answers, 2))
    new = pairs.add_comparisons(campaign, groups, Comparison.Source.IMPORT)
    report.added += len(new)
    report.duplicates += len(groups) - len(new)
