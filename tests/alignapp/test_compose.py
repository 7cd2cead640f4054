"""docker-compose.yml and the Dockerfiles against the settings and commands that they name. No Docker is needed."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import get_commands

from alignapp import processes
from serving.models import Deployment
from tests.alignapp.test_processes import loaded_by_web
from tests.alignapp.test_settings import ROOT, documented_variables, read_variables
from tests.serving import vllm
from training import catalog

TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
WITHOUT_GPU = ("train-worker", "engine")  # whose image and device docker-compose.cpu.yml changes
ONLY_IN_COMPOSE = {"POSTGRES_PASSWORD", "MODEL_DIR", "PUBLISH", "VLLM_VERSION", "CODE_VERSION"}
SECRETS = {"SECRET_KEY", "ENGINE_TOKEN", "POSTGRES_PASSWORD", "ADMIN_PASSWORD"}
# What a site of containers has only one right value for, set here or in the images, and what nothing in them reads.
FIXED = {
    "ALIGNAPP_MODE",
    "DEBUG",
    "VAR_DIR",
    "ARTIFACTS_DIR",
    "HOST",
    "PORT",
    "DATABASE_URL",
    "REDIS_URL",
    "MODEL",
    "ENGINE_HOST",
    "ENGINE_PORT",
    "NO_COLOR",
}
DIFFERENT = {"FORWARDED_ALLOW_IPS", "ENGINE_URLS"}  # settings whose default is another one among containers
VARIABLE = re.compile(r"\$\{([A-Z_]+):([?-])([^}]*)\}")
RESET = object()
DUMP = """
import json, alignapp.settings
values = {name: value for name, value in vars(alignapp.settings).items() if name.isupper()}
print(json.dumps(values, default=lambda value: type(value).__name__))
"""


def _variables() -> dict[str, str]:
    """Name and what follows it (`:?message`, `:-default`) of every ${…}."""
    return {match[1]: match[2] for match in re.finditer(r"\$\{([A-Z_]+)([^}]*)\}", TEXT)}


class _OverrideLoader(yaml.SafeLoader):
    """Reads compose's tag !reset, which takes out what the file below has."""


_OverrideLoader.add_constructor("!reset", lambda loader, node: RESET)


def _without_gpu() -> dict[str, Any]:
    """The services of docker-compose.yml with docker-compose.cpu.yml laid over it."""
    override = _OverrideLoader((ROOT / "docker-compose.cpu.yml").read_text()).get_single_data()
    assert override.keys() == {"services"}
    return _merged(SERVICES, override["services"])


def _merged(base: Any, override: Any) -> Any:
    """As compose merges files: mappings by their keys, and single values by taking the later one."""
    assert not isinstance(override, list), "compose would append it"
    if not isinstance(base, dict) or not isinstance(override, dict):
        return override
    both = base | {key: _merged(base.get(key), value) for key, value in override.items()}
    return {key: value for key, value in both.items() if value is not RESET}


def _filled(value: str) -> str:
    """What compose makes of it where only what is required is given."""
    return VARIABLE.sub(lambda match: match[3] if match[2] == "-" else "x" * 40, value)


