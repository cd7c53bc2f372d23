"""The container files: they parse, agree with each other and with the server, and their own lines install and start."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from caravan.scheduler.config import EngineConfig
from caravan.server.http.host_names import LOOPBACK_NAMES, allowed_hosts
from caravan.server.observe.build_info import add_build_info
from caravan.server.observe.engine_usage import EngineUsage
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.prefix_misses import REASONS
from caravan.server.settings import Settings
from tests.support.extent import only_in_full
from tests.support.http_server import QuietHandler, serving

ROOT = Path(__file__).parent.parent.parent
DOCKERFILES = ("docker/Dockerfile", "docker/Dockerfile.cuda")


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions with their arguments, comments gone and long lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / dockerfile).read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def arguments_of(name: str, dockerfile: str = DOCKERFILES[0]) -> list[str]:
    return [rest for instruction, rest in instructions(dockerfile) if instruction == name]


def dashboard_expressions() -> list[str]:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/caravan.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_image_runs_as_a_user_without_rights_and_serves_by_default(dockerfile: str) -> None:
    assert arguments_of("USER", dockerfile) == ["caravan"]
    start = arguments_of("ENTRYPOINT", dockerfile)[0], arguments_of("CMD", dockerfile)[-1]
    assert [word for line in start for word in json.loads(line)] == ["caravan", "serve"]
    assert arguments_of("EXPOSE", dockerfile) == ["8000"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_image_has_the_environment_of_its_build_stage_and_nothing_else_of_it(dockerfile: str) -> None:
    build, final = arguments_of("FROM", dockerfile)
    assert build == f"{final} AS build"
    found = instructions(dockerfile)
    last = found[[instruction for instruction, _ in found].index("FROM", 1) :]
    assert [rest for instruction, rest in last if instruction == "COPY"] == ["--from=build /opt/caravan /opt/caravan"]
    assert not any("pip install" in rest for _, rest in last)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_health_check_asks_the_server_with_python_itself(dockerfile: str) -> None:
    check = next(rest for instruction, rest in instructions(dockerfile) if instruction == "HEALTHCHECK")
    python, option, program = json.loads(check.partition("CMD ")[2])
    assert (python, option) == ("python", "-c")
    answers = {200: 0, 503: 1}
    for status, code in answers.items():
        with serving(readiness(status)) as url:
            program_here = program.replace("http://127.0.0.1:8000", url)
            assert program_here != program
            assert (
                subprocess.run([sys.executable, "-c", program_here], check=False, stderr=subprocess.DEVNULL).returncode
                == code
            )


def test_the_served_port_answers_to_this_machines_names_to_containers_and_to_prometheus_only() -> None:
    compose = load("docker-compose.yml")
    for name in ("caravan", "caravan-gpu"):
        environment = compose["services"][name]["environment"]
        hosts = allowed_hosts(environment["CARAVAN_ALLOWED_HOSTS"], "0.0.0.0")
        assert hosts == (*LOOPBACK_NAMES, "caravan", "host.docker.internal")


def readiness(status: int) -> type[QuietHandler]:
    """Return what answers /readyz with this status."""

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

    return Handler


def test_both_images_install_the_same_and_only_one_is_for_a_gpu() -> None:
    builds = []
    for dockerfile in DOCKERFILES:
        found = instructions(dockerfile)
        builds.append(found[: [instruction for instruction, _ in found].index("FROM", 1)])
    assert [line for line in builds[0] if line[0] != "ARG"] == [line for line in builds[1] if line[0] != "ARG"]
    devices = ["CARAVAN_DEVICE=cuda" in " ".join(arguments_of("ENV", dockerfile)).split() for dockerfile in DOCKERFILES]
    assert devices == [False, True]


def test_what_the_images_copy_is_not_ignored() -> None:
    everything, *kept = (ROOT / ".dockerignore").read_text().split()
    assert everything == "*"
    for dockerfile in DOCKERFILES:
        lines = [line for line in arguments_of("COPY", dockerfile) if not line.startswith("--from")]
        copied = [path for line in lines for path in shlex.split(line)[:-1]]
        assert len(copied) > 5
        assert {f"!{path}" for path in copied} <= set(kept)


def test_every_image_has_a_pinned_version() -> None:
    images = [service["image"] for service in load("docker-compose.yml")["services"].values() if "image" in service]
    for image in [*images, *(base for dockerfile in DOCKERFILES for base in arguments_of("FROM", dockerfile))]:
        assert re.search(r":v?\d+\.\d+", image), image


def test_the_compose_file_is_one_by_its_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    found = subprocess.run([*command, "docker-compose.yml"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_server_has_limits_and_time_to_drain() -> None:
    services = load("docker-compose.yml")["services"]
    for name in ("caravan", "caravan-gpu"):
        assert services[name]["read_only"] is True
        assert {"memory", "pids"} <= set(services[name]["deploy"]["resources"]["limits"])
        assert (
            int(services[name]["stop_grace_period"].removesuffix("s")) > Settings.model_fields["drain_timeout"].default
        )
    for service in services.values():
        assert "memory" in service["deploy"]["resources"]["limits"]


def test_a_gpu_is_asked_for_by_its_profile_only_and_its_server_takes_the_others_place() -> None:
    services = load("docker-compose.yml")["services"]
    assert [name for name, service in services.items() if "profiles" in service] == ["caravan-gpu"]
    gpu = services["caravan-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert gpu["networks"]["default"]["aliases"] == ["caravan"]
    assert gpu["build"]["dockerfile"] == "docker/Dockerfile.cuda"
    assert gpu["ports"] == services["caravan"]["ports"]


def test_ports_are_on_loopback_and_no_service_has_privileges() -> None:
    for service in load("docker-compose.yml")["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["cap_drop"] == ["ALL"]
        assert "privileged" not in service


def test_every_mounted_path_exists() -> None:
    mounts = [mount for service in load("docker-compose.yml")["services"].values() for mount in service["volumes"]]
    paths = [mount.partition(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(paths) == 4
    assert all((ROOT / path).exists() for path in paths)


def test_prometheus_scrapes_the_server_and_grafana_asks_prometheus() -> None:
    services = load("docker-compose.yml")["services"]
    (job,) = load("docker/prometheus/prometheus.yml")["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert target.partition(":")[0] in services
    assert target.partition(":")[2] == arguments_of("EXPOSE")[0]
    (source,) = load("docker/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services


def test_grafana_finds_the_dashboard_where_it_is_mounted() -> None:
    (provider,) = load("docker/grafana/provisioning/dashboards/caravan.yml")["providers"]
    mounts = load("docker-compose.yml")["services"]["grafana"]["volumes"]
    assert f"./docker/grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_the_dashboard_asks_only_for_metrics_that_the_server_has() -> None:
    metrics = Metrics("m", EngineConfig(num_blocks=64, max_model_len=512), ["ann"])
    metrics.add_ready_gauges(lambda: True, lambda: False)
    EngineUsage(metrics.registry, "m", os.getpid)
    add_build_info(metrics.registry, "m", version="1", quantization="auto", kv_cache_dtype="auto", device="cpu")
    exposition = metrics.exposition().decode()
    names: set[str] = set()
    for family in text_string_to_metric_families(exposition):
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
    asked = {name for expression in dashboard_expressions() for name in re.findall(r"caravan_\w+", expression)}
    assert len(asked) > 12
    assert asked <= names


def test_the_panel_of_prefix_misses_has_a_line_for_each_reason() -> None:
    (expression,) = (one for one in dashboard_expressions() if "prefix_cache_misses" in one)
    assert expression.startswith("sum by (reason) (rate(caravan_prefix_cache_misses_total{")
    metrics = Metrics("m", EngineConfig(num_blocks=64, max_model_len=512), is_restricted=True)
    families = {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}
    reasons = {sample.labels.get("reason") for sample in families["caravan_prefix_cache_misses"].samples}
    assert reasons == {reason.replace(" ", "_") for reason in REASONS}


def test_every_panel_asks_the_source_that_is_chosen_and_there_is_one() -> None:
    (source,) = load("docker/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/caravan.json").read_text())
    (choice,) = (one for one in dashboard["templating"]["list"] if one["type"] == "datasource")
    assert choice["query"] == source["type"]
    for panel in dashboard["panels"]:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == f"${choice['name']}"


def test_the_dashboard_is_what_its_source_writes() -> None:
    command = [sys.executable, "-m", "docker.grafana.dashboard"]
    written = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert written == (ROOT / "docker/grafana/dashboards/caravan.json").read_text(), "make dashboard"


def test_the_dashboard_has_a_row_for_each_question() -> None:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/caravan.json").read_text())
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows[0] == "Now"
    assert len(rows) == 12
    assert len({panel["title"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_panel_has_a_description_and_the_first_row_has_numbers_with_colors() -> None:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/caravan.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    descriptions = [panel["description"] for panel in panels]
    assert len(set(descriptions)) == len(descriptions)
    assert all(text.endswith(".") for text in descriptions)
    tiles = [panel for panel in panels if panel["type"] == "stat"]
    assert [panel["gridPos"]["y"] for panel in tiles] == [1] * 6
    assert sum(len(panel["fieldConfig"]["defaults"]["thresholds"]["steps"]) > 1 for panel in tiles) == 4
    (annotation,) = dashboard["annotations"]["list"]
    assert "caravan_engine_restarts_total" in annotation["expr"]


@pytest.mark.parametrize(("machine", "has_compiler"), [("x86_64", False), ("aarch64", True)])
def test_the_image_has_a_compiler_only_where_the_kernels_are_built_at_the_first_start(
    tmp_path: Path, machine: str, has_compiler: bool
) -> None:
    found = instructions(DOCKERFILES[0])
    last = found[[instruction for instruction, _ in found].index("FROM", 1) :]
    (line,) = (rest for instruction, rest in last if instruction == "RUN" and "g++" in rest)
    for name, program in {"uname": f"echo {machine}", "apt-get": f'echo "$@" >> {tmp_path}/log', "rm": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / name).chmod(0o755)
    subprocess.run(["/bin/sh", "-c", line], env={"PATH": str(tmp_path)}, check=True)
    assert (tmp_path / "log").exists() == has_compiler
    assert not has_compiler or "g++" in (tmp_path / "log").read_text()


@only_in_full()
@pytest.mark.docker
@pytest.mark.timeout(900)
def test_the_install_and_start_lines_of_the_image_work_in_an_empty_environment(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    sources = tmp_path / "sources"
    for line in (line for line in arguments_of("COPY") if not line.startswith("--from")):
        *paths, target = shlex.split(line)
        for path in paths:
            to = sources / target / ("" if (ROOT / path).is_dir() else Path(path).name)
            to.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, to, symlinks=True)
            else:
                shutil.copy(ROOT / path, to)
    environ = os.environ | {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "TORCH_INDEX_URL": ""}
    installs = [line for line in arguments_of("RUN") if line.startswith("pip install")]
    assert len(installs) == 3
    for line in installs:
        subprocess.run(["sh", "-c", line], cwd=sources, env=environ, check=True, stdout=subprocess.DEVNULL)
    start = json.loads(arguments_of("ENTRYPOINT")[0]) + json.loads(arguments_of("CMD")[-1])
    shown = subprocess.run([*start, "--help"], cwd=tmp_path, env=environ, check=True, capture_output=True, text=True)
    assert "Usage: caravan serve" in shown.stdout
    # The kernels are installed, elsewhere than on x86-64 their sources.
    build = "from caravan.model.cpu.build import load_kernels; print(load_kernels().make_layers)"
    guide = (
        "from caravan.server.operations.page import *; "
        "print(files('caravan.server').joinpath('web', f'{GUIDE}.md').read_text()[:9])"
    )
    shown = subprocess.run(
        ["python", "-c", guide], cwd=tmp_path, env=environ, check=True, capture_output=True, text=True
    )
    assert shown.stdout == "# Llama 2\n"
    environ["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    if platform.machine() == "x86_64":
        environ["CXX"] = "no-such-compiler"
    built = subprocess.run(
        ["python", "-c", build], cwd=tmp_path, env=environ, check=True, capture_output=True, text=True
    )
    assert "make_layers" in built.stdout
