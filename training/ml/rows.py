"""From responses to forward passes: one row per prompt, rows packed to a token budget.

A row holds its prompt once and then all of its responses. Every response sees the prompt and itself, as if it stood
alone, and its positions go on where the prompt's end: the same mathematics as one sequence per response, for fewer
tokens. The last token of a response predicts nothing that is trained on, so it is a target and no input, unless it is
asked for: a reward model reads its score there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Tokens = tuple[int, ...]


class Item(Protocol):
    """Responses to one prompt that must be in the same forward pass, as the two of a pair."""

    @property
    def prompt(self) -> Tokens: ...

    @property
    def responses(self) -> tuple[Tokens, ...]: ...


@dataclass
class Row:
    prompt: Tokens
    responses: list[Tokens]
    items: list[int]
    keep_last: bool

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + sum(map(self.n_inputs, self.responses))

    def n_inputs(self, response: Tokens) -> int:
        return len(response) if self.keep_last else len(response) - 1


@dataclass(frozen=True)
class Segment:
    """A span [start, end) of a pack's tokens and the prompt's span it may look back at (empty for a prompt)."""

    start: int
    end: int
    prompt_start: int
    prompt_end: int


@dataclass(frozen=True)
class Pack:
    """The rows of one forward pass, laid end to end."""

    items: list[int]  # indices of the items whose responses are all here
    order: dict[tuple[Tokens, Tokens], int]  # (prompt, response) -> index of its log-probability
    segments: list[Segment]
    input_ids: torch.Tensor  # (1, T)
    position_ids: torch.Tensor  # (1, T)
    predictors: torch.Tensor  # (N,) the position whose output predicts the n-th completion token
    targets: torch.Tensor  # (N,) that token
    owners: torch.Tensor  # (N,) the response it belongs to
    ends: torch.Tensor  # (R,) the position of the last input token of each response, of its prompt where it has none

    @property
    def n_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def n_responses(self) -> int:
        return len(self.order)


def pack(
    items: Sequence[Item], budget: int, *, device: torch.device | str = "cpu", keep_last: bool = False
) -> list[Pack]:
    """Packs of at most `budget` tokens, longest rows first; an item longer than that has a pack of its own.

    Deterministic: the same items give the same packs. `keep_last`: a response's last token is an input too.
    """
    return _pack(_rows(items, budget, keep_last), budget, device)


def deal(
    items: Sequence[Item], budget: int, n: int, *, device: torch.device | str = "cpu", keep_last: bool = False
) -> list[list[Pack]]:
    """`pack`'s packs for n who work side by side: as few as the budget allows, and nearly as many tokens for each.

    A prompt's responses are taken apart, which costs the prompt a second time, where all are done a tenth earlier for it.
    """
    rows = _rows(items, budget, keep_last)
    hands = _hands(rows, n)
    while longer := [row for row in max(hands, key=_weight) if len(row.items) > 1]:
        row = max(longer, key=lambda row: row.n_tokens)
        half = len(row.items) // 2
        halves = [_row(items, part, keep_last) for part in (row.items[:half], row.items[half:])]
        divided = [*(other for other in rows if other is not row), *halves]
        others = _hands(divided, n)
        if max(map(_weight, others)) > 0.9 * max(map(_weight, hands)):
            break
        rows, hands = divided, others
    return [_pack(hand, budget, device) for hand in hands]


def _hands(rows: list[Row], n: int) -> list[list[Row]]:
    """The longest row goes to whoever has the least so far."""
    hands: list[list[Row]] = [[] for _ in range(n)]
    weights = [0] * n
    for row in sorted(rows, key=lambda row: -row.n_tokens):
        least = weights.index(min(weights))
        hands[least].append(row)
        weights[least] += row.n_tokens
    return hands


def _weight(rows: list[Row]) -> int:
    return sum(row.n_tokens for row in rows)


def _pack(rows: list[Row], budget: int, device: torch.device | str) -> list[Pack]:
    bins: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -row.n_tokens):
        for own in bins:
            if _weight(own) + row.n_tokens <= budget:
                own.append(row)
                break
        else:
            bins.append([row])
    return [_lay(own, device) for own in bins]


def count_tokens(items: Sequence[Item], budget: int, *, keep_last: bool = False) -> int:
    """How many tokens the packs of these items hold together."""
    return sum(row.n_tokens for row in _rows(items, budget, keep_last))


def longest(items: Sequence[Item], *, keep_last: bool = False) -> int:
    """Tokens of the longest row that cannot be taken apart, a prompt with the responses of one item; 1 at least."""
    return max((_row(items, [i], keep_last).n_tokens for i in range(len(items))), default=1) or 1


def _rows(items: Sequence[Item], budget: int, keep_last: bool) -> list[Row]:
    """One row per prompt, or several where all the responses together exceed the budget."""
    rows: list[Row] = []
    open_rows: dict[Tokens, Row] = {}
    for i, item in enumerate(items):
        row = open_rows.get(item.prompt)
        new = [r for r in dict.fromkeys(item.responses) if row is None or r not in row.responses]
        if row is None or row.n_tokens + sum(map(row.n_inputs, new)) > budget:
            row = open_rows[item.prompt] = Row(item.prompt, [], [], keep_last)
            rows.append(row)
            new = list(dict.fromkeys(item.responses))
        row.responses += new
        row.items.append(i)
    return rows


def _row(items: Sequence[Item], members: list[int], keep_last: bool) -> Row:
    """The row of these items, which share a prompt."""
    responses = dict.fromkeys(response for i in members for response in items[i].responses)
    return Row(items[members[0]].prompt, list(responses), members, keep_last)


def _lay(rows: list[Row], device: torch.device | str) -> Pack:
    order: dict[tuple[Tokens, Tokens], int] = {}
    segments: list[Segment] = []
    ids: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    ends: list[int] = []
    for row in rows:
        start, end = len(ids), len(ids) + len(row.prompt)
        segments.append(Segment(start, end, start, start))
        ids += row.prompt
        positions += range(len(row.prompt))
        for response in row.responses:
            first = len(ids)
            n_inputs = row.n_inputs(response)
            ids += response[:n_inputs]
            positions += range(len(row.prompt), len(row.prompt) + n_inputs)
            if n_inputs:
                segments.append(Segment(first, len(ids), start, end))
            # The prompt's last token predicts the first.
            predictors += [end - 1, *range(first, first + len(response) - 1)]
            ends.append(len(ids) - 1 if n_inputs else end - 1)
            targets += response
            owners += [len(order)] * len(response)
            order[row.prompt, response] = len(order)
    return Pack(
        items=[i for row in rows for i in row.items],
        order=order,
        segments=segments,
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        predictors=torch.tensor(predictors, device=device),
        targets=torch.tensor(targets, device=device),
        owners=torch.tensor(owners, device=device),
        ends=torch.tensor(ends, device=device),
    )
