"""What Celery calls. A message carries ids only: the rows hold the rest."""

import numpy as np
from celery import shared_task
from django.utils import timezone

from labeling import exchange, plans, statistics
from serving.locks import only_one


@shared_task
def run_import(import_id: int) -> None:
    if exchange.run(import_id, timezone.now()):
        exchange.nudge(import_id)


@shared_task
def sweep_imports() -> None:
    exchange.sweep(timezone.now())


@shared_task
def plan_campaigns() -> None:
    with only_one("plans") as is_mine:
        if is_mine:
            for campaign in plans.waiting(timezone.now()):
                plans.plan(campaign, timezone.now(), np.random.default_rng())


@shared_task
def refresh_statistics() -> None:
    with only_one("statistics") as is_mine:
        if is_mine:
            statistics.refresh_due(timezone.now())
