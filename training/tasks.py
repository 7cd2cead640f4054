"""What Celery calls. A message carries ids only: the rows hold the rest."""

from typing import Any

from celery import shared_task
from celery.signals import worker_init, worker_shutting_down
from django.utils import timezone

from labeling import rewards
from serving.locks import only_one
from training import best_of, candidates, leftovers, policies, runs, scorings, supervisor
from training.models import Policy


@shared_task
def supervise(run_id: int) -> None:
    supervisor.supervise(run_id)


@shared_task
def sweep() -> None:
    now = timezone.now()
    runs.sweep(now)
    scorings.end_forsaken(now)
    leftovers.remove(now)


@shared_task
def generate_candidates() -> None:
    if candidates.generate():
        generate_candidates.delay()


@shared_task
def score_responses() -> None:
    scorings.nudge()
    best_of.choose(timezone.now())
    if candidates.is_engine_idle(timezone.now()) and rewards.score(but=scorings.campaigns_with_reward_model()):
        score_responses.delay()


@shared_task
def score_by_reward_models() -> None:
    scorings.carry_out_all()


@shared_task
def check_policies() -> None:
    with only_one("policies") as is_mine:
        if is_mine:
            policies.check()


@shared_task
def train_on_schedule(policy_id: int) -> None:
    if policy := Policy.objects.filter(pk=policy_id).select_related("campaign").first():
        policies.start(policy)


@worker_init.connect
def _take_runs(**_signal: Any) -> None:
    supervisor.resume()


@worker_shutting_down.connect
def _give_runs_back(**_signal: Any) -> None:
    supervisor.stop()
