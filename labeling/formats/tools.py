"""Exports of Label Studio and Open WebUI. (Argilla's are in argilla.py, battles in arena.py.)

Sources: labelstud.io/guide/task_format, /tags/pairwise, /tags/ranker, /guide/export (JSON and JSON_MIN);
open-webui's backend/open_webui/models/feedbacks.py and its evaluations export.
"""

from collections.abc import Iterator
from typing import Any

from labeling.errors import Invalid
from labeling.formats import records
from labeling.formats.cells import PROMPTS, numbered, split, words
from labeling.formats.records import Record, Verdict, Vote

ANSWERS = ("response", "answer", "completion", "output", "generation", "reply", "summary", "text", "txt", "model")
ITEMS = ("items", "responses", "answers", "results", "options", "candidates")
ITEM_TEXT = ("body", "text", "html", "content", "title")
MIN_TYPES = {"selected": "pairwise", "ranker": "ranker", "choices": "choices"}
MAX_DEPTH = 500  # turns of a chat
MIN_KEYS = {"annotation_id", "annotator", "lead_time", "created_at", "updated_at"}


# --- Label Studio ----------------------------------------------------------------------------------------------------
def matches_label_studio(value: dict[str, Any]) -> bool:
    is_task = isinstance(value.get("data"), dict) and ("annotations" in value or "completions" in value)
    return is_task or len(MIN_KEYS & set(value)) >= 3


def read_label_studio(value: dict[str, Any]) -> Record:
    """A task with its annotations (JSON), or one annotation beside the task's data (JSON_MIN).

    An annotation counts by its Pairwise, Ranker (a list without buckets) or Choices tag; its TextArea is the rationale.
    Skipped ones (`was_cancelled`) say nothing. A task without any is a pair to compare.
    """
    data = value["data"] if isinstance(value.get("data"), dict) else value
    prompt = _prompt(data)
    answers = _items(data) or _fields(data)
    votes = list(_annotations(value, list(answers)))
    return records.make(prompt, [(text, "") for text in answers.values()], votes, data.get("domain", ""))


def _prompt(data: dict[str, Any]) -> object:
    for key in ("messages", *PROMPTS):
        if data.get(key):
            return data[key]
    raise Invalid(f"The task's data has none of {', '.join(PROMPTS)}, so it is not known what was asked.")


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    """The texts that were compared, by the key's name: response_1 and response_2, answer_a and answer_b …"""
    found = numbered({key: text for key, text in data.items() if isinstance(text, str)}, ANSWERS)
    if len(found) < 2:
        raise Invalid(
            "The task's data has no responses that are numbered like response_1 and response_2, and no items."
        )
    return found


def _items(data: dict[str, Any]) -> dict[str, Any]:
    """The texts of a List tag by their ids."""
    items: list[Any] = next((data[key] for key in ITEMS if isinstance(data.get(key), list)), [])
    if not all(isinstance(item, dict) and "id" in item for item in items):
        return {}
    return {str(item["id"]): next((item[key] for key in ITEM_TEXT if item.get(key)), "") for item in items}


def _annotations(value: dict[str, Any], keys: list[str]) -> Iterator[Vote]:
    given = value.get("annotations", value.get("completions"))
    if given is None:
        yield from _vote(_min_results(value), keys, value.get("annotator"))
        return
    for annotation in given if isinstance(given, list) else []:
        if not isinstance(annotation, dict):
            raise Invalid("annotations must be a list of objects.")
        if not annotation.get("was_cancelled") and isinstance(annotation.get("result"), list):
            yield from _vote(annotation["result"], keys, _who(annotation.get("completed_by")))


def _who(completed_by: object) -> object:
    """A user's id, or of a user as an object the e-mail address or the id."""
    return completed_by.get("email") or completed_by.get("id") if isinstance(completed_by, dict) else completed_by


