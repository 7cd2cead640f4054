import pytest

from labeling import texts
from labeling.errors import Invalid


def test_it_cleans_what_databases_refuse():
    assert texts.clean(" a\x00b\r\nc\rd \ud800 ") == "ab\nc\nd ?"


@pytest.mark.parametrize("value", [None, 3, ["a"], "x" * (texts.MAX_CHARS + 1)])
def test_it_refuses_what_is_no_text_or_too_long(value):
    with pytest.raises(Invalid):
        texts.clean(value)


def test_it_finds_near_identical_texts_whatever_their_case_and_punctuation():
    text = " ".join(f"word{i}" for i in range(100))
    assert texts.are_near_identical(text, text.upper().replace(" word50 ", ", word50; "))
    assert texts.are_near_identical(text, text.replace("word50", "another"))
    assert texts.are_near_identical("", "!?")
    assert not texts.are_near_identical("Yes.", "No.")
    assert not texts.are_near_identical(text, text[: len(text) // 2])
