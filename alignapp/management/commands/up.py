"""`python manage.py up`: everything on this machine, until Ctrl-C."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from alignapp import machine
from alignapp.preflight import NotReady


class Command(BaseCommand):
    help = "Starts web, workers, beat and engine, looks after them, and stops them all on Ctrl-C."
    requires_system_checks: list[str] = []  # the web process runs them; here they cost a second

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            machine.run(sys.stdout)
        except NotReady as error:
            self.stderr.write(self.style.ERROR(str(error)))
            sys.exit(1)
