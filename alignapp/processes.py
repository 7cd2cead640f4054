"""The processes of the site: what each is started with, and how to ask whether it is healthy.

`manage.py up` starts them all. In a container, `python -m alignapp.processes NAME` becomes one of them, and
`python -m alignapp.processes --check NAME` exits with 0 when it is healthy: the same commands, the same health.
"""

import argparse
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial

from django.conf import settings

from alignapp.liveness import is_alive
from alignapp.supervisor import Service

HEALTH_TIMEOUT = 1.0
STALE_SECONDS = 30.0  # a worker or beat that has not been seen at work for this long is not healthy


def engine() -> Service:
    """The model server. It needs no database, so it starts before the migrations."""
    command = [sys.executable, "-m", "serving.engine", "--model", settings.MODEL, "--name", settings.BASE_MODEL_NAME]
    command += [
        "--adapters",
        str(settings.ADAPTERS_DIR),
        "--host",
        settings.ENGINE_HOST,
        "--port",
        str(settings.ENGINE_PORT),
        "--cache",
        str(settings.VAR_DIR / "compiled"),
        *_engine_limits(),
    ]
    is_healthy = partial(_answers, f"http://127.0.0.1:{settings.ENGINE_PORT}/health")
    return Service("engine", command, is_healthy, {"ENGINE_TOKEN": settings.ENGINE_TOKEN})


def web() -> Service:
    """Pages, admin, API and gateway."""
    command = [sys.executable, "-m", "uvicorn", "alignapp.asgi:application", "--host", settings.HOST]
    command += ["--port", str(settings.PORT), "--lifespan", "off", "--timeout-graceful-shutdown", "5"]
    command += ["--log-level", "warning", "--no-access-log", "--no-server-header"]
    command += ["--root-path", settings.FORCE_SCRIPT_NAME or ""]
    command += ["--forwarded-allow-ips", settings.FORWARDED_ALLOW_IPS]
    if settings.WEB_PROCESSES > 1:
        command += ["--workers", str(settings.WEB_PROCESSES)]
    return Service("web", command, partial(_answers, f"{address()}/healthz"))


def worker(name: str, queues: str, n_threads: int) -> Service:
    """A Celery worker: threads, because its tasks wait for the engine, the database and the trainer."""
    command = [*_celery("worker"), "--pool", "threads", "--concurrency", str(n_threads)]
    command += ["--queues", queues, "--hostname", f"{name}@alignapp"]
    return Service(name, command, _touches(name))


def beat() -> Service:
    """Sends what is due: sweepers, policies, reconciliation."""
    return Service("beat", _celery("beat"), _touches("beat"))


def all_but_engine() -> list[Service]:
    """What needs the database."""
    trainer = worker("train-worker", settings.TRAIN_WORKER_QUEUES, 1)
    return [web(), worker("worker", "default", 4), trainer, beat()]


def address() -> str:
    """Where this machine reaches the site."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.HOST, settings.HOST)  # noqa: S104
    return f"http://{host}:{settings.PORT}"


def main(arguments: list[str]) -> int:
    """Become the process NAME, or with --check say whether it is healthy."""
    known = {service.name: service for service in [engine(), *all_but_engine()]}
    parser = argparse.ArgumentParser(prog="python -m alignapp.processes", description=main.__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("name", choices=list(known))
    options = parser.parse_args(arguments)
    service = known[options.name]
    if not options.check:
        os.execve(service.command[0], [*service.command], {**os.environ, **service.environment})  # noqa: S606
    return 0 if service.is_healthy(time.time() - STALE_SECONDS) else 1


def _engine_limits() -> list[str]:
    """Flags for the limits that are set; the engine knows the defaults of the others."""
    limits = {
        "--threads": settings.ENGINE_THREADS,
        "--memory-mib": settings.ENGINE_MEMORY_MIB,
        "--max-adapters": settings.ENGINE_MAX_ADAPTERS,
        "--max-tokens": settings.ENGINE_MAX_TOKENS,
        "--context": settings.ENGINE_CONTEXT,
    }
    return [part for flag, value in limits.items() if value for part in (flag, str(value))]


def _celery(command: str) -> list[str]:
    return [sys.executable, "-m", "celery", "--quiet", "--app", "alignapp", command, "--loglevel", settings.LOG_LEVEL]


def _touches(name: str) -> Callable[[float], bool]:
    return partial(is_alive, name)


def _answers(url: str, since: float) -> bool:
    """Whether `url` answers 200. Asked as the site's own host name: in production no other is allowed."""
    host = settings.ALLOWED_HOSTS[0].lstrip(".") if settings.IS_PRODUCTION else ""
    request = urllib.request.Request(url, headers={"Host": host} if host not in {"", "*"} else {})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=HEALTH_TIMEOUT) as response:  # noqa: S310
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
