"""`python -m tests.campaign PART...`: faults and abuse at length, and docs/reliability.md with what came of them.

Parts that are not named keep what the page says of them.
"""

import argparse
import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.spill import measure
from caravan.download.resolve import resolve_model
from tests.campaign.arrivals import arrivals_campaign
from tests.campaign.batch_kills import compared_batches
from tests.campaign.body_flood import flood, large_bodies
from tests.campaign.cuts import cut_campaign
from tests.campaign.engine_faults import any_rank, fault_campaign
from tests.campaign.flood_client import FLOODS
from tests.campaign.input_floods import KEYS, noticed, write_keys
from tests.campaign.key_floods import delays_of_another_key, highest_priority, slow_grammars
from tests.campaign.long_prompt import pauses_beside_a_long_prompt
from tests.campaign.overload import OPTIONS, capacity, overloaded
from tests.campaign.reliability_page import write_page
from tests.campaign.replica_kills import replica_campaign
from tests.campaign.seeded_bugs import BUGS, GATES, copy_sources, is_killed, passes
from tests.campaign.shutdown import shutdown_campaign
from tests.campaign.soak import soak
from tests.campaign.streams import short_bodies
from tests.campaign.tiny_pool import OPTIONS as TINY_POOL
from tests.campaign.tiny_pool import answers_alone, requests_of_all_kinds, tiny_pool_campaign
from tests.support.gguf_files import write_tiny_llama
from tests.support.ray_replicas import deploy, ray_cluster, server_of_replicas, write_config
from tests.support.running_server import running_server

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "docs" / "reliability.json"
REAL = ["--served-model-name", "smollm2", "--max-model-len", "8192", "--kv-cache-memory", "512MiB"]
TINY = ["--served-model-name", "tiny"]
LEVELS = (0.5, 1, 2, 5, 10)  # times the capacity

Result = dict[str, Any]


async def engine_faults(model: Path) -> Result:
    """50 kills and 20 stops of the engine under 32 streams."""
    with running_server(model, *REAL, "--engine-timeout", "2") as server:
        report = await fault_campaign(server, num_kills=50, num_stops=20, seed=int(time.time()))
        restarts, replayed = server.metric("engine_restarts_total"), server.metric("requests_replayed_total")
        return vars(report) | {"restarts": restarts, "replayed": replayed, "used": server.metric("kv_cache_usage_perc")}


async def arrivals(model: Path) -> Result:
    """20 kills under requests that arrive all the time: with a new engine, a standby, and a model that sleeps."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        keys = ["--api-key-file", str(write_keys(Path(folder) / "keys"))]
        for name, options in {"plain": [], "standby": ["--standby"], "sleeping": ["--sleep-after", "0.5"]}.items():
            with running_server(model, *REAL, *keys, *options) as server:
                report = await arrivals_campaign(
                    server,
                    num_kills=20,
                    seed=int(time.time()),
                    has_standby=name == "standby",
                    is_sleeping=name == "sleeping",
                )
            results[name] = vars(report)
    return results


async def ranks(model: Path) -> Result:
    """20 kills of any of three ranks under 16 streams."""
    options = ["--served-model-name", "smollm2", "--kv-cache-memory", "4MiB", "--num-threads", "1"]
    with running_server(model, *options, "--tensor-parallel", "3") as server:
        report = await fault_campaign(
            server, num_kills=20, num_stops=0, seed=int(time.time()), bodies=short_bodies(16), victims=any_rank
        )
        restarts, replayed = server.metric("engine_restarts_total"), server.metric("requests_replayed_total")
        return vars(report) | {"restarts": restarts, "replayed": replayed, "used": server.metric("kv_cache_usage_perc")}


async def tiny_pool(model: Path) -> Result:
    """600 requests of all kinds in a tiny pool under 20 kills, each compared with its run alone."""
    requests = requests_of_all_kinds(600)
    with running_server(model, "--served-model-name", "smollm2", *TINY_POOL) as server:
        expected = await answers_alone(server, requests)
        return vars(await tiny_pool_campaign(server, requests, expected, num_kills=20, seed=int(time.time())))


async def batch_kills(model: Path) -> Result:
    """A batch of 1,000 lines under five kills of the server, compared with an undisturbed one."""
    with tempfile.TemporaryDirectory() as folder:
        return compared_batches(model, Path(folder), num_lines=1000, num_kills=5)


async def overload(model: Path) -> Result:
    """Five rates of arrivals."""
    with running_server(model, *REAL, *OPTIONS) as server:
        await capacity(server, 5)
        peak = await capacity(server, 15)
        levels = []
        for number, times_capacity in enumerate(LEVELS):
            level = await overloaded(server, times_capacity, times_capacity * peak, 20, seed=number)
            levels.append(
                {
                    "times_capacity": times_capacity,
                    "sent": level.num_sent,
                    "answered": level.statuses[200],
                    "refused": level.statuses[429],
                    "others": level.statuses.total() - level.statuses[200] - level.statuses[429],
                    "goodput": level.goodput,
                    "refusal_p99_seconds": level.refusal_p99_seconds,
                    "max_waiting": level.max_waiting,
                    "recovery_seconds": level.recovery_seconds,
                }
            )
        return {"peak": peak, "levels": levels}


async def long_prompt(model: Path) -> Result:
    """A prompt of 4,000 tokens among eight streams, with and without a target of 100 ms."""
    result: Result = {}
    for name, options in (("none", []), ("100 ms", ["--max-inter-token-latency", "100ms"])):
        with running_server(model, *REAL, *options) as server:
            await pauses_beside_a_long_prompt(server)
            pauses = await pauses_beside_a_long_prompt(server)
            percentiles = {f"p{percent}": pauses.percentile(percent) for percent in (50, 99, 100)}
            result[name] = percentiles | {"first_token_seconds": pauses.first_token_seconds}
    return result


async def cuts(model: Path) -> Result:
    """10,000 requests cut at random moments."""
    with running_server(model, *TINY, "--kv-cache-memory", "256KiB") as server:
        return vars(await cut_campaign(server, num_cuts=10_000, seed=int(time.time())))


async def body_flood(model: Path) -> Result:
    """Twelve bodies of 8 MB at once, of eight kinds, ten times."""
    floods = []
    for kind, body in large_bodies().items():
        with running_server(model, *TINY, "--kv-cache-memory", "4MiB") as server:
            report = await flood(server, kind, body, num_rounds=10)
            statuses = {str(status): num for status, num in report.statuses.items()}
            floods.append(vars(report) | {"statuses": statuses})
    return {"floods": floods}


async def shutdown(model: Path) -> Result:
    """50 times SIGTERM under load."""
    report = await asyncio.to_thread(shutdown_campaign, model, num_shutdowns=50, seed=int(time.time()))
    return vars(report)


async def memory(model: Path) -> Result:
    """10,000 requests, and as many with a leak."""
    result = {}
    for name, program in (("the server", "caravan"), ("a server that leaks", "tests.campaign.leaky_server")):
        with running_server(model, *TINY, "--kv-cache-memory", "1MiB", program=program) as server:
            slopes = await soak(server, num_requests=10_000)
            result[name] = {of: vars(slope) | {"is_flat": slope.is_flat} for of, slope in slopes.items()}
    return result


async def key_floods(_: Path) -> Result:
    """200 requests of a key beside each flood of another."""
    floods = {"slow grammars": slow_grammars, "the highest priority": highest_priority}
    return {name: vars(delays_of_another_key(flood, 200)) for name, flood in floods.items()}


async def input_floods(model: Path) -> Result:
    """Half a minute beside each flood of another key, and without one."""
    with tempfile.TemporaryDirectory() as folder:
        keys = write_keys(Path(folder) / "keys")
        with running_server(model, *REAL, "--api-key-file", str(keys)) as server:
            server.http.headers["authorization"] = f"Bearer {KEYS['other']}"
            await noticed(server, "long texts", num_clients=0, seconds=2)
            result = {"none": vars(await noticed(server, "long texts", num_clients=0, seconds=30))}
            for name in FLOODS:
                result[name] = vars(await noticed(server, name, num_clients=4, seconds=30))
            return result


async def seeded_bugs(_: Path) -> Result:
    """Each known bug in a copy of the sources."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_sources(Path(folder))
        for gates in GATES.values():
            assert passes(gates, copy), f"{gates} fail without a bug"
        result = {}
        for bug in BUGS:
            result[bug.name] = is_killed(bug, copy)
            print(f"  {bug.name}: {'noticed' if result[bug.name] else 'NOT NOTICED'}", flush=True)
        return result


