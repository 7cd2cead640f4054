"""Brings an installation up to date: tables, the first administrator, the starter campaign. Safe to repeat."""

import secrets
from dataclasses import dataclass

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from alignapp.preflight import NotReady
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
    """If no superuser exists, makes one with `password`, or with a random one; otherwise changes nothing.

    Raises NotReady for a weak password in production. Locally anything goes: only this machine reaches the site.
    """
    users = get_user_model().objects
    if users.filter(is_superuser=True).exists():
        return None
    if settings.IS_PRODUCTION and password:
        _check_password(username, password)
    made_up = "" if password else secrets.token_urlsafe(12)
    users.create_superuser(username=username, email="", password=password or made_up)
    return Administrator(username, made_up)


def _check_password(username: str, password: str) -> None:
    try:
        validate_password(password, get_user_model()(username=username))
    except ValidationError as error:
        raise NotReady(f"Set ADMIN_PASSWORD to a better one: {' '.join(error.messages)}") from None
