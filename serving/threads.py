"""What Django keeps for each thread, for a function that runs in another one: the language, and the prefix of links."""

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from django.urls import get_script_prefix, set_script_prefix
from django.utils import translation

Result = TypeVar("Result")


def carried(function: Callable[[], Result]) -> Callable[[], Result]:
    """`function` with both, to be called in another thread. What it changes of them ends with it.

    A copy of the context alone, as `asyncio.to_thread` makes it, carries neither: asgiref shows what it keeps there only
    to the thread that has set it.
    """
    return partial(copy_context().run, _called, translation.get_language(), get_script_prefix(), function)


def _called(language: str | None, prefix: str, function: Callable[[], Result]) -> Result:
    set_script_prefix(prefix)
    with translation.override(language):
        return function()
