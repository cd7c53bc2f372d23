"""docs/operations.md names metrics, alerts, log fields and options that the server has."""

import os
import re
from pathlib import Path
from unittest.mock import MagicMock

import yaml
from prometheus_client import CollectorRegistry, generate_latest

from caravan.server.engine.engine_swaps import EngineSwaps
from caravan.server.engine.swapped_engine import SwappedEngine
from caravan.server.http.api_keys import load_keys
from caravan.server.observe.build_info import add_build_info
from caravan.server.observe.engine_usage import EngineUsage
from caravan.server.observe.http_record import HttpRecord
from caravan.server.observe.replica_metrics import ReplicaMetrics
from caravan.server.observe.request_record import RequestRecord
from caravan.server.observe.sleep_metrics import SleepMetrics
from caravan.server.settings import Settings, load_settings
from tests.server.openai.api import open_api

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "operations.md").read_text("utf-8")

OTHER_OPTIONS = {
    *("build", "no-deps", "system", "no-create-home", "shell", "now"),  # of docker compose, pip, useradd and systemctl
    *("example", "systemd", "print-config"),  # of caravan config and caravan serve, and no settings
    *("prompt", "output", "memory", "concurrency"),  # of caravan plan and caravan bench
}


def section(title: str) -> str:
    """Return the text below a heading, up to the next one of the same or a higher level."""
    level = title.partition(" ")[0]
    rest = TEXT.partition(f"{title}\n")[2]
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str) -> list[str]:
    """Return the first cell of each row of the tables in a text, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [line.strip("|").split("|")[0].strip() for line in lines[2:]]


async def test_every_metric_of_the_server_is_described_and_no_other() -> None:
    async with open_api() as api:
        exposition = (await api.http.get("/metrics")).text
    families = dict(re.findall(r"^# TYPE (caravan_\w+) (\w+)$", exposition, re.MULTILINE))
    names = {name for name in families if not name.endswith("_created")}
    described = set(re.findall(r"`(caravan_\w+)", section("## Metrics").partition("### Alerts")[0])) - {"caravan_"}
    of_keys = {name for name in described if name.startswith("caravan_key_")}  # only where there are keys
    assert len(of_keys) == 3
    of_batches = {name for name in described if name.startswith("caravan_batch_")}  # only where there is a folder
    assert len(of_batches) == 4
    of_sleep = {name for name in described if name.startswith("caravan_model_")}  # only where models can sleep
    registry = CollectorRegistry()
    SleepMetrics(registry, SwappedEngine(name="a", client=MagicMock(), need_bytes=0, load_seconds=0), EngineSwaps([]))
    exposed = re.findall(r"^# TYPE (caravan_\w+) \w+$", generate_latest(registry).decode(), re.MULTILINE)
    assert of_sleep == {name for name in exposed if not name.endswith("_created")}
    of_replicas = {name for name in described if name.startswith("caravan_replica")}  # only with --engines
    registry = CollectorRegistry()
    ReplicaMetrics(registry, "a", dict)
    exposed = re.findall(r"^# TYPE (caravan_\w+) \w+$", generate_latest(registry).decode(), re.MULTILINE)
    assert of_replicas == {name for name in exposed if not name.endswith("_created")}
    of_process = {name for name in described if name.startswith(("caravan_build_", "caravan_engine_"))} - names
    registry = CollectorRegistry()
    EngineUsage(registry, "a", os.getpid)
    add_build_info(registry, "a", version="1", quantization="auto", kv_cache_dtype="auto", device="cpu")
    exposed = re.findall(r"^# TYPE (caravan_\w+) \w+$", generate_latest(registry).decode(), re.MULTILINE)
    assert of_process == set(exposed)  # only where there is an engine process
    assert described - of_keys - of_batches - of_sleep - of_replicas - of_process == names


def test_the_alerts_are_those_of_the_rules() -> None:
    rules = yaml.safe_load((ROOT / "docker/prometheus/rules.yml").read_text("utf-8"))
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert [cell.strip("`") for cell in first_cells(section("### Alerts"))] == alerts


def test_the_log_fields_are_those_of_the_record() -> None:
    record = RequestRecord("cmpl-1", "1", "", 0.0)
    record.queue(1, 0, num_prompt_tokens=1, max_tokens=1)
    for event in ("joined", "first token"):
        record.add_event(event)
    line = HttpRecord(
        request_id="1",
        client="127.0.0.1",
        key_name="",
        method="POST",
        route="/v1/completions",
        status=200,
        seconds=1.0,
        trace_parent="",
        generation=record,
    )
    table = section("## Logs").partition("\n### ")[0]
    described = [name for cell in first_cells(table) for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(described) == sorted(line.log_fields())


def test_the_api_keys_of_the_examples_are_accepted(tmp_path: Path) -> None:
    keys = section("## API keys")
    (key,) = re.findall(r"CARAVAN_API_KEY=(\S+) caravan serve", keys)
    assert load_keys([key], None) is not None
    (block,) = re.findall(r"((?:^    .+: .+\n)+)", keys.partition("# keys.txt\n")[2], re.MULTILINE)
    file = tmp_path / "keys.txt"
    file.write_text(re.sub("^    ", "", block, flags=re.MULTILINE))
    loaded = load_keys([], file)
    assert loaded is not None
    assert sorted(loaded.names) == ["ann", "batch", "prometheus", "support"]


def test_the_settings_file_and_the_options_exist(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    file = tmp_path / "caravan.yaml"
    file.write_text(block)
    assert load_settings({"config": str(file)}, {}).model == "org/name"
    text = TEXT.partition("## Measure\n")[0] + section("## Shutdown") + section("## Failures")
    options = set(re.findall(r"--([a-z][a-z-]+)", text)) - OTHER_OPTIONS
    assert len(options) > 15
    assert {option.replace("-", "_") for option in options} <= set(Settings.model_fields)
