"""The quick start of docs/api.md, run as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connection
from pytest_django.live_server_helper import LiveServer

from labeling.models import Campaign, Judgment
from serving import keys

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = (ROOT / "docs" / "api.md").read_text()


def database_url() -> str:
    """The test's own database, for a process of its own."""
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    return re.sub(r"/[^/?]*(\?|$)", rf"/{name}\1", os.environ["DATABASE_URL"], count=1)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_it_runs_the_quick_start(live_server: LiveServer, tmp_path: Path) -> None:
    User.objects.create_superuser("ada")
    commands = re.findall(r"^```sh\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    script = "set -eu\n" + "\n".join(commands)
    (tmp_path / "manage.py").symlink_to(ROOT / "manage.py")
    environment = {
        **os.environ,
        "ALIGNAPP_URL": live_server.url,
        "DATABASE_URL": database_url(),
        "DJANGO_SETTINGS_MODULE": "alignapp.settings",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [judgment] = Judgment.objects.all()
    assert judgment.strength == 2
    [pair] = [json.loads(line) for line in (tmp_path / "short.jsonl").read_text().splitlines()]
    best = judgment.comparison.responses.get(pk=judgment.order[0])
    assert pair["chosen"][-1]["content"] == best.text
    assert Campaign.objects.get().guidelines_version == 1


def test_it_lists_every_scope() -> None:
    assert set(re.findall(r"^\| `([a-z:]+)` \|", DOCUMENT, re.MULTILINE)) == set(keys.SCOPES)
