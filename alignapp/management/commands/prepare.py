"""`python manage.py prepare`: tables, first administrator, starter campaign. `up` does it by itself."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from alignapp import installation
from alignapp.preflight import NotReady


class Command(BaseCommand):
    help = "Migrates the database, makes the first administrator and the starter campaign. Safe to repeat."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            administrator = installation.prepare()
        except NotReady as error:
            raise CommandError(str(error)) from None
        if administrator:
            password = administrator.password or "the one in ADMIN_PASSWORD"
            self.stdout.write(f"Administrator: {administrator.username}, password: {password}")
        self.stdout.write("The installation is up to date.")
