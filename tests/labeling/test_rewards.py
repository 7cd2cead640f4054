import threading

import pytest

from labeling import pairs, responses, rewards
from labeling.models import Campaign, Comparison, Response
from serving import adapters
from serving.locks import only_one
from tests.labeling import make
from tests.serving.conftest import adapter, base_model, engine, good_adapter  # noqa: F401
from tests.serving.scripted import tokens_of

pytestmark = pytest.mark.django_db(transaction=True)


def _pair(campaign):
    comparison = make.comparison(campaign)
    return comparison, list(comparison.responses.order_by("pk"))


def _tokens(response):
    answer = {"role": "assistant", "content": response.text}
    return tokens_of([*response.prompt.messages, answer])


def _teach(scripted, response, effect):
    """The scripted adapter adds `effect` nats to every token of the response, and 7 to each of its prompt."""
    tokens, n_prompt = _tokens(response), len(tokens_of(response.prompt.messages, is_open=True))
    scripted.effects[tuple(tokens)] = [7.0 if t < n_prompt else effect for t in range(1, len(tokens))]


@pytest.fixture
def current(good_adapter):  # noqa: F811
    row = good_adapter(1)
    row.manifest["params"] = {"beta": 0.5}
    row.save()
    adapters.publish(row)
    return row


@pytest.fixture
def campaign():
    return make.campaign(strategy="uncertainty")


def test_it_sums_over_the_tokens_of_the_response_alone(engine, current, campaign):  # noqa: F811
    _, (good, bad) = _pair(campaign)
    _teach(engine, good, 0.25)
    _teach(engine, bad, -0.5)
    assert rewards.score() is False
    for response, effect in ((good, 0.25), (bad, -0.5)):
        response.refresh_from_db()
        n_tokens = len(response.text) + 1  # and the end of the turn
        assert response.reward == pytest.approx(0.5 * effect * n_tokens)
        assert response.rewarded_by == current
        [first, *_] = adapters.ensure_loaded(current)
        assert rewards.measure(first, current, response.prompt, response.text).n_tokens == n_tokens


def test_it_scores_once_by_each_version(engine, current, campaign, good_adapter):  # noqa: F811
    _pair(campaign)
    rewards.score()
    n_asked = len(engine.paths("/v1/completions"))
    rewards.score()
    assert len(engine.paths("/v1/completions")) == n_asked
    newer = good_adapter(2)
    adapters.publish(newer)
    rewards.score()
    assert {response.rewarded_by for response in Response.objects.all()} == {newer}


def test_it_asks_for_nothing_that_no_strategy_needs(engine, current):  # noqa: F811
    for number, (strategy, status) in enumerate(
        [("random", "active"), ("diversity", "active"), ("uncertainty", "paused")]
    ):
        _pair(make.campaign(f"campaign-{number}", strategy=strategy, status=status))
    n_asked = len(engine.requests)
    assert rewards.score() is False
    assert len(engine.requests) == n_asked


def test_it_scores_nothing_with_the_base_alone(engine, campaign):  # noqa: F811
    _pair(campaign)
    assert rewards.score() is False
    assert engine.requests == []
    assert Response.objects.filter(rewarded_by=None).count() == 2


def test_it_stops_in_time_and_goes_on_later(engine, current, campaign):  # noqa: F811
    for _ in range(2):
        _pair(campaign)
    assert rewards.score(seconds=0) is True
    assert Response.objects.filter(rewarded_by=current).count() == 1
    assert rewards.score() is False
    assert Response.objects.filter(rewarded_by=current).count() == 4


def test_it_scores_what_is_open_and_comes_next(engine, current, campaign, monkeypatch):  # noqa: F811
    monkeypatch.setattr(rewards, "WINDOW", 1)
    closed, first, _later = (_pair(campaign)[0] for _ in range(3))
    Comparison.objects.filter(pk=closed.pk).update(is_open=False, sort_key=0)
    Comparison.objects.filter(pk=first.pk).update(sort_key=1)
    rewards.score()
    assert {response.prompt for response in Response.objects.exclude(rewarded_by=None)} == {first.prompt}


def test_it_waits_while_the_engine_is_down_or_fails(engine, current, campaign):  # noqa: F811
    _pair(campaign)
    engine.refusal = (500, "out of memory")
    assert rewards.score() is False
    assert not Response.objects.exclude(rewarded_by=None).exists()
    engine.refusal = None
    assert rewards.score() is False
    assert Response.objects.exclude(rewarded_by=None).count() == 2


def test_it_leaves_a_response_without_reward_that_the_engine_refuses(engine, current, campaign):  # noqa: F811
    _, (first, _) = _pair(campaign)
    [one, *_] = adapters.ensure_loaded(current)
    engine.refusal = (400, "The prompt is too long.")
    rewards._store(first, current, one)
    first.refresh_from_db()
    assert (first.reward, first.rewarded_by) == (None, current)
    assert first not in rewards.unscored(campaign, current)


def test_it_asks_for_a_plan_when_all_is_scored(engine, current, campaign):  # noqa: F811
    for _ in range(2):
        _pair(campaign)
    Campaign.objects.update(plan_wanted_at=None)
    rewards.score(seconds=0)
    assert Campaign.objects.get().plan_wanted_at is None
    rewards.score()
    assert Campaign.objects.get().plan_wanted_at is not None


def test_it_runs_once_at_a_time_on_a_host(engine, current, campaign):  # noqa: F811
    _pair(campaign)
    answers = []
    with only_one("rewards") as is_mine:
        assert is_mine
        thread = threading.Thread(target=lambda: answers.append(rewards.score()))
        thread.start()
        thread.join()
    assert answers == [False]
    assert not Response.objects.exclude(rewarded_by=None).exists()


@pytest.mark.parametrize(("params", "beta"), [({"beta": 0.3}, 0.3), ({}, 0.1), ({"beta": "x"}, 0.1), (None, 0.1)])
def test_it_takes_beta_from_the_run_that_made_the_adapter(params, beta, current):
    current.manifest["params"] = params
    assert rewards.beta(current) == beta


def test_it_scores_each_response_of_several_pairs_once(engine, current, campaign):  # noqa: F811
    prompt = make.prompt(campaign)
    for text in ("One fish.", "Two birds fly.", "Three red cats."):
        responses.add_response(prompt, text)
    assert len(pairs.make_comparisons(prompt)) == 3
    assert rewards.unscored(campaign, current).count() == 3
