"""Makes an API key for somebody and prints it: for scripts that set up a site. People use the page of keys."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from serving import keys


class Command(BaseCommand):
    help = "Make an API key for a user and print it. It is not shown again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username")
        parser.add_argument("--name", default="made in a shell", help="what the key is for")
        parser.add_argument(
            "--scopes", nargs="+", choices=list(keys.SCOPES), default=list(keys.SCOPES), metavar="SCOPE"
        )
        parser.add_argument("--days", type=int, default=90, help="how long it works; 0 = for ever")

    def handle(self, *args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["username"], is_active=True).first()
        if user is None:
            raise CommandError(f"There is no active user {options['username']!r}.")
        now = timezone.now()
        expires_at = now + timedelta(days=options["days"]) if options["days"] else None
        try:
            _key, text = keys.create(user, options["name"], options["scopes"], now, expires_at)
        except keys.Refused as error:
            raise CommandError(str(error)) from error
        self.stdout.write(text)
