"""Simulate a fleet of Caravans in virtual time, with the real scheduler: `python -m benchmarks.simulate`.

`calibrate` measures what a step costs on this machine, `run` simulates loads and fleets, `check` compares simulations
with a real engine. docs/scaling.md describes the method and its error.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.page_sections import with_section
from benchmarks.server_process import ServerFailed
from benchmarks.simulation.arguments import positive, several, size, sizes, whole, wholes
from benchmarks.simulation.arrivals import Load, cut, poisson, trace
from benchmarks.simulation.calibration import calibrate, commit, warm_up
from benchmarks.simulation.check import (
    HEADING,
    LEAST_REQUESTS,
    calibrated_again,
    check_loads,
    compare,
    comparison,
    comparisons_table,
    section,
    simulated,
)
from benchmarks.simulation.cost_file import CostFile, read_cost_file, write_cost_file
from benchmarks.simulation.http_server import measure_api, record_http, served
from benchmarks.simulation.report import figures_table, limits_text, trials_table
from benchmarks.simulation.router import ROUTERS
from benchmarks.simulation.sampling import GROUP, NUM_GROUPS, simulate_fleet
from benchmarks.simulation.search import Target, Trial, best, combinations, search
from caravan.cli.bench.lengths import NOTATION, parse_lengths
from caravan.download.resolve import resolve_model
from caravan.scheduler.config import EngineConfig, EngineLimits
from caravan.scheduler.loaded_model import start_engine
from caravan.scheduler.messages import StartEngine

DEFAULT_SECONDS = 600.0  # of a load with --rate
PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


def main(words: Sequence[str] | None = None) -> None:
    """Run a command; a mistake of the caller ends it with one line."""
    parser = parser_of_commands()
    arguments = parser.parse_args(words)
    try:
        arguments.command(arguments)
    except (ValueError, OSError, ServerFailed) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


def parser_of_commands() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("calibrate", help="measure what a step of a model costs on this machine")
    one.set_defaults(command=calibrate_command)
    one.add_argument("model", help="a model as `caravan serve` takes it")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the costs are written, as JSON")
    one.add_argument("--seconds", type=positive, default=40.0, help="of each of two loads, after a burst")
    one.add_argument("--no-http", action="store_true", help="leave out the cost of the API process")
    one.add_argument("--quantization", default="auto", choices=["auto", "none", "native", "int8", "int4"])
    one.add_argument("--threads", type=whole, help="compute threads; default: one per core")
    one.add_argument("--pool", type=size, help="KV pool, such as 1GiB; default: half of the free memory")
    one.add_argument("--budget", type=whole, help="tokens computed in one step")
    one.add_argument("--max-num-seqs", type=whole, help="sequences running at once")
    one.add_argument("--max-model-len", type=whole, help="prompt and output of one sequence, in tokens")
    one.add_argument("--seed", type=int, default=0)

    one = commands.add_parser("run", help="simulate a load")
    one.set_defaults(command=run_command)
    one.add_argument("--cost", type=Path, required=True, metavar="FILE", help="a file of `calibrate`")
    source = one.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--trace", type=Path, metavar="CSV", help="arrivals and lengths, in the format of Azure's traces"
    )
    source.add_argument("--rate", type=positive, help="requests a second, of all replicas together")
    one.add_argument("--prompt", type=parse_lengths, metavar="LENGTH", help=f"with --rate: {NOTATION}")
    one.add_argument("--output", type=parse_lengths, metavar="LENGTH", help="the same")
    one.add_argument("--time-scale", type=positive, help="of the times between the arrivals of a trace")
    one.add_argument("--copies", type=whole, help="of the trace beside each other, each from another time on")
    one.add_argument("--seconds", type=positive, help="of arrivals; default: 600, or all of a trace")
    one.add_argument("--max-prompt", type=whole, help="cut longer prompts to this number of tokens")
    one.add_argument("--max-output", type=whole, help="cut longer outputs to this number of tokens")
    one.add_argument("--shared-prefix", type=whole, default=0, metavar="TOKENS", help="at the begin of each prompt")
    one.add_argument("--prefixes", type=whole, default=1, help="number of different shared prefixes")
    one.add_argument("--replicas", type=whole, default=1)
    one.add_argument("--router", choices=[*ROUTERS], default="least-outstanding")
    one.add_argument("--pool", type=sizes, metavar="SIZES", help="KV pool of a replica; several as in 1GiB,2GiB")
    one.add_argument("--budget", type=wholes, metavar="TOKENS", help="tokens in one step; several as in 256,512")
    one.add_argument("--max-num-seqs", type=wholes, metavar="NUMBERS", help="sequences running at once, or several")
    one.add_argument(
        "--target-first-token",
        type=positive,
        metavar="SECONDS",
        help="search the fewest replicas with which 95 %% of the first tokens come within this time",
    )
    one.add_argument("--max-replicas", type=whole, help="of the search; default: until requests are alone")
    one.add_argument("--group", type=whole, default=GROUP, help="replicas of a sampled group")
    one.add_argument("--groups", type=several, default=NUM_GROUPS, help="sampled groups of a fleet with more replicas")
    one.add_argument(
        "--processes", type=whole, default=os.cpu_count() or 1, help="for sampled groups; default: all cores"
    )
    one.add_argument("--seed", type=int, default=0)

    one = commands.add_parser("check", help="compare simulations with a real engine")
    one.set_defaults(command=check_command)
    one.add_argument("model", help="the model of the cost file")
    one.add_argument("--cost", type=Path, required=True, metavar="FILE", help="a file of `calibrate`")
    one.add_argument("--requests", type=whole, default=400, help="of each of three loads, about")
    one.add_argument(
        "--calibrate",
        type=positive,
        default=20.0,
        metavar="SECONDS",
        help="of each of two loads that follow a burst: the costs are measured again right before each check",
    )
    one.add_argument("--http", action="store_true", help="a second time through a server on this machine")
    one.add_argument("--trace", type=Path, metavar="CSV", help="arrivals and lengths for the first load")
    one.add_argument("--page", action="store_true", help="write the table into docs/scaling.md")
    one.add_argument("--seed", type=int, default=1000)
    return parser


def calibrate_command(arguments: argparse.Namespace) -> None:
    """Measure and write a cost file."""
    if not arguments.out.parent.is_dir():
        raise ValueError(f"Cannot write {arguments.out}: {arguments.out.parent} is not a folder.")
    limits = EngineLimits(
        kv_cache_memory_bytes=arguments.pool,
        max_model_len=arguments.max_model_len,
        max_batch_tokens=arguments.budget,
        max_num_seqs=arguments.max_num_seqs,
        speculation="off",  # whether draft tokens are accepted depends on texts
    )
    start = StartEngine(
        model_path=str(resolve_model(arguments.model, print)),
        limits=limits,
        quantization=arguments.quantization,
        num_threads=arguments.threads,
    )
    costs = calibrate(start, model=arguments.model, seconds=arguments.seconds, seed=arguments.seed, report=print)
    if not arguments.no_http:
        with served(costs) as server:
            costs = msgspec.structs.replace(costs, api=measure_api(server.url, server.pid, costs))
    write_cost_file(arguments.out, costs)
    cost, api = costs.cost, costs.api
    print(
        f"A step takes {1e3 * cost.step_seconds:.2f} ms, {1e6 * cost.prefill_token_seconds:.1f} us for a prompt token, "
        f"{1e6 * cost.decode_row_seconds:.1f} us for a decode row, {1e9 * cost.kv_token_seconds:.1f} ns for a position "
        f"that a decode row attends to, {1e9 * cost.prefill_context_seconds:.1f} ns for one of a prompt token. The API "
        f"process takes {1e3 * api.request_seconds:.1f} ms for a request, {1e6 * api.token_seconds:.0f} us "
        f"for a token.\nMedian error of a step: {100 * costs.median_step_error:.1f} % of {costs.num_steps:,} steps."
    )


def run_command(arguments: argparse.Namespace) -> None:
    """Simulate one fleet, or several and name the smallest that meets the target."""
    costs = read_cost_file(arguments.cost)
    load = load_of(arguments)
    configs = combinations(
        costs.config,
        [costs.num_blocks(number) for number in arguments.pool] if arguments.pool else [costs.config.num_blocks],
        arguments.budget or [costs.config.max_batch_tokens],
        arguments.max_num_seqs or [costs.config.max_num_seqs],
    )
    print(f"{costs.model}, {len(load.planned):,} requests, router: {arguments.router}")
    started = time.perf_counter()
    if arguments.target_first_token is not None:
        search_command(arguments, costs, load, configs)
    else:
        trials = []
        for config in configs:
            found = simulate_fleet(
                load,
                num_replicas=arguments.replicas,
                config=config,
                cost=costs.cost,
                api=costs.api,
                router=ROUTERS[arguments.router],
                group=arguments.group,
                num_groups=arguments.groups,
                num_processes=arguments.processes,
            )
            trials.append(Trial(config, arguments.replicas, found, is_met=True))
        if len(trials) == 1:
            print(f"{arguments.replicas:,} replicas, each with {limits_text(configs[0])}\n")
            print(figures_table(trials[0].found))
        else:
            print(trials_table(trials))
    print(f"\nSimulated in {time.perf_counter() - started:.1f} s.")


def search_command(arguments: argparse.Namespace, costs: CostFile, load: Load, configs: Sequence[EngineConfig]) -> None:
    """Print all fleets that are tried, and the smallest one that meets the target."""
    target = Target(
        first_token_seconds=arguments.target_first_token,
        max_replicas=arguments.max_replicas,
        group=arguments.group,
        num_groups=arguments.groups,
        num_processes=arguments.processes,
    )
    router = ROUTERS[arguments.router]
    trials: list[Trial] = []
    for trial in search(load, configs, target, cost=costs.cost, api=costs.api, router=router):
        trials.append(trial)
        print(f"{trial.num_replicas:,} replicas: {'in time' if trial.is_met else 'too slow'}", flush=True)
    print(f"\n{trials_table(trials)}")
    found = best(trials)
    if found is None:
        most = max(trial.num_replicas for trial in trials)
        print(f"\nNo fleet of up to {most:,} replicas has 95 % of the first tokens in time.")
    else:
        print(f"\n{found.num_replicas:,} replicas, each with {limits_text(found.config)}.")


def check_command(arguments: argparse.Namespace) -> None:
    """Print the errors of simulations, and write them into the page if that is asked for."""
    costs = read_cost_file(arguments.cost)
    if str(resolve_model(arguments.model, print)) != costs.start.model_path:
        raise ValueError(f"{arguments.cost} has the costs of {costs.model}, not of {arguments.model}.")
    loads = check_loads(costs, arguments.requests, arguments.seed, arguments.trace)
    start = msgspec.structs.replace(
        costs.start,
        limits=msgspec.structs.replace(
            costs.start.limits, kv_cache_memory_bytes=costs.kv_bytes_per_token * costs.config.num_tokens
        ),
    )
    engine, _, _ = start_engine(start)
    warm_up(engine)
    found = []
    for number, (name, part, load) in enumerate(loads):
        costs = calibrated_again(engine, costs, arguments.calibrate, arguments.seed + 100 * (number + 1), print)
        print(f"{name}: {len(load.planned)} requests in process", flush=True)
        found.append(compare(engine, costs, name, part, load))
    if arguments.http:
        with served(costs) as server:
            for number, (name, part, load) in enumerate(loads, len(loads)):
                costs = calibrated_again(engine, costs, arguments.calibrate, arguments.seed + 100 * (number + 1), print)
                print(f"{name}: {len(load.planned)} requests over HTTP", flush=True)
                measured, simulation = record_http(server.url, load), simulated(costs, load, costs.api)
                found.append(comparison(f"{name}, over HTTP", part, measured, simulation, None))
    print(f"\n{comparisons_table(found)}")
    if any(one.measured.num_requests < LEAST_REQUESTS for one in found):
        print(f"\nThe 95th percentile of fewer than {LEAST_REQUESTS} requests is the slowest one. Raise --requests.")
    if arguments.page:
        body = section(costs, found, f"{time.strftime('%Y-%m-%d')}, commit {commit()}")
        PAGE.write_text(with_section(PAGE.read_text(), HEADING, body))


def load_of(arguments: argparse.Namespace) -> Load:
    """Return the load of the arguments. Raises OSError or ValueError."""
    if arguments.trace is not None:
        if arguments.prompt or arguments.output:
            raise ValueError("--prompt and --output are for --rate. A trace has lengths; --max-prompt cuts them.")
        planned = trace(
            arguments.trace,
            time_scale=arguments.time_scale or 1.0,
            copies=arguments.copies or 1,
            seconds=arguments.seconds,
            seed=arguments.seed,
        )
    else:
        if not (arguments.prompt and arguments.output):
            raise ValueError("--rate needs --prompt and --output.")
        if arguments.time_scale or arguments.copies:
            raise ValueError("--time-scale and --copies are for --trace.")
        seconds = arguments.seconds or DEFAULT_SECONDS
        planned = poisson(arguments.prompt, arguments.output, arguments.rate, seconds, arguments.seed)
    return Load(
        planned=cut(planned, arguments.max_prompt, arguments.max_output),
        shared_prefix_tokens=arguments.shared_prefix,
        num_prefixes=arguments.prefixes,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    main()
