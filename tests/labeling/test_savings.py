import numpy as np
import pytest

from labeling import exchange, pairs, plans, pools, responses, savings
from labeling.models import Comparison
from labeling.savings import Arm, Saving
from tests.labeling import make

pytestmark = pytest.mark.slow  # many simulations

D = 6
THETA = np.array([1.5, -1.0, 1.0, 0.7, -0.7, 0.5])
SEEDS = range(8)


def _rng(seed=0):
    return np.random.default_rng(seed)


def _arm(rng, n, share_telling):
    """Preferences by THETA; most pairs of the pool hardly differ and so tell little, a share differs much."""
    size = np.where(rng.random(n) < share_telling, 1.5, 0.15)
    delta = size[:, None] * rng.normal(size=(n, D))
    is_first = rng.random(n) < 1 / (1 + np.exp(-delta @ THETA))
    return Arm(np.where(is_first[:, None], delta, -delta), rng.integers(0, 10**6, n), np.ones(n))


def _compare(seed, share_telling, n=600):
    rng = _rng(seed)
    return savings.compare(_arm(rng, n, share_telling), _arm(rng, n, 0.25), rng, n_resamples=40)


def test_it_finds_what_an_informative_strategy_saved():
    found = [_compare(seed, share_telling=0.9) for seed in SEEDS]
    told = [saving for saving in found if saving.low > 0]
    assert len(told) >= len(SEEDS) - 1
    assert all("of the judgments" in saving.sentence() for saving in told)
    assert np.median([saving.saved for saving in found]) > 0.4


def test_it_says_so_when_nothing_was_saved():
    found = [_compare(seed, share_telling=0.25) for seed in SEEDS]
    assert sum(saving.low <= 0 <= saving.high for saving in found) >= len(SEEDS) - 1
    assert abs(np.median([saving.saved for saving in found])) < 0.3
    assert sum("told from chance" in saving.sentence() for saving in found) >= len(SEEDS) - 1


def test_it_says_what_a_harmful_strategy_cost():
    found = [_compare(seed, share_telling=0.0) for seed in SEEDS]
    told = [saving for saving in found if saving.high < 0]
    assert len(told) >= len(SEEDS) - 1
    assert all("more judgments" in saving.sentence() for saving in told)


def test_it_estimates_the_factor_that_was_planted():
    """Every second pair of the active arm holds two equal answers, so that it needs twice as many: −100 % saved."""
    found = []
    for seed in range(12):
        rng = _rng(seed)
        active, random = _arm(rng, 600, 1.0), _arm(rng, 600, 1.0)
        active.delta[::2] = 0
        found.append(savings.compare(active, random, rng, n_resamples=1).saved)
    assert np.median([saved for saved in found if saved is not None]) == pytest.approx(-1, abs=0.4)


def test_it_says_when_there_is_not_enough_to_tell():
    few = _compare(0, 0.9, n=savings.MIN_JUDGMENTS - 1)
    assert few.saved is None
    assert few.sentence().startswith("Not enough judgments")
    rng = _rng()
    noise = [Arm(rng.normal(size=(100, D)), np.arange(100), np.ones(100)) for _ in range(2)]
    told = savings.compare(noise[0], noise[1], rng, n_resamples=40)
    assert told.saved is None or (told.low is not None and told.high is not None and told.low <= 0 <= told.high)


def test_it_repeats_itself_for_the_same_seed():
    assert _compare(3, 0.5) == _compare(3, 0.5)


@pytest.mark.parametrize(
    ("saved", "low", "high", "words"),
    [
        (0.18, 0.02, 0.31, "Active choice saved 18 % of the judgments (2 % to 31 %)."),
        (0.01, -0.12, 0.09, "Active choice saved nothing that can be told from chance (−12 % to 9 %)."),
        (-0.25, -0.6, -0.05, "Active choice saved nothing: it needed 25 % more judgments (5 % to 60 %)."),
        (None, None, None, "Not enough judgments to tell what active choice saved."),
    ],
)
def test_it_says_it_in_a_sentence(saved, low, high, words):
    saving = Saving(100, 100, saved, low, high)
    assert saving.sentence() == words
    assert saving.to_dict()["sentence"] == words


def test_it_weights_by_how_improbable_chance_made_each():
    share = 0.2
    found = savings.weights([share / 10, share / 5, share / 10 + 0.8, None], share)
    assert found[0] == pytest.approx(2 * found[1])
    assert found[2] == pytest.approx(found[0])  # also the strategy's best: chance had the same part in it
    assert found.mean() == pytest.approx(1)
    assert savings.weights([None, None], share).tolist() == [1, 1]
    assert savings.weights([], share).tolist() == []
    far = savings.weights([share / 2] * 9 + [share / 10_000], share)
    assert far[-1] == pytest.approx(savings.MAX_WEIGHT * far[0])


@pytest.mark.django_db
def test_it_reports_on_a_campaigns_own_judgments():
    campaign = make.campaign(strategy="d_optimal", random_share=0.5)
    anna = make.person("anna", campaign)
    assert savings.report(campaign, _rng()) is None
    rng = _rng(1)
    for i in range(150):
        prompt = make.prompt(campaign, f"Question {i} about {'cats' if i % 2 else 'the moon'}?")
        for kind in rng.permutation(["A plain answer", "- A list\n- of things", "An answer? A question?"])[:2]:
            responses.add_response(prompt, f"{kind} {i}")
        pairs.make_comparisons(prompt)
    plans.plan(campaign, make.NOW, _rng())
    for comparison in campaign.comparisons.order_by("sort_key").prefetch_related("responses"):
        lists = [response.text.startswith("-") for response in comparison.responses.order_by("pk")]
        make.judge(
            make.lease(comparison, anna), side=0 if not any(lists) else _shown(comparison, lists.index(True), anna)
        )
    judged_elsewhere = {"responses": ["It is.", "Who knows!"], "judgments": [{"ranks": [1, 2]}]}
    exchange.import_pairs(campaign, [{"prompt": f"Is it {i}?", **judged_elsewhere} for i in range(5)])
    report = savings.report(campaign, _rng())
    assert report is not None
    made = [choice.arm for choice in pools.read_choices(campaign, 1000, only_given_out=True)]
    assert (report.n_active, report.n_random) == (made.count("active"), made.count("random"))
    assert report.n_active + report.n_random == 150  # nobody drew what was imported
    assert Comparison.objects.count() == 155
    assert report.random[-1] < report.random[0] < np.log(2)  # it learned that lists are liked


def _shown(comparison, index, annotator):
    """Where the response of this index in order of ids stands on the annotator's screen."""
    ids = sorted(response.pk for response in comparison.responses.all())
    return comparison.leases.get(annotator=annotator).order.index(ids[index])
