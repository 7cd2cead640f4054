"""Scoring jobs: whatever their process does, the row tells it, and no process outlives its worker.

Most tests start a short script in the scorer's place, as a process of its own; the real one is in test_scorings_real.py.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.db import connection
from django.utils import timezone
from pytest_django import Settings

from labeling import rewards
from labeling.models import Campaign, Prompt, Response
from labeling.responses import add_response
from tests.serving.folders import BASE_SHA256
from tests.training.rows import add_annotator, add_campaign, add_comparison, add_prompt
from training import attempts, best_of, processes, reward_models, runs, scorings, supervisor
from training.models import RewardModel, Run, Scoring

pytestmark = pytest.mark.django_db(transaction=True)

START = "import json, os, signal, sys, time; from pathlib import Path; folder = Path(sys.argv[1]); "
DONE = (
    START + "config = json.loads((folder / 'config.json').read_text());"
    "asked = [json.loads(line) for line in Path(config['input']).read_text().splitlines()];"
    "(folder / 'scores.jsonl').write_text(''.join(json.dumps({'response_id': one['response_id'],"
    " 'reward': float(len(one['response']))}) + '\\n' for one in asked))"
)
WAIT = START + "signal.signal(signal.SIGTERM, lambda *_: os._exit(3)); (folder / 'ready').touch(); time.sleep(600)"
DEAF = START + "signal.signal(signal.SIGTERM, signal.SIG_IGN); (folder / 'ready').touch(); time.sleep(600)"


@pytest.fixture(autouse=True)
def _base(tmp_path: Path, settings: Settings) -> Iterator[None]:
    (tmp_path / "alignapp-model.json").write_text(json.dumps({"sha256": BASE_SHA256, "chat_template_sha256": "c" * 64}))
    settings.MODEL = str(tmp_path)
    settings.SCORINGS_DIR = tmp_path / "scorings"
    supervisor.resume()
    yield
    supervisor.resume()


def in_place_of_scorer(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(processes, "SCORER", [sys.executable, "-c", code])


def add_reward_model(campaign: Campaign, sha256: str = "r" * 64) -> RewardModel:
    run = Run.objects.create(campaign=campaign, method="reward_model", status=Run.Status.SUCCEEDED)
    return RewardModel.objects.create(
        campaign=campaign, run=run, sha256=sha256, base_sha256=BASE_SHA256, is_passed=True, is_active=True
    )


@pytest.fixture
def reward_model() -> RewardModel:
    """Of a campaign that reads rewards, with two comparisons to come."""
    campaign = add_campaign(strategy=Campaign.Strategy.UNCERTAINTY)
    for _ in range(2):
        add_comparison(add_prompt(campaign))
    return add_reward_model(campaign)


def add_sampled(campaign: Campaign, texts: list[str]) -> Prompt:
    """A prompt whose samples wait to be chosen from."""
    prompt = add_prompt(campaign)
    for text in texts:
        assert add_response(prompt, text, None, sampling={"seed": 1}, finish_reason="stop")
    Prompt.objects.filter(pk=prompt.pk).update(candidates_state="sampled", candidates_claimed_at=timezone.now())
    return prompt


def meanwhile(act: Callable[[], object], settings: Settings) -> threading.Thread:
    """Does something once the scorer's stand-in is ready to be told to stop."""

    def body() -> None:
        deadline = time.monotonic() + 60
        while not list(Path(settings.SCORINGS_DIR).glob("*/ready")) and time.monotonic() < deadline:
            time.sleep(0.02)
        act()
        connection.close()

    thread = threading.Thread(target=body)
    thread.start()
    return thread


def is_process_gone(settings: Settings) -> bool:
    folder = str(settings.SCORINGS_DIR)
    return not any(folder in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))


def carry_out(reward_model: RewardModel) -> Scoring:
    scoring = scorings.carry_out(reward_model)
    assert scoring is not None
    return scoring


