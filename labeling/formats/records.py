"""What every file format comes down to: a prompt, what was answered to it, and what people said of the answers.

A record is checked as it is made, so whatever made it, it can be stored. Reasons for a refusal are for the person who
uploaded the file: they say what is wrong in its terms.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from labeling import prompts, texts
from labeling.errors import Invalid
from labeling.models import Judgment

Verdict = Judgment.Verdict
MAX_RESPONSES = 4
MAX_NAME = 80
MAX_DOMAIN = 40
MAX_VOTES = 100  # of one record
MAX_RATIONALE = 20_000
STRENGTHS = (None, 1, 2, 3)
TIE, BOTH_BAD = "tie", "both_bad"
_NOT_A_LETTER = re.compile(r"[^a-z0-9]+")
# What tools and people write for a side; compared without letter case and punctuation.
_SIDES: dict[str, int | str] = {
    **dict.fromkeys(
        ("a", "left", "1", "first", "model a", "response a", "answer a", "response 1", "left is better"), 0
    ),
    **dict.fromkeys(("b", "right", "2", "second", "model b", "response b", "answer b", "response 2"), 1),
    **dict.fromkeys(("right is better", "option b", "b is better", "text2", "answer2", "answer 2"), 1),
    **dict.fromkeys(("option a", "a is better", "text1", "answer1", "answer 1"), 0),
    **dict.fromkeys(("tie", "equal", "both", "same", "both equal", "draw", "no preference"), TIE),
    **dict.fromkeys(("both bad", "bothbad", "tie bothbad", "neither", "none"), BOTH_BAD),
}


@dataclass(frozen=True)
class Vote:
    """What one person said elsewhere. `ranks` stands in the order of the record's answers, 1 best, equal ranks tie;
    it is empty for both_bad, good and bad. `strength` is 1 slightly, 2 better, 3 much better.
    """

    verdict: str
    ranks: tuple[int, ...] = ()
    strength: int | None = None
    annotator: str = ""
    rationale: str = ""


@dataclass(frozen=True)
class Answer:
    """A response and who is said to have written it."""

    text: str
    generator: str = ""


@dataclass(frozen=True)
class Record:
    """No answer: a prompt that wants some. One: for thumbs. Two to MAX_RESPONSES: to be compared, or compared already."""

    messages: prompts.Messages
    answers: tuple[Answer, ...] = ()
    votes: tuple[Vote, ...] = ()
    domain: str = ""
    number: int = 0


@dataclass(frozen=True)
class Refusal:
    """A record that cannot be taken. `number` counts from 1: lines of JSONL, rows under a header, elements of a list."""

    number: int
    why: str
    excerpt: str = ""


def make(
    messages: object,
    answers: Sequence[tuple[object, object]] = (),
    votes: Iterable[Vote] = (),
    domain: object = "",
) -> Record:
    """A checked record. `answers` are (text, generator) as found in a file. Raises Invalid."""
    if len(answers) > MAX_RESPONSES:
        raise Invalid(f"There are {len(answers)} responses; at most {MAX_RESPONSES} can be compared on one screen.")
    written = tuple(_answer(text, generator) for text, generator in answers)
    if len({answer.text for answer in written}) < len(written):
        raise Invalid("Two of the responses have the same text, so there is nothing to compare.")
    if domain is not None and not isinstance(domain, str):
        raise Invalid("domain must be a text.")
    said = tuple(_checked(vote, len(written)) for vote in votes)
    if len(said) > MAX_VOTES:
        raise Invalid(f"There are {len(said)} judgments of this record; at most {MAX_VOTES} are taken.")
    for turn in messages if isinstance(messages, list) else [messages]:
        _whole(turn.get("content") if isinstance(turn, dict) else turn)
    return Record(prompts.canonical(messages), written, said, texts.clean(domain or "")[:MAX_DOMAIN])


def _answer(text: object, generator: object) -> Answer:
    cleaned = texts.clean(_whole(text))
    if not cleaned:
        raise Invalid("A response is empty.")
    if generator is not None and not isinstance(generator, str):
        raise Invalid("generator must be a text.")
    return Answer(cleaned, name(generator))


def _whole(text: object) -> object:
    """Refuses what a reader could not decode: it would be stored as question marks, and nobody would know."""
    if isinstance(text, str) and not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if "\udc80" <= text[error.start] <= "\udcff":
                raise Invalid("It holds bytes that are not UTF-8. Save the file as UTF-8.") from error
            raise Invalid(
                "It holds half of a character (a lone surrogate), so the text was cut in the middle."
            ) from error
    return text


def name(value: object) -> str:
    """A model's or a person's name as it is stored: one short line."""
    text = "" if value is None else str(value)
    return " ".join(texts.clean(text[:1000]).split())[:MAX_NAME]


def rationale(value: object) -> str:
    """The words that go with a judgment; "" when there are none. Raises Invalid when they are too many."""
    words = texts.clean(value) if isinstance(value, str) else ""
    if len(words) > MAX_RATIONALE:
        raise Invalid(f"The rationale has {len(words):,} characters; at most {MAX_RATIONALE:,} are taken.")
    return words


def _checked(vote: Vote, n_answers: int) -> Vote:
    if vote.verdict in (Verdict.PREFERENCE, Verdict.TIE):
        if n_answers < 2 or len(vote.ranks) != n_answers:
            raise Invalid(f"A judgment ranks {len(vote.ranks)} responses, but there are {n_answers}.")
        if any(type(rank) is not int or not 1 <= rank <= MAX_RESPONSES for rank in vote.ranks):
            raise Invalid(f"Ranks are whole numbers from 1 (best) to {MAX_RESPONSES}.")
    elif vote.verdict == Verdict.BOTH_BAD and n_answers < 2:
        raise Invalid("“Both bad” needs two responses.")
    elif vote.verdict in (Verdict.GOOD, Verdict.BAD) and n_answers != 1:
        raise Invalid("A thumb judges one response, so there must be exactly one.")
    elif vote.verdict not in (Verdict.BOTH_BAD, Verdict.GOOD, Verdict.BAD):
        raise Invalid("A judgment's verdict is preference, tie, both_bad, good or bad.")
    if vote.strength not in STRENGTHS or isinstance(vote.strength, bool):
        raise Invalid("strength must be 1, 2 or 3.")
    strength = vote.strength if vote.verdict == Verdict.PREFERENCE else None
    return replace(vote, strength=strength, annotator=name(vote.annotator), rationale=rationale(vote.rationale))


def ranked(order: Sequence[float], **fields: object) -> Vote:
    """A vote from numbers of which smaller is better, equal ones tying; they become ranks without gaps from 1."""
    if any(isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x) for x in order):
        raise Invalid("Ranks and ratings must be numbers.")
    places = {value: place for place, value in enumerate(sorted(set(order)), 1)}
    ranks = tuple(places[value] for value in order)
    verdict = Verdict.TIE if len(places) == 1 else Verdict.PREFERENCE
    return Vote(verdict=verdict, ranks=ranks, **fields)  # type: ignore[arg-type]


def sided(side: int | str, **fields: object) -> Vote:
    """A vote on two responses: `side` is 0, 1, TIE or BOTH_BAD, as `find_side` returns it."""
    if side == BOTH_BAD:
        return Vote(verdict=Verdict.BOTH_BAD, **fields)  # type: ignore[arg-type]
    ranks = (1, 2) if side == 0 else (2, 1) if side == 1 else (1, 1)
    return ranked(ranks, **fields)


def find_side(value: object) -> int | str | None:
    """Which side a word names: 0 (first, left, a), 1, TIE or BOTH_BAD; None when it names none."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return None
    return _SIDES.get(_NOT_A_LETTER.sub(" ", str(value)[:40].lower()).strip())
