"""Compare the quantizations of one file, in turn: `python -m benchmarks.quantizations FILE.gguf`.

Each of them serves the file once a round, under the loads of `benchmarks.compare --file`. Before and after the load of
one stream the bandwidth of memory is measured while the server idles, so that the rate can be set beside what reading
the weights once a token allows in the same minute.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import torch

from benchmarks.compare import bench, keep_packed_weights
from benchmarks.kernels import read_bandwidth
from benchmarks.server_process import running
from benchmarks.variants import Variant
from benchmarks.workloads import Workload, file_workloads


@dataclass
class Figures:
    """What came of the runs of one quantization, one item a round."""

    rates: dict[str, list[float]] = field(default_factory=dict)  # tokens a second, or seconds to the first token
    bandwidth_shares: list[float] = field(default_factory=list)  # of one stream, after its first token


def bytes_a_token(file: Path) -> int:
    """Return how many bytes of the file's weights one token needs: all, but of an own embedding table one row."""
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors}
    return sum(tensors.values()) - (tensors["token_embd.weight"] if "output.weight" in tensors else 0)


def variant_of(file: Path, quantization: str) -> Variant:
    """Return Caravan with a quantization of the file, a pool of 1 GiB and no speculation."""
    options = ("--quantization", quantization, "--kv-cache-memory", "1GiB", "--speculation", "off")
    arguments = ("-m", "caravan", "serve", "{model}", "--port", "{port}", *options)
    return Variant(quantization, "caravan", quantization, Path(sys.executable), file, arguments, package="caravan-llm")


def measure(variant: Variant, workloads: tuple[Workload, ...], num_bytes: int, figures: Figures, log: Path) -> None:
    """Run all loads on a new server and add what they give to the figures."""
    seed = int(time.time())
    with running(variant, log) as server:
        for number, workload in enumerate(workloads):
            before = read_bandwidth(0.5) if number == 0 else 0.0
            report = bench(workload, server.url, seed + number)
            rate = report.total_tokens_per_second if workload.counts_prompts else report.output_tokens_per_second
            if report.first_token is None:
                raise SystemExit(f"{workload.name}: no answer had a text, so no token has a time")
            if workload.is_first_token:
                rate = report.first_token.p50
            if number == 0 and report.per_token is not None and variant.name == "native":  # whose size is the file's
                bandwidth = statistics.mean((before, read_bandwidth(0.5)))
                figures.bandwidth_shares.append(num_bytes / report.per_token.p50 / bandwidth)
            figures.rates.setdefault(workload.name, []).append(rate)


def main() -> None:
    """Run the rounds and print each figure with its ratio to that of the first quantization, round by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--quantizations", default="none,native", help="separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loads", type=int, help="only the first of the loads")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    variants = [variant_of(arguments.file, name) for name in arguments.quantizations.split(",")]
    workloads = file_workloads(arguments.file.stat().st_size)[: arguments.loads]
    num_bytes = bytes_a_token(arguments.file)
    all_figures = {variant.name: Figures() for variant in variants}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        keep_packed_weights(variants, log)
        for number in range(arguments.rounds):
            for variant in variants:
                measure(variant, workloads, num_bytes, all_figures[variant.name], log)
                latest = {name: f"{rates[-1]:.2f}" for name, rates in all_figures[variant.name].rates.items()}
                print(f"round {number + 1}, {variant.name}: {latest}", flush=True)
    first = all_figures[variants[0].name]
    for name, figures in all_figures.items():
        for workload in workloads:
            rates = figures.rates[workload.name]
            pairs = zip(rates, first.rates[workload.name], strict=True)
            ratios = [other / own if workload.is_first_token else own / other for own, other in pairs]
            print(
                f"{name:8} {workload.name:28} {statistics.median(rates):8.2f}  {statistics.median(ratios):5.2f} times"
            )
    if "native" in all_figures:
        shares = ", ".join(f"{100 * share:.0f} %" for share in all_figures["native"].bandwidth_shares)
        print(f"native reads the weights of one stream at {shares} of the bandwidth of the same minute")


if __name__ == "__main__":
    main()
