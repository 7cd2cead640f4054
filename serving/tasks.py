"""Celery: look at the rows and act. Beat sends `reconcile` every 15 seconds."""

from celery import shared_task
from django.utils import timezone

from serving import adapters, chat


@shared_task
def reconcile() -> None:
    now = timezone.now()
    chat.close_abandoned(now)  # first: what nobody writes any more pins no version
    adapters.reconcile(now)
