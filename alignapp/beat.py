"""Celery beat: schedules live in the database and are edited in the admin."""

from typing import Any

from django_celery_beat.schedulers import DatabaseScheduler

from alignapp.liveness import INTERVAL, touch


class Scheduler(DatabaseScheduler):
    """django-celery-beat's scheduler, which also shows that it is alive whenever it looks at what is due."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        touch("beat")
        return min(super().tick(*args, **kwargs), INTERVAL)
