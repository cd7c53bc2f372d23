"""A cluster of Ray on this machine, with replicas of Caravan, for tests and measurements of real Ray.

Everything runs where `tests.support.alone` puts it: Ray listens on all interfaces.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from caravan.cli.deploy import IMPORT_PATH
from tests.support.alone import is_alone
from tests.support.running_server import RunningServer, running_server

APPLICATION = "caravan"
TINY = {"kv_cache_memory": "4MiB", "dtype": "float32", "num_threads": 1}
_START_SECONDS = 180
_NUM_STARTS = 3  # Ray gives up after 30 s, which a busy machine can need


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of all processes: nothing is reported, and no memory of others ends a process."""
    return os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_niceness": "0",  # 15 by default, also for the engine
        "RAY_health_check_timeout_ms": "60000",  # on a busy machine a healthy node is late
        "RAY_health_check_failure_threshold": "20",
        "RAY_worker_register_timeout_seconds": "180",
        "RAY_gcs_server_request_timeout_seconds": "180",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-the-tests-0123456789abcdef",
        "RAY_ADDRESS": "127.0.0.1:6379",
        "OMP_NUM_THREADS": "1",
        "HOME": os.environ.get("HOME", str(folder)),
    }


@contextmanager
def ray_cluster(folder: Path, num_cpus: int = 8) -> Iterator[dict[str, str]]:
    """Start a cluster of one node, and yield the environment of its clients; its processes end with the namespace."""
    assert is_alone(), "run it with `python -m tests.support.alone`"
    environ = environment(folder)
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    head = ["start", "--head", "--port=6379", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
    command = [*ray, *head, f"--num-cpus={num_cpus}", f"--temp-dir={folder / 'ray'}", "--disable-usage-stats"]
    stop = [*ray, "stop", "--force"]  # what runs in this namespace of processes only
    for _ in range(_NUM_STARTS):
        with (folder / "start.log").open("w") as log:
            done = subprocess.run(command, env=environ, stdout=log, stderr=log, check=False, timeout=_START_SECONDS)
        if done.returncode == 0:
            break
        subprocess.run(stop, env=environ, stdout=subprocess.DEVNULL, check=False, timeout=60)
    assert done.returncode == 0, (folder / "start.log").read_text()[-2000:]
    try:
        yield environ
    finally:
        subprocess.run(stop, env=environ, stdout=subprocess.DEVNULL, check=False, timeout=60)


def write_config(path: Path, args: dict[str, Any], import_path: str = IMPORT_PATH, **options: Any) -> Path:
    """Write a file for `caravan deploy`; `options` are those of the deployment."""
    application = {
        "name": APPLICATION,
        "import_path": import_path,
        "route_prefix": None,
        "args": args,
        "deployments": [{"name": "Engines", "ray_actor_options": {"num_cpus": 1}} | options],
    }
    path.write_text(yaml.safe_dump({"proxy_location": "Disabled", "applications": [application]}))
    return path


def deploy(config: Path, environ: dict[str, str]) -> str:
    """Run `caravan deploy` and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "caravan", "deploy", str(config)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=_START_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def server_of_replicas(model: Path, environ: dict[str, str], *options: str) -> Iterator[RunningServer]:
    """Start `caravan serve` for the application."""
    with running_server(model, "--engines", f"ray://{APPLICATION}", *options, environ=environ) as server:
        yield server


def engine_pids() -> list[int]:
    """Return the process ids of all engine processes."""
    return [one.pid for one in psutil.process_iter() if "caravan.scheduler.process" in _arguments(one)]


def replica_pids() -> list[int]:
    """Return the process ids of Serve's own replicas, each of which owns an actor."""
    return [one.pid for one in psutil.process_iter() if "ServeReplica:" in " ".join(_arguments(one))]


def actor_pids() -> list[int]:
    """Return the process ids of the actors that own the engine processes."""
    return sorted({psutil.Process(pid).ppid() for pid in engine_pids()})


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended
        return []
