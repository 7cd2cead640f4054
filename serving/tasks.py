"""Celery: look at the rows and act. Beat sends `reconcile` every 15 seconds; an engine can keep it for longer."""

from celery import shared_task
from django.utils import timezone

from serving import adapters, chat, requests, trials
from serving.locks import only_one


@shared_task
def reconcile() -> None:
    with only_one("reconcile") as is_mine:
        if is_mine:
            now = timezone.now()
            chat.close_abandoned(now)  # first: what nobody writes any more pins no version
            requests.purge(now)
            trials.judge(now)
            adapters.reconcile(now)
