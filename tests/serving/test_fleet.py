import threading

from django.utils import translation
from django.utils.translation import gettext as _

from serving import fleet
from serving.client import Engine, EngineDown, EngineError

ENGINES = [Engine(f"http://{i}", "token") for i in range(3)]


def test_it_asks_all_engines_at_once() -> None:
    """Each waits until all have been asked."""
    everybody = threading.Barrier(len(ENGINES), timeout=30)

    def question(engine: Engine) -> str:
        everybody.wait()
        return engine.url

    answers, failures = fleet.ask_each(ENGINES, question)
    assert answers == {engine: engine.url for engine in ENGINES}
    assert failures == {}


def test_it_keeps_answers_and_failures_apart() -> None:
    def question(engine: Engine) -> int:
        if engine == ENGINES[0]:
            raise EngineDown("ConnectError")
        if engine == ENGINES[1]:
            raise EngineError(507, "it is full")
        return 7

    answers, failures = fleet.ask_each(ENGINES, question)
    assert answers == {ENGINES[2]: 7}
    assert list(failures) == ENGINES[:2]
    assert fleet.in_words(failures) == "http://0: does not answer; http://1: it is full"


def test_it_asks_nobody_when_there_is_nobody() -> None:
    assert fleet.ask_each([], lambda engine: engine.url) == ({}, {})


def test_it_speaks_the_callers_language() -> None:
    with translation.override("de"):
        answers, _failures = fleet.ask_each(ENGINES, lambda _engine: (translation.get_language(), _("Yes")))
    assert set(answers.values()) == {("de", "Ja")}
