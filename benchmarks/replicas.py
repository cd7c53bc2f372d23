"""Measure replicas on Ray Serve: `python -m benchmarks.replicas [PART...]`, in the environment of `make ray-measure`.

conformance   how many rules of the kit hold through two replicas of the default model
prefixes      share of prompt tokens found in prefix caches: 8 prefixes, 6 requests each, 2 replicas, by known prefixes
              and at random
cpu           processor time of the API process for a token, with replicas on Ray and with an engine of its own

`python -m tests.campaign replicas` kills replicas.
"""

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from benchmarks.api_process import cost_of
from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import Request, StepOutput
from caravan.server.replicas import replica_set
from caravan.server.replicas.known_prefixes import choose
from caravan.server.replicas.member import Member
from caravan.server.replicas.replica_listener import ReplicaListener
from caravan.server.replicas.replica_set import ReplicaSet
from tests.conformance.__main__ import all_rules
from tests.conformance.report import judge
from tests.conformance.target import Target
from tests.support.gguf_files import write_tiny_llama
from tests.support.ray_replicas import APPLICATION, TINY, deploy, ray_cluster, server_of_replicas, write_config

REAL = {"kv_cache_memory": "256MiB", "num_threads": 1, "max_model_len": 2048}
NUM_PREFIXES, NUM_REQUESTS, PREFIX_TOKENS, OWN_TOKENS = 8, 6, 256, 8
CONCURRENCY = 4
Environment = dict[str, str]


def conformance(folder: Path, environ: Environment) -> None:
    """Judge a server of two replicas by every rule of the kit."""
    model = resolve_model(DEFAULT_MODEL, print)
    deploy(write_config(folder / "real.yaml", REAL | {"model": str(model)}, num_replicas=2), environ)
    options = ("--served-model-name", DEFAULT_MODEL, "--api-key", "sesame-open")
    with server_of_replicas(model, environ, *options) as server:
        target = Target(server.url, "sesame-open")
        verdicts = judge(all_rules(), target, lambda _: None)
        target.close()
    for verdict in verdicts:
        if verdict.reason:
            print(f"  {verdict.rule.group}: {verdict.rule.name}: {verdict.reason}")
    print(f"conformance: {sum(not one.reason for one in verdicts)} of {len(verdicts)} rules hold", flush=True)


def prefixes(folder: Path, environ: Environment) -> None:
    """Print the hit rate of a load with shared prefixes, by both ways of routing, on engines that start empty."""
    os.environ.update(environ)
    model = folder / "tiny.gguf"
    write_tiny_llama(model)
    for name, rule in (("known prefixes", choose), ("random", at_random)):
        args = TINY | {
            "model": str(model),
            "engine_timeout": 10.0 if rule is choose else 11.0,
        }  # other args: new engines
        deploy(write_config(folder / "tiny.yaml", args, num_replicas=2), environ)
        vars(replica_set)["choose"] = rule
        rates = asyncio.run(hit_rates(3))
        print(f"prefixes, {name}: {', '.join(f'{rate:.3f}' for rate in rates)}", flush=True)


def at_random(candidates: Sequence[Member], hashes: Sequence[bytes]) -> tuple[Member, int]:
    """Return any replica, as a router that knows nothing does."""
    chosen = random.choice(candidates)
    return chosen, chosen.known.count(hashes)


class HitCounter(ReplicaListener):
    """Counts the tokens that were looked up and found."""

    def __init__(self) -> None:
        self.num_queries = self.num_hits = 0

    @override
    def on_step(self, output: StepOutput, total: StepOutput) -> None:
        self.num_queries += output.stats.prefix_cache_queries
        self.num_hits += output.stats.prefix_cache_hits


async def hit_rates(num_repeats: int) -> list[float]:
    """Return the share of tokens found, for each of several loads with other prefixes."""
    from caravan.server.replicas.ray_cluster import RayCluster

    replicas, cluster = ReplicaSet(), RayCluster(APPLICATION)
    await cluster.start(replicas)
    async with asyncio.timeout(300):
        while len(replicas.members) < 2:
            await asyncio.sleep(0.1)
    rates = []
    for repeat in range(num_repeats):
        counter = replicas.listener = HitCounter()
        await run_load(replicas, random.Random(repeat))
        rates.append(counter.num_hits / counter.num_queries)
    await cluster.stop()
    await replicas.stop()
    return rates


async def run_load(replicas: ReplicaSet, dice: random.Random) -> None:
    """Run all requests, CONCURRENCY at a time, in random order."""

    def tokens(num: int) -> list[int]:
        return [dice.randrange(3, 250) for _ in range(num)]

    prompts = [
        [*prefix, *tokens(OWN_TOKENS)]
        for prefix in (tokens(PREFIX_TOKENS) for _ in range(NUM_PREFIXES))
        for _ in range(NUM_REQUESTS)
    ]
    dice.shuffle(prompts)
    room = asyncio.Semaphore(CONCURRENCY)

    async def run(prompt: list[int]) -> None:
        async with room:
            queue = replicas.submit(Request(prompt_token_ids=prompt, params=SamplingParams(max_tokens=8, seed=1)))
            has_output = asyncio.Event()
            queue.on_output = has_output.set
            while (output := queue.take()) is None or output.finish_reason is None:
                has_output.clear()
                await has_output.wait()

    await asyncio.gather(*map(run, prompts))


def cpu(folder: Path, environ: Environment) -> None:
    """Print the processor time of a token, with replicas and without, in turn."""
    model = resolve_model(DEFAULT_MODEL, print)
    args = {"model": str(model), "step_ms": 10, "tokens_per_step": 1}
    import_path = "benchmarks.replica_app:fake_engines"
    deploy(write_config(folder / "fake.yaml", args, import_path=import_path, num_replicas=1), environ)
    arguments = argparse.Namespace(chat=False, fields={}, max_tokens=128, repeats=2)
    print("cpu: streams  us/token  system part  events/token  ms/request   tokens/s", flush=True)
    for _ in range(2):
        with server_of_replicas(model, environ, "--served-model-name", "bench") as server:
            port = int(server.url.rpartition(":")[2])
            for num_streams in (8, 32):
                print(
                    f"  Ray      {num_streams:>7}  {cost_of(server.process.pid, port, num_streams, arguments)}",
                    flush=True,
                )
        options = ["--streams", "8,32", "--max-tokens", "128", "--repeats", "2"]
        command = [sys.executable, "-m", "benchmarks.api_process", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for line in re.findall(r"^ +\d+ .*$", done.stdout, re.MULTILINE):
            print(f"  own      {line}", flush=True)


def main() -> None:
    """Run the parts that are named, all by default, each on a cluster of its own."""
    parts: dict[str, Any] = {"conformance": conformance, "prefixes": prefixes, "cpu": cpu}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="PART", help=", ".join(parts))
    for name in parser.parse_args().parts or parts:
        with tempfile.TemporaryDirectory(prefix="rt") as folder, ray_cluster(Path(folder)) as environ:
            parts[name](Path(folder), environ)


if __name__ == "__main__":
    main()
