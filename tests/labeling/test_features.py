import numpy as np
import pytest

from labeling import features

pytestmark = pytest.mark.slow  # many simulations

SEA = ["The sea is deep and the ships sail on it.", "Ships sail on the deep sea.", "A ship sails, the sea is deep."]
CODE = ["def add(a, b): return a + b", "def sub(a, b):\n    return a - b", "lambda a, b: a + b  # add"]


def test_it_puts_texts_of_one_subject_closer_together():
    vectors = features.embed(SEA + CODE, 512)  # so short that 32 dimensions would be mostly noise
    likeness = vectors @ vectors.T
    within = [likeness[i, j] for i in range(6) for j in range(i) if (i < 3) == (j < 3)]
    between = [likeness[i, j] for i in range(3, 6) for j in range(3)]
    assert np.mean(within) > max(between)


def test_it_gives_the_same_numbers_for_the_same_texts():
    assert np.array_equal(features.describe(SEA, CODE), features.describe(list(SEA), list(CODE)))


def test_it_keeps_angles_in_few_dimensions():
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(200)]
    texts = [" ".join(rng.choice(words, 40)) for _ in range(60)]
    few, many = features.embed(texts, 256), features.embed(texts, 4096)
    assert np.corrcoef((few @ few.T).ravel(), (many @ many.T).ravel())[0, 1] > 0.8


@pytest.mark.parametrize("text", ["", "?", "\x00", "\ud800 half", "漢字", "a" * 100_000, "🙂" * 5000])
def test_it_takes_any_text(text):
    found = features.describe([text, "Another text."], ["", "Why?"])
    assert found.shape == (2, features.N_STYLE + features.DIMS)
    assert np.isfinite(found).all()


def test_it_takes_no_text_at_all():
    assert features.embed([]).shape == (0, features.DIMS)
    assert features.describe([], []).shape == (0, features.N_STYLE + features.DIMS)


def test_it_sees_the_style():
    plain, marked = features.style(["Just one line here.", "# Title\n\n- one\n- two\n\n**bold** 3?"], ["", "one line"])
    assert (marked[1:9] > 0).sum() == 6  # heading, bullets, bold, question, digits, paragraphs
    assert (plain[1:9] == 0).all()


def test_it_compares_row_by_row():
    a = np.array([[1.0, 0], [1, 0], [0, 0]])
    assert features.cosine(a, np.array([[2.0, 0], [0, 3], [1, 1]])).tolist() == [1, 0, 0]
