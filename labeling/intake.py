"""Records from files and from the API become rows: prompts, responses, comparisons and judgments, each once."""

import hashlib
import itertools
import uuid
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone

from labeling import judgments, pairs, prompts, responses, screening
from labeling.formats.records import Record, Vote
from labeling.models import Campaign, Comparison, Judgment, Prompt, Purpose, Response

NAMESPACE = uuid.UUID("6f1f0c1e-53f5-4c35-9d8e-8a7a35c7c2b4")  # for client keys that follow from the content
UNNAMED = "unnamed"


@dataclass
class Stored:
    """`n_new` and `n_old` count comparisons; `added` says of each record whether anything of it is new."""

    n_new: int = 0
    n_old: int = 0
    added: list[bool] = field(default_factory=list)


class _Known:
    """What is stored already; what came in the same batch before is known, too."""

    def __init__(self, stored: Iterable[Hashable]) -> None:
        self.keys = set(stored)

    def has_new(self, keys: Iterable[Hashable]) -> bool:
        """Whether one of these is new; all are known afterwards."""
        new = set(keys) - self.keys
        self.keys |= new
        return bool(new)


def warnings(record: Record) -> list[str]:
    """Codes of labeling.screening for the prompt and the answers together."""
    found = [screening.screen_response(answer.text) for answer in record.answers]
    codes = {code for codes in (_of_prompt(record), *found) for code in codes}
    return [code for code in (screening.IDENTITY_LEAK, screening.ERROR_BANNER, screening.PRIVATE_DATA) if code in codes]


def _of_prompt(record: Record) -> list[str]:
    return screening.screen_prompt("\n\n".join(turn["content"] for turn in record.messages))


@transaction.atomic
def store(campaign: Campaign, records: list[Record]) -> Stored:
    """Stores a batch: all of it or nothing. What is there already, by content, is not stored again."""
    asked, is_asked = _prompts(campaign, records)
    answered, is_answered = _responses(records, asked)
    groups = [_groups(campaign, record, rows) for record, rows in zip(records, answered, strict=True)]
    known, n_new = _compare(campaign, list(itertools.chain.from_iterable(groups)))
    is_compared = [known.has_new(map(pairs.content_key, own)) for own in groups]
    is_judged = _judge(campaign, records, answered)
    signs = zip(is_asked, is_answered, is_compared, is_judged, strict=True)
    n_groups = sum(map(len, groups))
    return Stored(n_new, n_groups - n_new, [any(sign) for sign in signs])


def _prompts(campaign: Campaign, records: list[Record]) -> tuple[list[Prompt], list[bool]]:
    """A row per record; those without answers wait for the engine's."""
    hashes = [prompts.digest(record.messages) for record in records]
    known = _Known(campaign.prompts.filter(sha256__in=hashes).values_list("sha256", flat=True))
    is_new = [known.has_new([sha256]) for sha256 in hashes]
    rows: dict[str, Prompt] = {}
    for wants in (False, True):
        own = [record for record in records if wants is not bool(record.answers)]
        items = [{"messages": r.messages, "domain": r.domain, "warnings": _of_prompt(r)} for r in own]
        added = prompts.add_prompts(campaign, items, "import", wants_candidates=wants) if items else []
        rows |= {row.sha256: row for row in added}
    return [rows[sha256] for sha256 in hashes], is_new


def _responses(records: list[Record], asked: list[Prompt]) -> tuple[list[list[Response]], list[bool]]:
    drafts = [
        [
            responses.draft(
                prompt,
                answer.text,
                source="import",
                generator=answer.generator,
                warnings=screening.screen_response(answer.text),
            )
            for answer in record.answers
        ]
        for record, prompt in zip(records, asked, strict=True)
    ]
    own = [[draft for draft in of_record if draft] for of_record in drafts]
    flat = list(itertools.chain.from_iterable(own))
    stored = Response.objects.filter(prompt__in={prompt.pk for prompt in asked}).values_list("prompt_id", "sha256")
    known = _Known(stored)
    is_new = [known.has_new((draft.prompt_id, draft.sha256) for draft in of_record) for of_record in own]
    rows = iter(responses.store(flat) if flat else [])
    return [list(itertools.islice(rows, len(of_record))) for of_record in own], is_new


