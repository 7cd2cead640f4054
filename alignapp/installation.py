"""Brings an installation up to date: tables, the first administrator, the starter campaign. Safe to repeat."""

import secrets
from dataclasses import dataclass

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from labeling import starter


@dataclass(frozen=True)
class Administrator:
    """The account that was just made; `password` is empty when it came from ADMIN_PASSWORD."""

    username: str
    password: str


def prepare() -> Administrator | None:
    """Migrate, make the first administrator and the starter campaign; returns the administrator if it is new."""
    if n_pending_migrations():
        call_command("migrate", interactive=False, verbosity=0)
    administrator = ensure_administrator(settings.ADMIN_USERNAME, settings.ADMIN_PASSWORD)
    starter.ensure()
    return administrator


def n_pending_migrations() -> int:
    """How many migrations the database lacks."""
    executor = MigrationExecutor(connection)
    return len(executor.migration_plan(executor.loader.graph.leaf_nodes()))


def ensure_administrator(username: str, password: str) -> Administrator | None:
    """If no superuser exists, makes one with `password`, or with a random one; otherwise changes nothing."""
    users = get_user_model().objects
    if users.filter(is_superuser=True).exists():
        return None
    made_up = "" if password else secrets.token_urlsafe(12)
    users.create_superuser(username=username, email="", password=password or made_up)
    return Administrator(username, made_up)