async def spill(model: Path) -> Result:
    """A restart, and 50 kills under 32 streams, with a spill file and without one."""
    return await measure(model)


async def replicas(model: Path) -> Result:
    """20 kills of replicas on Ray Serve under 16 streams; see `tests.support.alone`."""
    with tempfile.TemporaryDirectory(prefix="rt") as folder, ray_cluster(Path(folder)) as environ:
        args = {"model": str(model), "kv_cache_memory": "256MiB", "num_threads": 1, "max_model_len": 2048}
        deploy(write_config(Path(folder) / "config.yaml", args, num_replicas=2), environ)
        with server_of_replicas(model, environ, "--served-model-name", "smollm2") as server:
            report = await replica_campaign(server, num_kills=20, num_replicas=2, seed=int(time.time()))
            return vars(report) | {"moved": server.metric("requests_replayed_total")}


REAL_PARTS: dict[str, Callable[[Path], Any]] = {
    "engine_faults": engine_faults,
    "arrivals": arrivals,
    "tiny_pool": tiny_pool,
    "overload": overload,
    "long_prompt": long_prompt,
    "input_floods": input_floods,
    "spill": spill,
    "replicas": replicas,
}
TINY_PARTS: dict[str, Callable[[Path], Any]] = {
    "batch_kills": batch_kills,
    "ranks": ranks,
    "shutdown": shutdown,
    "cuts": cuts,
    "body_flood": body_flood,
    "memory": memory,
    "key_floods": key_floods,
    "seeded_bugs": seeded_bugs,
}


def commit() -> str:
    """Return the short name of the commit that is checked out."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Run the parts that are named."""
    parts = REAL_PARTS | TINY_PARTS
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*parts, "page"], metavar="PART", help=", ".join(parts))
    names = parser.parse_args().parts
    results: Result = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.gguf"
        write_tiny_llama(tiny)
        real = Path(resolve_model("smollm2", print))
        for name in names:
            if name == "page":
                continue
            began = time.monotonic()
            result = asyncio.run(parts[name](real if name in REAL_PARTS else tiny))
            seconds = time.monotonic() - began
            head = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), "seconds": seconds}
            results[name] = head | {"result": result}
            RESULTS.write_text(json.dumps(results, indent=1, default=vars) + "\n", "utf-8")
            print(f"{name}: {seconds:.0f} s", flush=True)
    write_page(results, PAGE)


if __name__ == "__main__":
    main()
