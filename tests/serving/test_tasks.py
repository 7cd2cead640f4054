import pytest

from serving import tasks
from serving.locks import only_one
from tests.serving.scripted import ScriptedEngine

pytestmark = pytest.mark.django_db


def test_it_reconciles_one_at_a_time(engine: ScriptedEngine) -> None:
    with only_one("reconcile"):
        tasks.reconcile()
    assert not engine.n_questions
    tasks.reconcile()
    assert engine.n_questions
