from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.training.ml.cases import pair, some_pairs
from training.ml.data import Pair
from training.ml.rows import Pack, count_tokens, deal, longest, pack
from training.ml.scores import Alone

tokens = st.lists(st.integers(3, 9), min_size=1, max_size=6)
pairs = st.lists(st.builds(pair, tokens, tokens, tokens), min_size=1, max_size=8)


def response_of(batch: Pack, owner: int) -> list[int]:
    return batch.targets[batch.owners == owner].tolist()


@given(pairs, st.integers(1, 60))
def test_it_scores_every_response_of_every_item_in_the_items_pack(items: list[Pair], budget: int) -> None:
    packs = pack(items, budget)
    assert sorted(i for batch in packs for i in batch.items) == list(range(len(items)))
    for batch in packs:
        for i in batch.items:
            for response in items[i].responses:
                assert response_of(batch, batch.order[items[i].prompt, response]) == list(response)


@given(pairs, st.integers(1, 60))
def test_it_predicts_each_token_from_the_one_before_it(items: list[Pair], budget: int) -> None:
    for batch in pack(items, budget):
        ids, positions = batch.input_ids[0], batch.position_ids[0]
        for (prompt, response), owner in batch.order.items():
            predictors = batch.predictors[batch.owners == owner]
            assert ids[predictors].tolist() == [prompt[-1], *response[:-1]]
            assert positions[predictors].tolist() == list(range(len(prompt) - 1, len(prompt) + len(response) - 1))


@given(pairs, st.integers(1, 60))
def test_it_keeps_to_the_budget_unless_one_item_alone_exceeds_it(items: list[Pair], budget: int) -> None:
    packs = pack(items, budget)
    assert all(batch.n_tokens <= budget or len(batch.items) == 1 for batch in packs)
    assert sum(batch.n_tokens for batch in packs) == count_tokens(items, budget)


@given(pairs, st.integers(1, 60), st.booleans())
def test_it_knows_where_each_response_ends(items: list[Pair], budget: int, keep_last: bool) -> None:
    for batch in pack(items, budget, keep_last=keep_last):
        ids, positions = batch.input_ids[0], batch.position_ids[0]
        for (prompt, response), owner in batch.order.items():
            whole = [*prompt, *response] if keep_last else [*prompt, *response[:-1]]
            assert ids[batch.ends[owner]] == whole[-1]
            assert positions[batch.ends[owner]] == len(whole) - 1


@given(pairs, st.integers(1, 60))
def test_it_takes_the_last_tokens_in_on_request_and_predicts_the_same(items: list[Pair], budget: int) -> None:
    packs = pack(items, budget, keep_last=True)
    assert all(batch.n_tokens <= budget or len(batch.items) == 1 for batch in packs)
    assert sum(batch.n_tokens for batch in packs) == count_tokens(items, budget, keep_last=True)
    for batch in packs:
        ids = batch.input_ids[0]
        for (prompt, response), owner in batch.order.items():
            assert ids[batch.predictors[batch.owners == owner]].tolist() == [prompt[-1], *response[:-1]]
            assert response_of(batch, owner) == list(response)


@given(pairs, st.booleans())
def test_it_tiles_the_pack_with_segments(items: list[Pair], keep_last: bool) -> None:
    (batch,) = pack(items, 10_000, keep_last=keep_last)
    edges = [(0, 0), *((s.start, s.end) for s in batch.segments), (batch.n_tokens, batch.n_tokens)]
    assert all(end == start for (_, end), (start, _) in pairwise(edges))
    for segment in batch.segments:
        assert segment.prompt_start <= segment.prompt_end <= segment.start


def test_it_holds_a_shared_prompt_and_a_shared_response_once() -> None:
    (batch,) = pack(some_pairs(3), 512)
    assert batch.n_tokens == 7 + (5 - 1) + (3 - 1) + (1 - 1) + (6 - 1) + (2 - 1)
    assert batch.n_responses == 5


def test_it_gives_the_same_packs_for_the_same_items() -> None:
    first, second = pack(some_pairs(), 40), pack(some_pairs(), 40)
    assert [batch.order for batch in first] == [batch.order for batch in second]
    assert len(first) > 1


def test_it_packs_nothing_into_nothing() -> None:
    assert pack([], 100) == []


def test_it_gives_an_item_longer_than_the_budget_a_pack_of_its_own() -> None:
    long = Alone(tuple(range(3, 60)), (5, 6))
    assert [batch.n_responses for batch in pack([long, Alone((3, 4), (5,))], 20)] == [1, 1]


@given(pairs, st.integers(1, 60), st.integers(1, 4))
def test_it_deals_every_item_to_one_of_those_who_work_side_by_side(items: list[Pair], budget: int, n: int) -> None:
    hands = deal(items, budget, n)
    assert len(hands) == n
    assert sorted(i for hand in hands for batch in hand for i in batch.items) == list(range(len(items)))
    for batch in (batch for hand in hands for batch in hand):
        assert batch.n_tokens <= budget or len(batch.items) == 1
        for i in batch.items:
            for response in items[i].responses:
                assert response_of(batch, batch.order[items[i].prompt, response]) == list(response)


def loads(items: list[Pair], n: int) -> list[int]:
    return [sum(batch.n_tokens for batch in hand) for hand in deal(items, 512, n)]


def test_it_deals_nearly_equal_shares_in_as_few_packs_as_the_budget_allows() -> None:
    items = [pair([i, *[3] * length], [4], [5]) for i, length in enumerate((40, 25, 20, 10))]
    assert loads(items, 2) == [52, 47]
    assert [len(hand) for hand in deal(items, 512, 2)] == [1, 1]
    assert [len(hand) for hand in deal(items, 45, 2)] == [2, 2]
    assert [len(hand) for hand in deal(items[:1], 512, 2)] == [1, 0]


def test_it_computes_a_prompt_twice_where_its_responses_are_done_earlier_for_it() -> None:
    short = [pair([3, 4], [5] * 20, [6 + i] * 20) for i in range(3)]  # one prompt, four responses of 19 inputs
    assert loads(short, 2) == [59, 40]
    assert loads(short, 1) == [78]
    long = [pair([3] * 60, [5, 5], [6 + i] * 2) for i in range(2)]
    assert loads(long, 2) == [63, 0]  # 62 each would hardly be earlier


def test_it_deals_thousands_of_prompts() -> None:
    items = [pair([i, 3], [4], [5]) for i in range(3000)]
    assert [len(hand) for hand in deal(items, 1 << 20, 2)] == [1, 1]


def test_it_knows_the_longest_row_that_cannot_be_taken_apart() -> None:
    assert longest([pair([3, 4], [5] * 20, [6 + i] * 20) for i in range(3)]) == 2 + 19 + 19
    assert longest([Alone((3, 4), (5,))], keep_last=True) == 3
    assert longest([]) == 1
