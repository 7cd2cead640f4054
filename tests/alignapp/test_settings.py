import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection

pytestmark = pytest.mark.slow  # starts processes

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ROOT / "alignapp" / "settings.py"
SECRET = "x" * 40
PRODUCTION = {
    "ALIGNAPP_MODE": "production",
    "SECRET_KEY": SECRET,
    "ENGINE_TOKEN": SECRET,
    "ALLOWED_HOSTS": "example.org",
}
OTHER_VARIABLES = {"NO_COLOR"}  # read by the console, as other programs do


def _load(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Load the settings in a fresh process with these variables only."""
    code = "import alignapp.settings as s; print(s.SESSION_COOKIE_SECURE, s.DATABASES['default']['ENGINE'])"
    variables = {"PATH": os.environ["PATH"], "VAR_DIR": str(tmp_path), **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, text=True, capture_output=True)


def read_variables() -> set[str]:
    """Names of the environment variables that settings.py reads: env.str("NAME", …) and _secret("NAME")."""
    calls = [node for node in ast.walk(ast.parse(SETTINGS.read_text())) if isinstance(node, ast.Call)]
    readers = [call for call in calls if re.fullmatch(r"env\.\w+|_secret", ast.unparse(call.func))]
    return {str(call.args[0].value) for call in readers if call.args and isinstance(call.args[0], ast.Constant)}


def documented_variables() -> set[str]:
    """Names in the table of settings."""
    text = (ROOT / "docs" / "operations.md").read_text()
    return set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE))


def test_it_documents_every_setting_and_no_other() -> None:
    assert documented_variables() == read_variables() | OTHER_VARIABLES


def test_it_needs_nothing_locally_and_keeps_its_secrets(tmp_path: Path) -> None:
    assert _load(tmp_path).stdout.split() == ["False", "django.db.backends.sqlite3"]
    secret = (tmp_path / "secret_key").read_text()
    assert len(secret) > 32
    assert (tmp_path / "secret_key").stat().st_mode & 0o077 == 0
    _load(tmp_path)
    assert (tmp_path / "secret_key").read_text() == secret


def test_it_starts_in_production_with_everything_given(tmp_path: Path) -> None:
    assert _load(tmp_path, **PRODUCTION).stdout.startswith("True")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["SECRET_KEY", "ENGINE_TOKEN", "ALLOWED_HOSTS"])
@pytest.mark.parametrize("value", ["", "change-me-" + "x" * 40, "short"])
def test_it_refuses_to_start_in_production_without(tmp_path: Path, name: str, value: str) -> None:
    if name == "ALLOWED_HOSTS":
        value = ""
    result = _load(tmp_path, **{**PRODUCTION, name: value})
    assert result.returncode != 0
    assert f"Set {name} to" in result.stderr.splitlines()[-1]


def test_it_refuses_an_unknown_mode(tmp_path: Path) -> None:
    assert "it must be 'local' or 'production'" in _load(tmp_path, ALIGNAPP_MODE="prod").stderr


@pytest.mark.parametrize(("given", "size"), [("5", "5"), ("0", "16")])
def test_it_pools_postgresql_connections(tmp_path: Path, given: str, size: str) -> None:
    code = (
        "import alignapp.settings as s; d = s.DATABASES['default']; print(d['OPTIONS']['pool']['max_size'], d['HOST'])"
    )
    variables = {
        "PATH": os.environ["PATH"],
        "VAR_DIR": str(tmp_path),
        "DATABASE_URL": "postgres://u:p@%2Frun%2Fpg/name",
        "DATABASE_POOL": given,
        "WEB_THREADS": "8",
    }
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, text=True, capture_output=True)
    assert result.stdout.split() == [size, "/run/pg"]


@pytest.mark.django_db(transaction=True)
def test_it_sets_up_the_database_for_several_writers() -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            values = [
                cursor.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "foreign_keys")
            ]
            assert values == ["wal", 1, 1]
            assert connection.transaction_mode == "IMMEDIATE"  # type: ignore[attr-defined]
        else:
            assert connection.pool is not None  # type: ignore[attr-defined]
            cursor.execute("SHOW server_version_num")
            assert int(cursor.fetchone()[0]) >= 140000


def test_it_never_writes_into_the_checkout() -> None:
    assert not settings.VAR_DIR.is_relative_to(ROOT)
