"""What Celery calls. A message carries ids only: the rows hold the rest."""

from celery import shared_task
from django.utils import timezone

from labeling import exchange


@shared_task
def run_import(import_id: int) -> None:
    if exchange.run(import_id, timezone.now()):
        exchange.nudge(import_id)


@shared_task
def sweep_imports() -> None:
    exchange.sweep(timezone.now())
