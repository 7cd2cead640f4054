import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.test import override_settings

from alignapp import liveness, processes
from alignapp.celery import app
from tests.alignapp.test_settings import ROOT

LOAD = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "alignapp.settings"
import alignapp.asgi, alignapp.beat
from django.urls import get_resolver
from alignapp.celery import app
app.loader.import_default_modules()
get_resolver().url_patterns
print(*{name.partition(".")[0] for name in sys.modules})
"""
WALK = """
import importlib, pkgutil, sys
import serving.engine, training.ml
for package in (serving.engine, training.ml):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
print(sorted({"django", "celery", "kombu"} & set(sys.modules)))
"""


def _run(code: str, var_dir: Path) -> str:
    environment = {"PATH": os.environ["PATH"], "VAR_DIR": str(var_dir)}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def loaded_by_web(var_dir: Path) -> set[str]:
    """Top-level modules in a process that has loaded web, worker and beat."""
    return set(_run(LOAD, var_dir).split())


def test_it_loads_no_torch_in_web_worker_and_beat(tmp_path: Path) -> None:
    assert loaded_by_web(tmp_path) & {"torch", "transformers", "peft", "scipy.stats", "safetensors"} == set()


def test_it_is_healthy_by_name_only_when_seen_lately(tmp_path: Path) -> None:
    assert processes.main(["--check", "beat"]) == 1
    liveness.touch("beat")
    assert processes.main(["--check", "beat"]) == 0


def test_it_refuses_a_process_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        processes.main(["cron"])
    assert "train-worker" in capsys.readouterr().err


@pytest.mark.ml
def test_it_loads_no_django_in_engine_and_trainer(tmp_path: Path) -> None:
    assert _run(WALK, tmp_path) == "[]"


def test_it_schedules_only_tasks_that_exist() -> None:
    app.loader.import_default_modules()
    assert {entry["task"] for entry in app.conf.beat_schedule.values()} <= set(app.tasks)
    assert set(app.conf.task_routes) <= set(app.tasks)


def test_it_has_a_worker_for_every_queue() -> None:
    commands = [" ".join(service.command) for service in processes.all_but_engine()]
    queues = {app.conf.task_default_queue} | {route["queue"] for route in app.conf.task_routes.values()}
    assert {queue for queue in queues if any(f"--queues {queue}" in command for command in commands)} == queues


@override_settings(TRAIN_WORKER_QUEUES="train-gpu,train")
def test_it_has_train_workers_take_from_the_queues_that_are_set() -> None:
    commands = {service.name: " ".join(service.command) for service in processes.all_but_engine()}
    assert "--queues train-gpu,train " in commands["train-worker"]


@override_settings(HOST="0.0.0.0", PORT=9000)
def test_it_shows_an_address_that_can_be_opened() -> None:
    assert processes.address() == "http://127.0.0.1:9000"


@override_settings(FORWARDED_ALLOW_IPS="10.1.0.0/16")
def test_it_tells_the_web_process_whose_word_on_addresses_counts() -> None:
    command = list(processes.web().command)
    assert command[command.index("--forwarded-allow-ips") + 1] == "10.1.0.0/16"


LIMITS = {
    "--threads": "ENGINE_THREADS",
    "--memory-mib": "ENGINE_MEMORY_MIB",
    "--max-adapters": "ENGINE_MAX_ADAPTERS",
    "--max-tokens": "ENGINE_MAX_TOKENS",
    "--context": "ENGINE_CONTEXT",
}


@pytest.mark.parametrize(("flag", "setting"), LIMITS.items())
def test_it_tells_the_engine_the_limits_that_are_set(flag: str, setting: str) -> None:
    with override_settings(**dict.fromkeys(LIMITS.values(), 0)):
        assert LIMITS.keys() & set(processes.engine().command) == set()
        with override_settings(**{setting: 7}):
            command = list(processes.engine().command)
    assert LIMITS.keys() & set(command) == {flag}
    assert command[command.index(flag) + 1] == "7"


def test_it_starts_an_engine_that_takes_these_limits(tiny_model_dir: Path, tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "VAR_DIR": str(tmp_path), "MODEL": str(tiny_model_dir)}
    limits = {"ENGINE_MAX_TOKENS": "64", "ENGINE_CONTEXT": "32", "ENGINE_MAX_ADAPTERS": "2", "ENGINE_THREADS": "1"}
    command = [sys.executable, "-m", "alignapp.processes", "engine"]
    environment |= limits | {"ENGINE_MEMORY_MIB": "1", "ENGINE_PORT": "0"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "more than the 1 MiB of --memory-mib" in result.stderr


def test_it_knows_who_is_alive() -> None:
    assert not liveness.is_alive("somebody", 0)
    liveness.touch("somebody")
    written_at = liveness.file_of("somebody").stat().st_mtime
    assert liveness.is_alive("somebody", written_at)
    assert not liveness.is_alive("somebody", written_at + 1)
