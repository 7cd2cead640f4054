import pytest

from serving import versions
from serving.models import Adapter
from tests.training.evaluations import add_adapter, add_run, write_evaluation
from tests.training.rows import add_campaign, add_judged
from training import gates, news
from training.models import Policy, Run

pytestmark = pytest.mark.django_db


@pytest.fixture
def run() -> Run:
    campaign = add_campaign()
    add_judged(campaign, 4, 10)
    Policy.objects.create(campaign=campaign, min_heldout_pairs=5)
    run = add_run(campaign)
    run.method = "dpo"
    run.save()
    return run


def test_it_says_what_a_version_learned_from(run: Run) -> None:
    assert run.snapshot
    [line] = news.describe(run).splitlines()
    assert line == f"Learned from {run.snapshot.counts['used']} judgments in “{run.campaign.name}” by DPO (sigmoid)."
    run.incumbent = Adapter.objects.create(name="adapter-3-abcdef", sha256="c" * 64, base_sha256="b" * 64)
    run.snapshot.counts["new"] = 7
    assert "7 of its pairs were judged since adapter-3-abcdef learned." in news.describe(run)


@pytest.mark.parametrize(
    ("margin", "says"),
    [
        (0.3, ["Sides with people on 100 % of the pairs that it never saw; the version before on 50 %.", "Passed the gate."]),
        (-0.3, ["Sides with people on 0 % of the pairs that it never saw; the version before on 50 %.", "Did not pass the gate."]),
    ],
)  # fmt: skip
def test_it_says_how_a_version_does(run: Run, margin: float, says: list[str]) -> None:
    adapter = add_adapter()
    write_evaluation(run, margin)
    gates.evaluate(run, adapter, run.folder)
    versions.set_notes(adapter, news.describe(run))
    adapter.refresh_from_db()
    assert adapter.notes.splitlines()[1:] == says


def test_it_says_what_the_reward_model_prefers(run: Run) -> None:
    adapter = add_adapter()
    write_evaluation(run, 0.3)
    evaluation = gates.evaluate(run, adapter, run.folder)
    evaluation.evidence["policy"]["win_rate"] = {"length_controlled": 0.612}
    evaluation.save()
    assert "prefers its answers to those of the version before in 61 % of cases." in news.describe(run)


def test_it_knows_nothing_of_a_run_that_learned_nothing(run: Run) -> None:
    run.snapshot = None
    assert news.describe(run) == ""
