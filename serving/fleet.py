"""Asks several engines the same thing at once."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from django.utils import translation

from serving.client import Engine, EngineDown, EngineError

Result = TypeVar("Result")
Failure = EngineDown | EngineError
MAX_AT_ONCE = 16


def ask_each(
    engines: Iterable[Engine], question: Callable[[Engine], Result]
) -> tuple[dict[Engine, Result], dict[Engine, Failure]]:
    """What each engine answered, and why the others did not, both in the order of `engines`. It takes as long as the
    slowest one. `question` runs in threads, so it must not use the database.
    """
    engines, language = list(engines), translation.get_language()

    def ask(engine: Engine) -> Result:
        with translation.override(language):  # messages are for the caller
            return question(engine)

    if not engines:
        return {}, {}
    with ThreadPoolExecutor(min(len(engines), MAX_AT_ONCE)) as pool:
        asked = {engine: pool.submit(ask, engine) for engine in engines}
    answers: dict[Engine, Result] = {}
    failures: dict[Engine, Failure] = {}
    for engine, future in asked.items():
        try:
            answers[engine] = future.result()
        except (EngineDown, EngineError) as failure:
            failures[engine] = failure
    return answers, failures


def in_words(failures: dict[Engine, Failure]) -> str:
    """Each engine and what was wrong with it, for people who run the site."""
    return "; ".join(f"{engine.url}: {_reason(failure)}" for engine, failure in failures.items())


def _reason(failure: Failure) -> str:
    return failure.message if isinstance(failure, EngineError) else "does not answer"
