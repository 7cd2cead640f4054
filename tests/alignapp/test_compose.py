"""docker-compose.yml and the Dockerfiles against the settings and commands that they name. No Docker is needed."""

import re
from dataclasses import fields
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import get_commands

from alignapp import processes
from tests.alignapp.test_processes import loaded_by_web
from tests.alignapp.test_settings import ROOT, documented_variables, read_variables
from training import catalog

TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
ONLY_IN_COMPOSE = {"POSTGRES_PASSWORD", "MODEL_DIR", "PUBLISH", "VLLM_VERSION", "CODE_VERSION"}
SECRETS = {"SECRET_KEY", "ENGINE_TOKEN", "POSTGRES_PASSWORD", "ADMIN_PASSWORD"}


def _variables() -> dict[str, str]:
    """Name and what follows it (`:?message`, `:-default`) of every ${…}."""
    return {match[1]: match[2] for match in re.finditer(r"\$\{([A-Z_]+)([^}]*)\}", TEXT)}


def test_it_documents_every_variable() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    assert _variables().keys() <= documented_variables() | ONLY_IN_COMPOSE
    assert all(f"`{name}`" in operations for name in ONLY_IN_COMPOSE)


def test_it_has_no_default_secret() -> None:
    required = {name for name, rest in _variables().items() if rest.startswith(":?")}
    assert required >= SECRETS | {"ALLOWED_HOSTS"}
    assert not re.search(r"PASSWORD: (?!\$)\S", TEXT)


def test_it_shows_no_secret_that_could_be_copied() -> None:
    sample = (ROOT / "docs" / "operations.md").read_text()
    assert dict(re.findall(r"^(\w+)=(\$\(openssl rand ).*$", sample, re.MULTILINE)).keys() == SECRETS


@pytest.mark.parametrize("name", OURS)
def test_it_sets_only_what_the_settings_read(name: str) -> None:
    environment = SERVICES[name]["environment"]
    assert environment.keys() <= read_variables()
    assert environment["ALIGNAPP_MODE"] == "production"


@pytest.mark.parametrize("name", OURS)
def test_it_believes_a_proxy_on_the_host(name: str) -> None:
    given = SERVICES[name]["environment"]["FORWARDED_ALLOW_IPS"]
    networks = given.removeprefix("${FORWARDED_ALLOW_IPS:-").removesuffix("}").split(",")
    assert any(ip_address("172.18.0.1") in ip_network(network) for network in networks)
    assert not any(ip_address("203.0.113.7") in ip_network(network) for network in networks)


def test_it_serves_every_rank_that_can_be_trained() -> None:
    match = re.search(r"--max-lora-rank (\d+)", SERVICES["vllm"]["command"])
    [highest] = {field.metadata["high"] for field in fields(catalog.Common) if field.name == "lora_rank"}
    assert match is not None
    assert int(match[1]) == highest
    assert match[0] in (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("name", OURS)
def test_it_tells_images_which_code_they_hold(name: str) -> None:
    build = SERVICES[name]["build"]
    assert build["args"] == {"CODE_VERSION": "${CODE_VERSION:-}"}
    text = (ROOT / build["dockerfile"]).read_text()
    assert "ARG CODE_VERSION" in text
    assert "ENV CODE_VERSION=$CODE_VERSION" in text


@pytest.mark.parametrize("name", OURS)
def test_it_runs_commands_that_exist(name: str) -> None:
    command = SERVICES[name]["command"]
    known = {service.name for service in [processes.engine(), *processes.all_but_engine()]}
    if command[:2] == ["python", "manage.py"]:
        assert command[2] in get_commands()
    else:
        assert command == ["python", "-m", "alignapp.processes", name]
        assert name in known
        assert SERVICES[name]["healthcheck"]["test"] == ["CMD", *command[:3], "--check", name]


def test_it_runs_every_process_of_the_site() -> None:
    assert {service.name for service in [processes.engine(), *processes.all_but_engine()]} <= SERVICES.keys()


def test_it_migrates_before_anything_else_starts() -> None:
    waiting = [name for name in OURS if "migrate" in SERVICES[name]["depends_on"]]
    assert set(waiting) == {"web", "worker", "train-worker", "beat"}


def test_it_checks_the_health_of_every_lasting_service() -> None:
    assert [name for name, service in SERVICES.items() if "healthcheck" not in service] == ["migrate"]


def test_it_declares_every_volume() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert {mount for mount in mounts if not mount.startswith("$")} == COMPOSE["volumes"].keys()


def test_it_gives_the_gpu_to_training_and_serving_only() -> None:
    assert {name for name, service in SERVICES.items() if "deploy" in service} == {"train-worker", "engine", "vllm"}


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "Dockerfile.gpu"])
def test_it_builds_images_that_run_without_root(dockerfile: str) -> None:
    text = (ROOT / dockerfile).read_text()
    assert "FROM python:3.11-slim" in text
    assert text.index("USER alignapp") < text.index("CMD ")
    assert not re.search(r"SECRET_KEY|TOKEN|PASSWORD", text)


def test_it_leaves_only_packages_out_of_the_web_image_that_web_never_loads(tmp_path: Path) -> None:
    match = re.search(r"\^\(([\w|-]+)\)==", (ROOT / "Dockerfile").read_text())
    assert match is not None
    left_out = {name.replace("-", "_") for name in match[1].split("|")}
    assert "torch" in left_out
    assert left_out & loaded_by_web(tmp_path) == set()
