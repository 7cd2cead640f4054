"""One machine that runs the whole site: checks, preparation, processes, and the address when all are healthy."""

from pathlib import Path
from typing import TextIO

from django.conf import settings

from alignapp import installation, preflight, processes
from alignapp.console import Console
from alignapp.installation import Administrator
from alignapp.supervisor import OURSELVES, Supervisor

NAMES = (OURSELVES, "web", "engine", "worker", "train-worker", "beat")


def run(stream: TextIO) -> None:
    """Start everything and stay until a signal comes. Raises NotReady before anything is started."""
    preflight.check_disk(settings.VAR_DIR)
    with preflight.lock(settings.VAR_DIR):
        _check()
        console = Console(stream, settings.VAR_DIR / "log", NAMES)
        with Supervisor(console) as supervisor:
            console.say(OURSELVES, f"Starting; everything is kept in {settings.VAR_DIR}")
            if settings.HAS_EMBEDDED_ENGINE:
                supervisor.add(processes.engine())
            administrator = installation.prepare()
            for service in processes.all_but_engine():
                supervisor.add(service)
            supervisor.watch(lambda: console.box(_welcome(administrator)))
            console.say(OURSELVES, "Stopping (once more to stop at once)")
        console.say(OURSELVES, "Stopped")


def _check() -> None:
    preflight.check_disk(settings.ARTIFACTS_DIR)
    preflight.check_port(settings.HOST, settings.PORT, "PORT")
    if settings.HAS_EMBEDDED_ENGINE:
        preflight.check_port("127.0.0.1", settings.ENGINE_PORT, "ENGINE_PORT")
        preflight.check_model(Path(settings.MODEL))


def _welcome(administrator: Administrator | None) -> list[str]:
    lines = [f"Alignapp is ready: {processes.address()}"]
    if administrator:
        password = administrator.password or "the one in ADMIN_PASSWORD"
        lines += [
            f"Administrator:     {administrator.username}",
            f"Password:          {password}" + (" (shown only now)" if administrator.password else ""),
        ]
    return lines
