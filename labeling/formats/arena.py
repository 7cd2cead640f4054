"""Battles: the Chatbot Arena data sets of LMSYS and LMArena, the Kaggle version of them, and compar:IA.

Sources: the data-set cards of lmsys/chatbot_arena_conversations, lmarena-ai/arena-human-preference-*,
and ministere-culture/comparia-votes.
"""

from typing import Any

from labeling.errors import Invalid
from labeling.formats import records
from labeling.formats.cells import shared_prompt, unpacked
from labeling.formats.records import BOTH_BAD, TIE, Record, Vote

WINNERS: dict[str, int | str] = {
    "model_a": 0, "model_b": 1, "tie": TIE, "tie (bothbad)": BOTH_BAD, "both_bad": BOTH_BAD, "bothbad": BOTH_BAD,
}  # fmt: skip


def matches(value: dict[str, Any]) -> bool:
    return {"conversation_a", "conversation_b"} <= set(value)


def read(value: dict[str, Any]) -> Record:
    """A battle of two conversations whose last turns are compared. Votes on whole conversations that part earlier are
    refused: they do not say which of two responses to one prompt is better.
    """
    messages, first, second = shared_prompt(value["conversation_a"], value["conversation_b"])
    answers = [(first, _model(value, "a")), (second, _model(value, "b"))]
    return records.make(messages, answers, _votes(value))


def _model(value: dict[str, Any], side: str) -> str:
    return records.name(value.get(f"model_{side}", value.get(f"model_{side}_name")))


def _votes(value: dict[str, Any]) -> list[Vote]:
    who = records.name(value.get("judge", value.get("visitor_id", value.get("evaluation_session_id"))))
    if "winner" in value:
        winner = str(value["winner"]).strip().lower()
        if winner not in WINNERS:
            raise Invalid(f"The winner is {winner[:40]!r}; it must be one of {', '.join(WINNERS)}.")
        return [records.sided(WINNERS[winner], annotator=who)]
    side = _comparia_side(value)
    return [] if side is None else [records.sided(side, annotator=who, rationale=_comment(value))]


def _comparia_side(value: dict[str, Any]) -> int | str | None:
    """compar:IA names the chosen model, or says that both are equal."""
    if str(value.get("both_equal", "")).lower() in ("true", "1"):
        return TIE
    chosen = records.name(value.get("chosen_model_name", value.get("chosen_model")))
    names = [_model(value, "a"), _model(value, "b")]
    if not chosen:
        return None
    if names.count(chosen) != 1:
        raise Invalid(f"The chosen model, {chosen!r}, is not one of the two.")
    return names.index(chosen)


def _comment(value: dict[str, Any]) -> str:
    comments = [value.get(f"conv_comments_{side}", value.get(f"comments_{side}")) for side in "ab"]
    return "\n".join(text for text in comments if isinstance(text, str))


def matches_kaggle(value: dict[str, Any]) -> bool:
    return {"prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"} <= set(value)


def read_kaggle(value: dict[str, Any]) -> Record:
    """The layout of the LMSYS competition: lists of turns as JSON in each cell, the winner in three columns of 0 and 1."""
    asked, first, second = (_one_turn(value[key]) for key in ("prompt", "response_a", "response_b"))
    flags: dict[int | str, str] = {0: "winner_model_a", 1: "winner_model_b", TIE: "winner_tie"}
    side = next(
        (side for side, key in flags.items() if str(value.get(key)).strip() in ("1", "1.0", "True", "true")), None
    )
    votes = [] if side is None else [records.sided(side)]
    return records.make(asked, [(first, _model(value, "a")), (second, _model(value, "b"))], votes)


def _one_turn(cell: object) -> object:
    turns = unpacked(cell)
    if isinstance(turns, list):
        if len(turns) != 1:
            raise Invalid(
                f"It has {len(turns)} turns, and one vote for all of them: only battles of one turn can be taken."
            )
        return turns[0]
    return turns