def _min_results(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Results as JSON holds them, from JSON_MIN, which names them by their tags, leaves their type out, and writes a
    single choice or text as it is.
    """
    results = []
    for key, content in value.items():
        if (
            isinstance(content, str)
            and key not in PROMPTS
            and not split(key)
            and records.find_side(content) is not None
        ):
            results.append({"type": "choices", "value": {"choices": [content]}})
        for result in content if isinstance(content, list) else [content]:
            kind = next((kind for kind in MIN_TYPES if isinstance(result, dict) and kind in result), None)
            if kind:
                results.append({"type": MIN_TYPES[kind], "value": result})
    texts = [value[key] for key in ("rationale", "reason", "comment") if isinstance(value.get(key), str)]
    return [*results, {"type": "textarea", "value": {"text": texts}}]


def _vote(results: list[Any], keys: list[str], who: object) -> Iterator[Vote]:
    found = [result for result in results if isinstance(result, dict) and isinstance(result.get("value"), dict)]
    fields: dict[str, Any] = {"annotator": records.name(who), "rationale": _textarea(found)}
    for result in found:
        value, kind = result["value"], str(result.get("type", "")).lower()
        if kind == "ranker" and "ranker" in value:
            yield records.ranked(_order(value["ranker"], keys), **fields)
            return
        chosen = value.get("selected") if kind == "pairwise" else value.get("choices") if kind == "choices" else None
        side = records.find_side(chosen[0] if isinstance(chosen, list) and len(chosen) == 1 else chosen)
        if side is not None and len(keys) == 2:
            yield records.sided(side, **fields)
            return


def _textarea(results: list[dict[str, Any]]) -> str:
    texts = [result["value"].get("text") for result in results if str(result.get("type", "")).lower() == "textarea"]
    lines = [line for text in texts for line in (text if isinstance(text, list) else [text])]
    return "\n".join(line for line in lines if isinstance(line, str) and line)


def _order(ranker: object, keys: list[str]) -> list[int]:
    """The place of each item. Buckets are groups, not places; only one that holds every item is an order."""
    if isinstance(ranker, dict):
        ranker = next((ids for ids in ranker.values() if isinstance(ids, list) and len(ids) == len(keys)), None)
        if ranker is None:
            raise Invalid("The Ranker sorted into buckets, which does not say which response is better than which.")
    places = {str(item): place for place, item in enumerate(ranker if isinstance(ranker, list) else [], 1)}
    if set(places) != set(keys):
        raise Invalid("The Ranker's ids are not those of the task's items.")
    return [places[key] for key in keys]


# --- Open WebUI ------------------------------------------------------------------------------------------------------
def matches_open_webui(value: dict[str, Any]) -> bool:
    return {"data", "snapshot"} <= set(value) and isinstance(value["data"], dict) and "rating" in value["data"]


def read_open_webui(value: dict[str, Any]) -> Record:
    """One feedback: a thumb on the message `meta.message_id` of the chat in `snapshot`.

    `sibling_model_ids` is left out on purpose: Open WebUI counts a thumb up as a win over every sibling, so that of two
    liked answers the first "loses" (its issue 6643). A thumb says that this answer is good, and nothing of others.
    """
    data, meta = value["data"], value.get("meta")
    if not isinstance(data, dict):
        raise Invalid("data must be an object that holds the rating.")
    verdict = {"1": Verdict.GOOD, "-1": Verdict.BAD}.get(str(data.get("rating")))
    if verdict is None:
        raise Invalid(f"The rating is {str(data.get('rating'))[:20]!r}; only 1 and -1 are thumbs.")
    path = _path(value.get("snapshot"), meta if isinstance(meta, dict) else {})
    if path[-1]["role"] != "assistant":
        raise Invalid("The rated message is not the assistant's.")
    reasons = [text for text in (data.get("reason"), data.get("comment")) if isinstance(text, str) and text]
    vote = Vote(verdict, annotator=records.name(value.get("user_id")), rationale="\n".join(reasons))
    messages = [turn for turn in path[:-1] if turn["content"]]
    return records.make(messages, [(path[-1]["content"], data.get("model_id"))], [vote])


def _path(snapshot: object, meta: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns from the first one to the rated one, which may stand on any branch of the chat."""
    chat = snapshot.get("chat") if isinstance(snapshot, dict) else None
    chat = chat.get("chat", chat) if isinstance(chat, dict) else None
    if not isinstance(chat, dict):
        raise Invalid("There is no snapshot of the chat, so it is not known what was answered. Export with snapshots.")
    history = chat.get("history")
    by_id = history.get("messages") if isinstance(history, dict) else None
    rated = str(meta.get("message_id", ""))
    if isinstance(by_id, dict) and rated in by_id:
        return _ancestors(by_id, rated)
    listed, index = chat.get("messages"), meta.get("message_index")
    if isinstance(listed, list) and type(index) is int and 1 <= index <= len(listed):
        return [_turn(message) for message in listed[:index]]
    raise Invalid("The rated message is not in the snapshot of the chat.")


def _ancestors(by_id: dict[str, Any], rated: str) -> list[dict[str, Any]]:
    path: list[dict[str, Any]] = []
    key: object = rated
    while isinstance(key, str) and key in by_id:
        if len(path) >= MAX_DEPTH:
            raise Invalid(f"The chat has more than {MAX_DEPTH} turns, or runs in a circle.")
        path.append(_turn(by_id[key]))
        key = by_id[key].get("parentId")
    return path[::-1]


def _turn(message: object) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise Invalid("A message of the chat is no object.")
    return {"role": message.get("role"), "content": words(message.get("content"))}
