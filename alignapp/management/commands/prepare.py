"""`python manage.py prepare`: tables, first administrator, starter campaign. `up` does it by itself."""

from typing import Any

from django.core.management.base import BaseCommand

from alignapp import installation


class Command(BaseCommand):
    help = "Migrates the database, makes the first administrator and the starter campaign. Safe to repeat."

    def handle(self, *args: Any, **options: Any) -> None:
        administrator = installation.prepare()
        if administrator:
            password = administrator.password or "the one in ADMIN_PASSWORD"
            self.stdout.write(f"Administrator: {administrator.username}, password: {password}")
        self.stdout.write("The installation is up to date.")