def test_it_writes_the_rewards_onto_the_responses(reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_scorer(monkeypatch, DONE)
    scoring = carry_out(reward_model)
    assert (scoring.status, scoring.n_responses, scoring.error) == (Scoring.Status.SUCCEEDED, 4, "")
    for response in Response.objects.all():
        assert response.reward == len(response.text)
        assert (response.reward_model, response.rewarded_by) == (reward_model.sha256, None)
    reward_model.campaign.refresh_from_db()
    assert reward_model.campaign.plan_wanted_at
    assert not scorings.is_wanted(reward_model, timezone.now())
    assert not scoring.folder.exists()


def test_it_stores_nothing_of_one_that_went_out_of_use_meanwhile(
    reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    in_place_of_scorer(monkeypatch, WAIT)
    user = add_annotator()
    thread = meanwhile(lambda: reward_models.put_away(reward_model, user, "It is wrong."), settings)
    scoring = carry_out(RewardModel.objects.get())
    thread.join()
    assert (scoring.status, scoring.error) == (Scoring.Status.CANCELLED, "Its reward model is out of use.")
    late = Scoring.objects.create(reward_model=reward_model)
    folder = scorings.prepare(late)
    assert not scorings.store(late, dict.fromkeys(Response.objects.values_list("pk", flat=True), 1.0))
    assert not Response.objects.exclude(reward=None, reward_model="").exists()
    Scoring.objects.update(lease_until=timezone.now())
    scorings.end_forsaken(timezone.now())
    assert not Scoring.objects.filter(status=Scoring.Status.RUNNING).exists()
    assert not folder.exists()


def test_it_scores_again_only_what_is_new_or_by_another(
    reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place_of_scorer(monkeypatch, DONE)
    carry_out(reward_model)
    add_comparison(add_prompt(reward_model.campaign))
    assert carry_out(reward_model).n_responses == 2
    RewardModel.objects.update(is_active=False)
    assert carry_out(add_reward_model(reward_model.campaign, "s" * 64)).n_responses == 6


def test_it_scores_only_where_somebody_reads_it(reward_model: RewardModel) -> None:
    assert scorings.is_wanted(reward_model, timezone.now())
    Campaign.objects.update(strategy=Campaign.Strategy.RANDOM)
    reward_model.refresh_from_db()
    assert not scorings.is_wanted(reward_model, timezone.now())
    add_sampled(reward_model.campaign, ["one", "two"])  # but best of n asks for it
    assert scorings.is_wanted(reward_model, timezone.now())


def test_it_marks_what_could_not_be_scored(reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = [{"response_id": "x"}, {"reward": 1}, [], "text"]
    first, second = Response.objects.order_by("pk")[:2]
    good = [{"response_id": first.pk, "reward": 2.5}, {"response_id": 10**6, "reward": 1.0}]
    lines = "\n".join([*map(json.dumps, [*hostile, *good]), f'{{"response_id": {second.pk}, "reward": NaN}}', "{"])
    in_place_of_scorer(monkeypatch, START + f"(folder / 'scores.jsonl').write_text({lines!r})")
    assert carry_out(reward_model).status == Scoring.Status.SUCCEEDED
    assert Response.objects.get(pk=first.pk).reward == 2.5
    assert Response.objects.filter(reward=None, reward_model=reward_model.sha256).count() == 3
    assert not scorings.is_wanted(reward_model, timezone.now())  # nothing is asked for over and over


def test_it_fails_with_the_scorers_own_sentence_and_rests(
    reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = START + "(folder / 'error.json').write_text(json.dumps({'message': 'It is broken.'})); sys.exit(1)"
    in_place_of_scorer(monkeypatch, code)
    scoring = carry_out(reward_model)
    assert (scoring.status, scoring.error) == (Scoring.Status.FAILED, "It is broken.")
    assert not scoring.folder.exists()
    assert not scorings.is_wanted(reward_model, timezone.now())
    assert scorings.is_wanted(reward_model, timezone.now() + scorings.REST + timedelta(seconds=1))


def test_it_fails_when_done_means_nothing(reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_scorer(monkeypatch, START + "sys.exit(0)")
    assert carry_out(reward_model).status == Scoring.Status.FAILED


def test_it_fails_with_the_end_of_the_log(reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place_of_scorer(
        monkeypatch, START + "(folder / 'log.txt').write_text('x' * 5000 + 'Torch is gone.'); sys.exit(1)"
    )
    assert carry_out(reward_model).error.endswith("xTorch is gone.")


def test_it_fails_when_there_is_no_process_to_be_had(
    reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "SCORER", ["/nonexistent/scorer"])
    scoring = carry_out(reward_model)
    assert scoring.status == Scoring.Status.FAILED
    assert "/nonexistent/scorer" in scoring.error


@pytest.mark.parametrize("code", [WAIT, DEAF])
def test_it_cancels(reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch, settings: Settings, code: str) -> None:
    in_place_of_scorer(monkeypatch, code)
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.5)
    thread = meanwhile(lambda: scorings.request_cancel(Scoring.objects.get()), settings)
    scoring = carry_out(reward_model)
    thread.join()
    assert (scoring.status, scoring.error) == (Scoring.Status.CANCELLED, "Cancelled.")
    assert not scoring.folder.exists()
    assert is_process_gone(settings)


def test_it_makes_way_for_a_run(reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    in_place_of_scorer(monkeypatch, WAIT)
    thread = meanwhile(lambda: runs.create(reward_model.campaign, "dpo", {}), settings)
    scoring = carry_out(reward_model)
    thread.join()
    assert (scoring.status, scoring.error) == (Scoring.Status.CANCELLED, "A run comes first.")
    assert is_process_gone(settings)
    assert not scorings.is_wanted(reward_model, timezone.now())
    Run.objects.update(status=Run.Status.CANCELLED)
    assert scorings.is_wanted(reward_model, timezone.now())


def test_it_stops_with_its_worker(
    reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    in_place_of_scorer(monkeypatch, WAIT)
    thread = meanwhile(supervisor.stop, settings)
    assert carry_out(reward_model).status == Scoring.Status.CANCELLED
    thread.join()
    assert is_process_gone(settings)


def test_it_is_taken_up_again_after_a_kill_until_it_is_too_much(
    reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    in_place_of_scorer(monkeypatch, START + "os.kill(os.getpid(), signal.SIGKILL)")
    for attempt in range(1, settings.RUN_MAX_ATTEMPTS + 1):
        scoring = carry_out(reward_model)
        assert (scoring.status, scoring.attempt) == (Scoring.Status.RUNNING, attempt)
    assert scorings.carry_out(reward_model) is None
    scoring.refresh_from_db()
    assert scoring.status == Scoring.Status.FAILED
    assert "lack of memory" in scoring.error
    assert not list(settings.SCORINGS_DIR.iterdir()), "nor what earlier attempts left"


def test_it_is_one_workers_at_a_time(reward_model: RewardModel, settings: Settings) -> None:
    now = timezone.now()
    first = scorings.claim(reward_model, now)
    assert first
    assert scorings.claim(reward_model, now) is None
    later = now + timedelta(seconds=settings.RUN_LEASE_SECONDS + 1)
    second = scorings.claim(reward_model, later)
    assert second
    assert (second.pk, second.attempt) == (first.pk, 2)
    assert not scorings.end(first, Scoring.Status.FAILED)  # whoever was given up for dead writes nothing
    assert scorings.end(second, Scoring.Status.SUCCEEDED)


def test_it_gives_up_a_job_that_another_has(
    reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    in_place_of_scorer(monkeypatch, WAIT)
    thread = meanwhile(lambda: Scoring.objects.update(attempt=7), settings)
    scoring = carry_out(reward_model)
    thread.join()
    assert (scoring.status, scoring.attempt) == (Scoring.Status.RUNNING, 7)
    assert is_process_gone(settings)


def test_it_renews_the_lease_of_row_and_process(
    reward_model: RewardModel, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    in_place_of_scorer(monkeypatch, WAIT)
    seen: list[tuple[Any, Any, Any]] = []

    def look_twice() -> None:
        for _ in range(2):
            row = Scoring.objects.get()
            lease = attempts.read_json(row.folder / "lease.json") or {}
            seen.append((row.lease_until, lease["until"], lease["token"]))
            time.sleep(1)
        scorings.request_cancel(row)

    thread = meanwhile(look_twice, settings)
    carry_out(reward_model)
    thread.join()
    (row_first, file_first, token), (row_second, file_second, _) = seen
    assert row_second > row_first
    assert file_second > file_first
    assert token == 1


def test_it_lets_the_policy_score_only_campaigns_without_a_reward_model(reward_model: RewardModel) -> None:
    other = add_campaign(strategy=Campaign.Strategy.UNCERTAINTY)
    assert scorings.campaigns_with_reward_model() == [reward_model.campaign_id]
    assert set(rewards._campaigns().exclude(pk__in=scorings.campaigns_with_reward_model())) == {other}
    RewardModel.objects.update(is_active=False)
    assert scorings.campaigns_with_reward_model() == []


# --- best of n --------------------------------------------------------------------------------------------------------
def kept(prompt: Prompt) -> list[str]:
    return sorted(prompt.responses.filter(is_kept=True).values_list("text", flat=True))


@pytest.fixture
def chooser(monkeypatch: pytest.MonkeyPatch) -> RewardModel:
    """Of a campaign that samples six and keeps two; the reward is the length."""
    in_place_of_scorer(monkeypatch, DONE)
    return add_reward_model(add_campaign(n_candidates=2, n_samples=6, random_share=0.0))


TEXTS = [
    "a river",
    "a copper lamp by the window",
    "bread",
    "signals of a hard winter",
    "story of a stone bridge",
    "paper",
]


@pytest.mark.parametrize(
    ("keeps", "expected"),
    [("best", [TEXTS[3], TEXTS[1]]), ("uncertain", [TEXTS[2], TEXTS[5]])],
)
def test_it_keeps_of_the_samples_what_the_campaign_wants(chooser: RewardModel, keeps: str, expected: list[str]) -> None:
    Campaign.objects.update(keeps=keeps)
    prompt = add_sampled(chooser.campaign, TEXTS)
    assert best_of.choose(timezone.now()) == 0  # not scored yet
    assert carry_out(chooser).n_responses == 6
    assert best_of.choose(timezone.now()) == 1
    prompt.refresh_from_db()
    assert prompt.candidates_state == "done"
    assert kept(prompt) == sorted(expected)
    comparison = prompt.comparisons.get()
    assert sorted(one.text for one in comparison.responses.all()) == sorted(expected)
    assert all(one.sampling == {"seed": 1, "of": 6, "kept_by": keeps} for one in prompt.responses.all())
    assert best_of.choose(timezone.now()) == 0


def test_it_lets_chance_keep_any_for_a_share_of_the_prompts(chooser: RewardModel) -> None:
    Campaign.objects.update(random_share=0.5)
    prompts = [add_sampled(chooser.campaign, TEXTS) for _ in range(24)]
    carry_out(chooser)
    assert best_of.choose(timezone.now()) == 24
    by = [prompt.responses.earliest("pk").sampling["kept_by"] for prompt in prompts]
    assert 4 <= by.count("random") <= 20
    assert by.count("random") + by.count("best") == 24
    best = [kept(prompt) for prompt, who in zip(prompts, by, strict=True) if who == "best"]
    assert all(texts == sorted([TEXTS[1], TEXTS[3]]) for texts in best)
    assert len({tuple(kept(prompt)) for prompt in prompts}) > 2


def test_it_does_not_let_people_wait_for_scores_that_do_not_come(chooser: RewardModel) -> None:
    prompt = add_sampled(chooser.campaign, TEXTS)
    assert best_of.choose(timezone.now()) == 0
    assert best_of.choose(timezone.now() + best_of.WAITS + timedelta(seconds=1)) == 1
    assert len(kept(prompt)) == 2
    assert prompt.responses.earliest("pk").sampling["kept_by"] == "random"
    other = add_sampled(chooser.campaign, TEXTS)
    RewardModel.objects.update(is_active=False)  # nobody will score them
    assert best_of.choose(timezone.now()) == 1
    assert len(kept(other)) == 2


def test_it_is_done_with_a_prompt_whose_samples_were_all_known(chooser: RewardModel) -> None:
    Campaign.objects.update(keeps="uncertain")
    prompt = add_sampled(chooser.campaign, [])
    assert best_of.choose(timezone.now()) == 1
    prompt.refresh_from_db()
    assert prompt.candidates_state == "done"
    assert not prompt.comparisons.exists()


def test_it_goes_on_where_one_prompt_fails(chooser: RewardModel) -> None:
    other = add_reward_model(add_campaign(n_candidates=2, random_share=0.0, keeps="gone"), "s" * 64)
    broken = add_sampled(other.campaign, TEXTS)
    prompt = add_sampled(chooser.campaign, TEXTS)
    Response.objects.filter(prompt=broken).update(reward_model=other.sha256, reward=1.0)
    Response.objects.filter(prompt=prompt).update(reward_model=chooser.sha256, reward=1.0)
    assert best_of.choose(timezone.now()) == 1
    assert len(kept(prompt)) == 2
    broken.refresh_from_db()
    assert broken.candidates_state == "sampled"
    assert len(kept(broken)) == 6, "nothing of it is half done"


def test_it_samples_more_only_where_a_reward_model_can_choose(chooser: RewardModel) -> None:
    campaign = chooser.campaign
    assert best_of.n_samples(campaign) == 6
    RewardModel.objects.update(is_active=False)
    assert best_of.n_samples(campaign) == 2
    assert best_of.n_samples(add_campaign(n_candidates=4)) == 4