def _settings(var_dir: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The settings in a process with this environment."""
    environment = {"PATH": os.environ["PATH"], "VAR_DIR": str(var_dir), **environment}
    command = [sys.executable, "-c", DUMP]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


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
def test_it_passes_every_setting_but_those_that_it_fixes(name: str) -> None:
    environment = SERVICES[name]["environment"]
    passed = {variable for variable, value in environment.items() if value.startswith(f"${{{variable}:")}
    first_administrator = set() if name == "migrate" else {"ADMIN_USERNAME", "ADMIN_PASSWORD"}
    assert passed | first_administrator == documented_variables() - FIXED


def test_it_documents_what_it_fixes() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    match = re.search(r"but for those with one right value in its containers:([^.]*)\.", text)
    assert match is not None
    assert set(re.findall(r"`([A-Z_]+)`", match[1])) == FIXED


def test_it_leaves_settings_at_their_own_defaults(tmp_path: Path) -> None:
    """Also the empty ones: each is something that the settings can read."""
    environment = {name: _filled(value) for name, value in SERVICES["web"]["environment"].items()}
    needed = {
        name: environment[name] for name in environment.keys() & (FIXED | SECRETS | DIFFERENT | {"ALLOWED_HOSTS"})
    }
    assert len(environment) > 3 * len(needed)
    assert _settings(tmp_path, environment) == _settings(tmp_path, needed)


@pytest.mark.parametrize("name", OURS)
def test_it_believes_a_proxy_on_the_host(name: str) -> None:
    given = SERVICES[name]["environment"]["FORWARDED_ALLOW_IPS"]
    networks = given.removeprefix("${FORWARDED_ALLOW_IPS:-").removesuffix("}").split(",")
    assert any(ip_address("172.18.0.1") in ip_network(network) for network in networks)
    assert not any(ip_address("203.0.113.7") in ip_network(network) for network in networks)


def test_it_runs_the_vllm_that_the_contract_is_tested_against() -> None:
    match = re.search(r"behaves as vLLM (\d+\.\d+) does", vllm.__doc__ or "")
    assert match is not None
    tag = _filled(SERVICES["vllm"]["image"]).partition(":")[2]
    assert re.fullmatch(rf"v{re.escape(match[1])}\.\d+", tag)
    assert f"`{tag}`" in (ROOT / "docs" / "operations.md").read_text()


def test_it_serves_every_rank_that_can_be_trained() -> None:
    match = re.search(r"--max-lora-rank (\d+)", SERVICES["vllm"]["command"])
    [highest] = {field.metadata["high"] for field in fields(catalog.Common) if field.name == "lora_rank"}
    assert match is not None
    assert int(match[1]) == highest
    assert match[0] in (ROOT / "docs" / "operations.md").read_text()


def test_it_has_room_for_all_that_an_alias_uses() -> None:
    """On the GPU its version, the one before, its canary and one that is being loaded; in memory also what was before."""
    options = dict(re.findall(r"--([a-z-]+)(?: (?!--)(\S+))?", SERVICES["vllm"]["command"]))
    in_use = [name for name in ("adapter", "previous", "canary") if Deployment._meta.get_field(name)]
    assert int(options["max-loras"]) == len(in_use) + 1
    assert int(options["max-cpu-loras"]) >= 2 * int(options["max-loras"])
    assert {"enable-lora", "enable-prefix-caching"} <= options.keys()
    assert options["served-model-name"] == SERVICES["web"]["environment"]["BASE_MODEL_NAME"]
    assert "True" in SERVICES["vllm"]["environment"].values()


@pytest.mark.parametrize("name", OURS)
def test_it_tells_images_which_code_they_hold(name: str) -> None:
    build = SERVICES[name]["build"]
    assert build["args"] == {"CODE_VERSION": "${CODE_VERSION:-}"}


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


def test_it_needs_no_device_without_a_gpu() -> None:
    services = _without_gpu()
    assert services.keys() == SERVICES.keys()
    devices = {name for name, service in services.items() if "deploy" in service or "nvidia" in str(service)}
    assert {name for name in devices if services[name].get("profiles") != ["vllm"]} == set()


def test_it_changes_nothing_else_without_a_gpu() -> None:
    services = _without_gpu()
    for name in WITHOUT_GPU:
        build = SERVICES[name]["build"] | {"dockerfile": "Dockerfile.cpu"}
        same = {key: value for key, value in SERVICES[name].items() if key != "deploy"}
        assert services[name] == same | {"image": "alignapp-cpu", "build": build}
    assert all(services[name] == SERVICES[name] for name in SERVICES.keys() - set(WITHOUT_GPU))


def test_it_computes_without_a_gpu_at_full_speed() -> None:
    """The engine's own step needs a compiler where it runs, and torch's build for processors is not on PyPI."""
    text = (ROOT / "Dockerfile.cpu").read_text()
    assert re.search(r"apt-get install .*\bg\+\+", text)
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in text


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "Dockerfile.gpu", "Dockerfile.cpu"])
def test_it_builds_images_that_run_without_root(dockerfile: str) -> None:
    text = (ROOT / dockerfile).read_text()
    assert "FROM python:3.11-slim" in text
    assert text.index("USER alignapp") < text.index("CMD ")
    assert text.index("ARG CODE_VERSION") < text.index("ENV CODE_VERSION=$CODE_VERSION")
    assert not re.search(r"SECRET_KEY|TOKEN|PASSWORD", text)


def test_it_leaves_only_packages_out_of_the_web_image_that_web_never_loads(tmp_path: Path) -> None:
    match = re.search(r"\^\(([\w|-]+)\)==", (ROOT / "Dockerfile").read_text())
    assert match is not None
    left_out = {name.replace("-", "_") for name in match[1].split("|")}
    assert "torch" in left_out
    assert left_out & loaded_by_web(tmp_path) == set()
