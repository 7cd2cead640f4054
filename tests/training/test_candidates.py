"""Candidates from a real engine process on a tiny model; and what happens to prompts while there is none."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from django.conf import settings as site
from django.utils import timezone
from pytest_django import Settings

from benchmarks.site import free_port
from labeling.models import Campaign, Prompt, Response
from labeling.prompts import want_candidates
from serving import adapters, client
from serving.locks import only_one
from tests.serving.scripted import TOKEN, ScriptedEngine, running
from tests.training.rows import NOW, add_campaign, add_comparison, add_prompt
from training import candidates, runs
from training.candidates import CLAIM_LASTS, MAX_ATTEMPTS

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def engine_url(tiny_model_dir: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "serving.engine", "--model", str(tiny_model_dir), "--port", str(port)]
    process = subprocess.Popen(command, cwd=site.BASE_DIR, env={**os.environ, "ENGINE_TOKEN": site.ENGINE_TOKEN})
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the engine ended with {process.returncode}")


@pytest.fixture
def engine(engine_url: str, tiny_model_dir: Path, settings: Settings) -> str:
    settings.ENGINE_URLS = [engine_url]
    settings.MODEL = str(tiny_model_dir)
    return engine_url


@pytest.fixture
def no_engine(settings: Settings, tiny_model_dir: Path) -> None:
    settings.ENGINE_URLS = ["http://127.0.0.1:9"]  # nobody listens there
    settings.MODEL = str(tiny_model_dir)


@pytest.fixture
def campaign() -> Campaign:
    return add_campaign(max_tokens=8, temperatures=[1.0, 1.5])


@pytest.mark.usefixtures("engine")
def test_it_fills_a_prompt_with_answers_and_pairs(campaign: Campaign) -> None:
    prompt = add_prompt(campaign, wants_candidates=True)
    assert candidates.generate() is False
    prompt.refresh_from_db()
    assert prompt.candidates_state == "done"
    responses = list(prompt.responses.order_by("id"))
    assert 2 <= len(responses) <= 4
    assert {response.adapter for response in responses} == {adapters.current()}
    assert all(response.text for response in responses)
    assert {response.sampling["temperature"] for response in responses} <= {1.0, 1.5}
    assert len({response.sampling["seed"] for response in responses}) == len(responses)
    assert prompt.comparisons.filter(is_open=True).exists()


@pytest.mark.usefixtures("engine")
def test_it_stores_one_prompt_after_the_other_and_stops_in_time(campaign: Campaign) -> None:
    for _ in range(3):
        add_prompt(campaign, wants_candidates=True)
    assert candidates.generate(seconds=0.001) is True  # one, and word that there are more
    states = list(Prompt.objects.order_by("id").values_list("candidates_state", flat=True))
    assert states == ["done", "wanted", "wanted"]
    assert candidates.generate() is False
    assert not Prompt.objects.exclude(candidates_state="done").exists()


@pytest.mark.usefixtures("engine")
def test_it_drops_what_was_said_before_and_gives_up_after_three_attempts(campaign: Campaign) -> None:
    campaign.temperatures = [0.0]  # four times the same answer: nothing to compare
    campaign.save()
    prompt = add_prompt(campaign, wants_candidates=True)
    candidates.generate()
    prompt.refresh_from_db()
    assert (prompt.candidates_state, prompt.candidates_attempts) == ("failed", MAX_ATTEMPTS)
    assert not Response.objects.exists()


@pytest.mark.usefixtures("engine")
def test_it_counts_a_refusal_as_an_attempt(campaign: Campaign) -> None:
    campaign.max_tokens = 10**9
    campaign.save()
    prompt = add_prompt(campaign, wants_candidates=True)
    candidates.generate()
    prompt.refresh_from_db()
    assert (prompt.candidates_state, prompt.candidates_attempts) == ("failed", MAX_ATTEMPTS)


@pytest.mark.usefixtures("no_engine")
def test_it_loses_no_attempt_while_the_engine_is_down(campaign: Campaign) -> None:
    prompt = add_prompt(campaign, wants_candidates=True)
    for _ in range(MAX_ATTEMPTS + 1):
        assert candidates.generate() is False
    prompt.refresh_from_db()
    assert (prompt.candidates_state, prompt.candidates_attempts) == ("wanted", 0)


def test_it_generates_one_at_a_time_on_a_host(campaign: Campaign) -> None:
    add_prompt(campaign, wants_candidates=True)
    answers: list[bool] = []
    with only_one("candidates") as is_mine:
        assert is_mine
        thread = threading.Thread(target=lambda: answers.append(candidates.generate()))
        thread.start()
        thread.join()
    assert answers == [False]
    assert Prompt.objects.filter(candidates_state="wanted").count() == 1


def test_it_claims_a_prompt_once_and_takes_it_back_when_the_claim_is_old(campaign: Campaign) -> None:
    prompt = add_prompt(campaign, wants_candidates=True)
    assert candidates.claim(NOW) == prompt
    assert candidates.claim(NOW + timedelta(seconds=10)) is None
    later = NOW
    for _ in range(MAX_ATTEMPTS - 1):
        later += CLAIM_LASTS + timedelta(seconds=1)
        assert candidates.claim(later) == prompt
    assert candidates.claim(later + CLAIM_LASTS + timedelta(seconds=1)) is None  # it takes its worker with it
    prompt.refresh_from_db()
    assert prompt.candidates_state == "failed"


def test_it_leaves_paused_campaigns_alone() -> None:
    add_prompt(add_campaign(status=Campaign.Status.PAUSED), wants_candidates=True)
    assert not candidates.wanted(timezone.now()).exists()


def test_it_asks_with_as_many_seeds_and_the_temperatures_in_turn(campaign: Campaign) -> None:
    prompt = add_prompt(campaign, wants_candidates=True)
    drafts = candidates.plan(prompt)
    assert [draft.temperature for draft in drafts] == [1.0, 1.5, 1.0, 1.5]
    assert len({draft.seed for draft in drafts}) == 4
    assert candidates.plan(prompt) == drafts  # the same answers can be had again
    prompt.candidates_attempts += 1
    assert not {draft.seed for draft in drafts} & {draft.seed for draft in candidates.plan(prompt)}


def test_it_asks_with_other_seeds_when_asked_again(campaign: Campaign) -> None:
    prompt = add_prompt(campaign, wants_candidates=True)
    first = {draft.seed for draft in candidates.plan(prompt)}
    add_comparison(prompt)  # its responses are there; "ask again" sets the attempts back to zero
    assert not first & {draft.seed for draft in candidates.plan(prompt)}


def test_it_asks_with_other_seeds_after_a_prompt_failed_without_any_response(campaign: Campaign) -> None:
    prompt = add_prompt(campaign, wants_candidates=True)
    seeds: set[int] = set()
    for asked in range(3):
        Prompt.objects.filter(pk=prompt.pk).update(candidates_state="failed")
        assert want_candidates(campaign.prompts.all()) == 1
        for _attempt in range(MAX_ATTEMPTS):
            claimed = candidates.claim(NOW)
            assert claimed == prompt
            seeds |= {draft.seed for draft in candidates.plan(claimed)}
            Prompt.objects.filter(pk=prompt.pk).update(candidates_state="wanted")
        assert len(seeds) == (asked + 1) * MAX_ATTEMPTS * campaign.n_candidates


def test_it_lets_a_run_have_the_processor_while_people_have_enough_to_judge(campaign: Campaign) -> None:
    prompts = [add_prompt(campaign, wants_candidates=True) for _ in range(candidates.N_AHEAD)]
    other = add_prompt(add_campaign(), wants_candidates=True)
    for prompt in prompts[1:]:
        add_comparison(prompt)
    Prompt.objects.exclude(pk__in=[prompts[0].pk, other.pk]).update(candidates_state="done")
    run = runs.create(campaign, "dpo", {})
    assert wanted() == {prompts[0], other}  # the run waits as well
    assert runs.claim(run.pk, "host:1", NOW)
    assert wanted() == {prompts[0], other}  # one pair too few
    add_comparison(prompts[1])
    assert wanted() == {other}  # whose campaign has nothing to judge


def test_it_never_waits_for_a_run_on_other_machines(campaign: Campaign, settings: Settings) -> None:
    prompt = add_prompt(campaign, wants_candidates=True)
    for _ in range(candidates.N_AHEAD):
        add_comparison(prompt)
    run = runs.create(campaign, "dpo", {})
    assert runs.claim(run.pk, "host:1", NOW)
    assert wanted() == set()
    settings.HAS_EMBEDDED_ENGINE = False
    assert wanted() == {prompt}


def test_it_leaves_the_engine_to_runs_and_candidates_first(campaign: Campaign, settings: Settings) -> None:
    assert candidates.is_engine_idle(NOW)
    prompt = add_prompt(campaign, wants_candidates=True)
    assert not candidates.is_engine_idle(NOW)
    Prompt.objects.filter(pk=prompt.pk).update(candidates_state="done")
    assert candidates.is_engine_idle(NOW)
    run = runs.create(campaign, "dpo", {})
    assert runs.claim(run.pk, "host:1", NOW)
    assert not candidates.is_engine_idle(NOW)
    settings.HAS_EMBEDDED_ENGINE = False  # it runs on other machines
    assert candidates.is_engine_idle(NOW)


def wanted() -> set[Prompt]:
    return set(candidates.wanted(NOW))


def test_it_counts_an_answer_that_takes_too_long_as_an_attempt(
    campaign: Campaign, no_engine: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = add_prompt(campaign, wants_candidates=True)
    silent = ScriptedEngine()
    silent.silence.clear()
    monkeypatch.setattr(client, "GENERATING", httpx.Timeout(0.2))
    with running(silent) as url:
        settings.ENGINE_URLS, settings.ENGINE_TOKEN = [url], TOKEN
        candidates.generate()
    prompt.refresh_from_db()
    assert (prompt.candidates_state, prompt.candidates_attempts) == ("failed", MAX_ATTEMPTS)