def _groups(campaign: Campaign, record: Record, rows: list[Response]) -> list[tuple[Response, ...]]:
    """What is compared: all that were judged together, or that fit on the campaign's screen; every pair otherwise. A
    single response is no comparison until somebody put a thumb on it.
    """
    if record.votes or 2 <= len(rows) <= campaign.group_size:
        return [tuple(rows)]
    return list(itertools.combinations(rows, 2))


def _compare(campaign: Campaign, groups: list[tuple[Response, ...]]) -> tuple[_Known, int]:
    """Stores the comparisons; returns those that were there before, and how many are new."""
    keys = {pairs.content_key(group) for group in groups}
    known = _Known(campaign.comparisons.filter(content_key__in=keys).values_list("content_key", flat=True))
    new = pairs.add_comparisons(campaign, groups, Comparison.Source.IMPORT) if groups else []
    return known, len(new)


def _judge(campaign: Campaign, records: list[Record], answered: list[list[Response]]) -> list[bool]:
    """Stores the votes as judgments of the people that the file names, and says which records brought a new one."""
    voted = [
        (record, rows, pairs.content_key(rows)) for record, rows in zip(records, answered, strict=True) if record.votes
    ]
    if not voted:
        return [False] * len(records)
    keys = {key for _record, _rows, key in voted}
    ids = dict(campaign.comparisons.filter(content_key__in=keys).values_list("content_key", "pk"))
    people = annotators(campaign, {name for record, _rows, _key in voted for name in _names(record.votes)})
    drafts: dict[int, list[Judgment]] = {
        id(record): _drafts(record.votes, rows, ids[key], people) for record, rows, key in voted
    }
    made = list(itertools.chain.from_iterable(drafts.values()))
    same = Judgment.objects.filter(client_key__in=[draft.client_key for draft in made])
    known = _Known(same.values_list("client_key", flat=True))
    is_new = [known.has_new(draft.client_key for draft in drafts.get(id(record), [])) for record in records]
    judgments.add_imported(made)
    return is_new


def _drafts(votes: Sequence[Vote], rows: list[Response], comparison_id: int, people: dict[str, User]) -> list[Judgment]:
    """One judgment per vote. The key follows from who judged what, so the same file brings it once."""
    now, order, drafts = timezone.now(), [row.pk for row in rows], []
    for name, vote in zip(_names(votes), votes, strict=True):
        who = people[name]
        which = f"{comparison_id}:{who.pk}:0"
        drafts.append(
            Judgment(
                comparison_id=comparison_id,
                annotator=who,
                purpose=Purpose.IMPORT,
                client_key=uuid.uuid5(NAMESPACE, which),
                verdict=vote.verdict,
                ranks={str(row.pk): rank for row, rank in zip(rows, vote.ranks, strict=False)},
                strength=vote.strength,
                order=order,
                reason=vote.rationale,
                created_at=now,
            )
        )
    return drafts


def _names(votes: Sequence[Vote]) -> list[str]:
    """Who gave each vote. Several of one record without a name are of several people, told apart by their order: as one
    person's, all but the last would be replaced by it. (No name has two blanks in a row, see `records.name`.)
    """
    return [vote.annotator or (f"{UNNAMED}  {nth + 1}" if nth else "") for nth, vote in enumerate(votes)]


def annotators(campaign: Campaign, names: Iterable[str]) -> dict[str, User]:
    """An account for each person that a file names, one per campaign and name: inactive, with no password, and no member
    of anything. It stands for who judged elsewhere, so that reliability can be told per person.
    """
    wanted = {name: _username(campaign, name) for name in names}
    drafts = [
        User(username=username, first_name=(name or UNNAMED)[:150], is_active=False, password="!")  # noqa: S106 - unusable
        for name, username in wanted.items()
    ]
    User.objects.bulk_create(drafts, ignore_conflicts=True)
    rows = {user.username: user for user in User.objects.filter(username__in=wanted.values())}
    return {name: rows[username] for name, username in wanted.items()}


def _username(campaign: Campaign, name: str) -> str:
    return f"import-{campaign.pk}-{hashlib.sha256(name.encode()).hexdigest()[:12] if name else UNNAMED}"
