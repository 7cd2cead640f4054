"""What a function finds in another thread of what Django keeps for each."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.urls import clear_script_prefix, get_script_prefix, set_script_prefix
from django.utils import translation

from serving.threads import carried


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def prefix() -> Iterator[str]:
    set_script_prefix("/align/")
    yield "/align/"
    clear_script_prefix()


def kept() -> tuple[str | None, str]:
    return translation.get_language(), get_script_prefix()


def test_it_carries_language_and_prefix(thread: ThreadPoolExecutor, prefix: str) -> None:
    with translation.override("de"):
        assert thread.submit(carried(kept)).result() == ("de", prefix)
    with translation.override(None):
        assert thread.submit(carried(kept)).result() == (None, prefix)


def test_it_leaves_nothing_in_the_thread(thread: ThreadPoolExecutor, prefix: str) -> None:
    def change() -> None:
        translation.activate("de")
        set_script_prefix("/other/")

    before = thread.submit(kept).result()
    thread.submit(carried(change)).result()
    assert thread.submit(kept).result() == before
