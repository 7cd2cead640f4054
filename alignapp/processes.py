"""The processes of one machine: what each is started with, and how to ask whether it is healthy."""

import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial

from django.conf import settings

from alignapp.liveness import is_alive
from alignapp.supervisor import Service

HEALTH_TIMEOUT = 1.0


def engine() -> Service:
    """The model server. It needs no database, so it starts before the migrations."""
    command = [sys.executable, "-m", "serving.engine", "--model", settings.MODEL, "--name", settings.BASE_MODEL_NAME]
    command += ["--adapters", str(settings.ADAPTERS_DIR), "--host", "127.0.0.1", "--port", str(settings.ENGINE_PORT)]
    if settings.ENGINE_THREADS:
        command += ["--threads", str(settings.ENGINE_THREADS)]
    is_healthy = partial(_answers, f"http://127.0.0.1:{settings.ENGINE_PORT}/health")
    return Service("engine", command, is_healthy, {"ENGINE_TOKEN": settings.ENGINE_TOKEN})


def web() -> Service:
    """Pages, admin, API and gateway."""
    command = [sys.executable, "-m", "uvicorn", "alignapp.asgi:application", "--host", settings.HOST]
    command += ["--port", str(settings.PORT), "--lifespan", "off", "--timeout-graceful-shutdown", "5"]
    command += ["--log-level", "warning", "--no-access-log", "--no-server-header"]
    return Service("web", command, partial(_answers, f"{address()}/healthz"))


def worker(name: str, queue: str, n_threads: int) -> Service:
    """A Celery worker: threads, because its tasks wait for the engine, the database and the trainer."""
    command = [*_celery("worker"), "--pool", "threads", "--concurrency", str(n_threads)]
    command += ["--queues", queue, "--hostname", f"{name}@alignapp"]
    return Service(name, command, _touches(name))


def beat() -> Service:
    """Sends what is due: sweepers, policies, reconciliation."""
    return Service("beat", _celery("beat"), _touches("beat"))


def all_but_engine() -> list[Service]:
    """What needs the database."""
    return [web(), worker("worker", "default", 4), worker("train-worker", "train", 1), beat()]


def address() -> str:
    """Where this machine reaches the site."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.HOST, settings.HOST)  # noqa: S104
    return f"http://{host}:{settings.PORT}"


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
