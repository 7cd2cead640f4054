"""Near-duplicates across the split: the same as comparing everything with everything, and stable as texts come."""

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import near_duplicates
from training.near_duplicates import JACCARD, find_leaving, normalise, shingles, similarity

WORDS = ("why", "does", "the", "cat", "sit", "on", "a", "mat", "today", "perhaps", "number", "eleven", "猫は", "静か")


@st.composite
def related(draw: st.DrawFn) -> list[str]:
    """Texts of which some are made from others by changing a word or adding some."""
    texts: list[str] = []
    for _ in range(draw(st.integers(1, 14))):
        if len(texts) > 0 and draw(st.booleans()):
            words = draw(st.sampled_from(texts)).split() or ["cat"]
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(WORDS))
        else:
            words = draw(st.lists(st.sampled_from(WORDS), max_size=25))
        texts.append(" ".join(words))
    return texts


def grams(text: str) -> set[str]:
    plain = normalise(text).ljust(5)
    return {plain[i : i + 5] for i in range(len(plain) - 4)}


def jaccard(first: str, second: str) -> float:
    a, b = grams(first), grams(second)
    return len(a & b) / len(a | b)


def by_hand(texts: list[str], sides: list[bool]) -> list[bool]:
    leaves: list[bool] = []
    for number, text in enumerate(texts):
        others = [i for i in range(number) if sides[i] != sides[number] and not leaves[i]]
        leaves.append(any(jaccard(text, texts[i]) >= JACCARD for i in others))
    return leaves


@given(related(), st.randoms())
def test_it_finds_what_comparing_all_with_all_finds(texts: list[str], chance: random.Random):
    sides = [chance.random() < 0.5 for _ in texts]
    assert find_leaving(texts, sides).tolist() == by_hand(texts, sides)


def test_it_finds_the_same_in_small_pieces(monkeypatch: pytest.MonkeyPatch):
    chance = random.Random(3)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(0, 14))) for _ in range(300)]
    texts += [f"{text} {chance.choice(WORDS)}" for text in texts]
    sides = [chance.random() < 0.3 for _ in texts]
    expected = by_hand(texts, sides)
    assert sum(expected) > 20
    monkeypatch.setattr(near_duplicates, "BLOCK", 7)
    monkeypatch.setattr(near_duplicates, "MANY", 3)
    assert find_leaving(texts, sides).tolist() == expected


@settings(max_examples=50)
@given(related(), st.integers(0, 14), st.randoms())
def test_it_says_the_same_of_a_text_whatever_comes_later(texts: list[str], n: int, chance: random.Random):
    sides = [chance.random() < 0.5 for _ in texts]
    assert find_leaving(texts[:n], sides[:n]).tolist() == find_leaving(texts, sides)[:n].tolist()


def test_it_leaves_no_near_duplicates_on_different_sides():
    chance = random.Random(5)
    bases = [" ".join(chance.choices(WORDS, k=12)) for _ in range(20)]
    texts = [f"{base} {chance.choice(WORDS)}" for base in bases for _ in range(4)]
    sides = [chance.random() < 0.5 for _ in texts]
    staying = np.flatnonzero(~find_leaving(texts, sides))
    assert not any(
        sides[a] != sides[b] and jaccard(texts[a], texts[b]) >= JACCARD for a in staying for b in staying if a < b
    )


def test_it_looks_past_letter_case_punctuation_and_width():
    assert normalise("  Hello,\n\tWORLD!! ＡＢ_c ") == "hello world ab c"
    assert find_leaving(["What is the capital of France?", "what is the capital of france"], [True, False])[1]


@pytest.mark.parametrize("text", ["", "?!", "a", "ab", "abcd", "\ud800 lone", "x" * 9000])
def test_it_takes_any_text(text: str):
    assert find_leaving([text, text, "something else entirely"], [True, False, False]).tolist() == [False, True, False]


def test_it_measures_sets_and_not_the_number_of_times():
    assert similarity(shingles(normalise("abcde " * 2)), shingles(normalise("abcde " * 9))) == 1.0
    assert not find_leaving([], []).any()


def test_it_compares_few_of_many_that_are_all_alike(monkeypatch: pytest.MonkeyPatch):
    compared = []

    def counted(first: near_duplicates.Hashes, second: near_duplicates.Hashes) -> float:
        compared.append(len(first))
        return similarity(first, second)

    monkeypatch.setattr(near_duplicates, "similarity", counted)
    chance = random.Random(7)
    texts = [f"Write a description for article number {number:05d}" for number in range(1500)]
    sides = [chance.random() < 0.3 for _ in texts]
    assert find_leaving(texts, sides).sum() > 300
    assert len(compared) < 2 * len(texts)


def test_it_keeps_no_pair_of_many_that_are_all_alike():
    chance = random.Random(9)
    texts = [f"Write a description for article number {number:05d}" for number in range(1500)]
    sides = [chance.random() < 0.5 for _ in texts]
    tracemalloc.start()
    find_leaving(texts, sides)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * near_duplicates.BUCKETS, "bytes: the counts of shingles, and no list of a million pairs"
